"""More ordinary threaded programs with their known verdict: publication, locks, conditions and
semaphores, and the programs of the benchmarks SCTBench and CHESS, written afresh."""

from __future__ import annotations

import itertools
import queue
import threading
from typing import ClassVar

from tests.unit.stress.testing.plain_programs import Count, right, wrong
from tests.unit.stress.testing.programs import together

# Publication.


@wrong
def flag_before_its_data() -> None:
    class Box:
        ready = False
        value = 0

    def publish() -> None:
        Box.ready = True
        Box.value = 42

    def read() -> None:
        if Box.ready:
            assert Box.value == 42

    together(publish, read)


@right
def data_before_its_flag() -> None:
    class Box:
        ready = False
        value = 0

    def publish() -> None:
        Box.value = 42
        Box.ready = True

    def read() -> None:
        if Box.ready:
            assert Box.value == 42

    together(publish, read)


@right
def by_a_flag_that_is_spun_on() -> None:
    class Box:
        ready = False
        value = 0

    def publish() -> None:
        Box.value = 42
        Box.ready = True

    def read() -> None:
        while not Box.ready:
            pass
        assert Box.value == 42

    together(publish, read)


@wrong
def by_a_flag_that_nobody_sets() -> None:
    class Box:
        ready = False

    def publish() -> None:
        if Box.ready:
            Box.ready = True

    def read() -> None:
        while not Box.ready:
            pass

    together(publish, read)


@right
def by_a_flag_that_is_not_waited_for_long() -> None:
    class Box:
        ready = False

    def publish() -> None:
        Box.ready = True

    def read() -> None:
        patience = itertools.count()
        while not Box.ready:
            if next(patience) > 2:
                return

    together(publish, read)


@right
def by_an_event() -> None:
    class Box:
        value = 0

    ready = threading.Event()

    def publish() -> None:
        Box.value = 42
        ready.set()

    def read() -> None:
        ready.wait()
        assert Box.value == 42

    together(publish, read)


@right
def through_a_queue() -> None:
    line: queue.Queue[list[int]] = queue.Queue()
    found: list[list[int]] = []

    def produce() -> None:
        value = [1]
        value.append(2)
        line.put(value)

    together(produce, lambda: found.append(line.get()))
    assert found == [[1, 2]]


# Locks, conditions and semaphores.


@wrong
def locks_in_both_orders() -> None:
    first, second = threading.Lock(), threading.Lock()

    def one() -> None:
        with first, second:
            pass

    def two() -> None:
        with second, first:
            pass

    together(one, two)


@wrong
def dining_philosophers() -> None:
    forks = [threading.Lock() for _ in range(3)]

    def eat(seat: int) -> None:
        with forks[seat], forks[(seat + 1) % 3]:
            pass

    together(*(lambda seat=seat: eat(seat) for seat in range(3)))


@right
def ordered_philosophers() -> None:
    forks = [threading.Lock() for _ in range(3)]

    def eat(seat: int) -> None:
        low, high = sorted((seat, (seat + 1) % 3))
        with forks[low], forks[high]:
            pass

    together(*(lambda seat=seat: eat(seat) for seat in range(3)))


class Buffer:
    def __init__(self, *, looks_again: bool) -> None:
        self.items: list[int] = []
        self.changed = threading.Condition()
        self._looks_again = looks_again

    def get(self) -> int:
        with self.changed:
            if self._looks_again:
                while not self.items:
                    self.changed.wait()
            elif not self.items:
                self.changed.wait()
            return self.items.pop()

    def put(self, item: int) -> None:
        with self.changed:
            self.items.append(item)
            self.changed.notify_all()


def _passed_through(buffer: Buffer) -> None:
    def produce() -> None:
        buffer.put(1)
        buffer.put(2)

    together(buffer.get, buffer.get, produce)


@wrong
def condition_looked_at_once() -> None:
    _passed_through(Buffer(looks_again=False))


@right
def condition_looked_at_again() -> None:
    _passed_through(Buffer(looks_again=True))


@wrong
def semaphore_for_two() -> None:
    count, gate = Count(), threading.Semaphore(2)

    def add() -> None:
        with gate:
            count.n += 1

    together(add, add)
    assert count.n == 2


@right
def semaphore_for_one() -> None:
    count, gate = Count(), threading.Semaphore(1)

    def add() -> None:
        with gate:
            count.n += 1

    together(add, add)
    assert count.n == 2


@right
def rlock_taken_twice() -> None:
    count, lock = Count(), threading.RLock()

    def add() -> None:
        with lock, lock:
            count.n += 1

    together(add, add)
    assert count.n == 2


# Programs of the benchmarks SCTBench and CHESS, written afresh.


@wrong
def twostage() -> None:
    class Data:
        first = 0
        second = 0

    lock_first, lock_second = threading.Lock(), threading.Lock()

    def write() -> None:
        with lock_first:
            Data.first = 1
        with lock_second:
            Data.second = Data.first + 1

    def read() -> None:
        with lock_first:
            seen = Data.first
        if seen:
            with lock_second:
                assert Data.second == seen + 1

    together(write, read)


@wrong
def reorder() -> None:
    class Data:
        a = 0
        b = 0

    def write() -> None:
        Data.a = 1
        Data.b = -1

    def check() -> None:
        assert (Data.a, Data.b) in ((0, 0), (1, -1))

    together(write, write, check)


@wrong
def fibonacci() -> None:
    class Data:
        i = 1
        j = 1

    def one() -> None:
        for _ in range(3):
            Data.i += Data.j

    def two() -> None:
        for _ in range(3):
            Data.j += Data.i

    together(one, two)
    assert max(Data.i, Data.j) < 21


@right
def fibonacci_bound() -> None:
    class Data:
        i = 1
        j = 1

    def one() -> None:
        for _ in range(2):
            Data.i += Data.j

    def two() -> None:
        for _ in range(2):
            Data.j += Data.i

    together(one, two)
    assert max(Data.i, Data.j) <= 8


@wrong
def work_stealing() -> None:
    class Deque:
        """The owner takes from one end and thieves from the other, and they meet at the last."""

        def __init__(self) -> None:
            self.items = [10, 11]
            self.head, self.tail = 0, 2

        def take(self) -> int | None:
            self.tail -= 1
            if self.head > self.tail:
                self.tail += 1
                return None
            return self.items[self.tail]

        def steal(self) -> int | None:
            head = self.head
            if head >= self.tail:
                return None
            self.head = head + 1
            return self.items[head]

    work, done = Deque(), []

    def owner() -> None:
        done.append(work.take())
        done.append(work.take())

    together(owner, lambda: done.append(work.steal()))
    found = [item for item in done if item is not None]
    assert len(found) == len(set(found))


@right
def peterson() -> None:
    class Lock:
        wants: ClassVar[list[bool]] = [False, False]
        turn = 0

    inside: list[int] = []

    def enter(me: int) -> None:
        Lock.wants[me] = True
        Lock.turn = 1 - me
        if not (Lock.wants[1 - me] and Lock.turn == 1 - me):
            inside.append(me)
            assert len(inside) == 1
            inside.remove(me)
        Lock.wants[me] = False

    Lock.wants[:] = [False, False]
    together(lambda: enter(0), lambda: enter(1))
