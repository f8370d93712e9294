"""Unmodified threaded code under `explore`: the standard library's primitives serve its tasks."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Thread
from typing import Any

import pytest
from readerwriterlock import rwlock

import mmu.sync
from stress.testing import Settings, explore
from tests.unit.stress.testing.programs import failure_of, proved, together


class TestLocks:
    def test_a_lock_excludes(self) -> None:
        def program() -> None:
            lock = threading.Lock()
            inside: list[int] = []

            def enter() -> None:
                with lock:
                    inside.append(1)
                    assert len(inside) == 1
                    time.sleep(0)
                    inside.pop()

            together(enter, enter)

        assert proved(program).classes == 2

    def test_locks_in_both_orders_deadlock(self) -> None:
        def program() -> None:
            first, second = threading.Lock(), threading.Lock()

            def one() -> None:
                with first, second:
                    pass

            def two() -> None:
                with second, first:
                    pass

            together(one, two)

        text = failure_of(program)
        assert text.startswith("BUG: deadlock:")
        assert "one1 waits for second, held by two1" in text

    def test_an_rlock_is_its_owners_to_take_again(self) -> None:
        def program() -> None:
            lock = threading.RLock()

            def enter() -> None:
                with lock, lock:
                    pass
                with pytest.raises(RuntimeError):
                    lock.release()

            together(enter, enter)

        assert proved(program).classes == 2

    def test_a_lock_taken_twice_waits_for_ever(self) -> None:
        def program() -> None:
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()

        assert failure_of(program).startswith("BUG: deadlock: main can never go on")

    def test_what_is_refused_is_refused_here_too(self) -> None:
        def program() -> None:
            lock = threading.Lock()

            def misuse() -> None:
                with pytest.raises(ValueError, match="timeout"):
                    lock.acquire(False, 1)
                with pytest.raises(ValueError, match="non-negative"):
                    lock.acquire(True, -2)
                assert isinstance(threading.Lock(), threading.Lock)
                with lock:
                    assert not lock.acquire(False)

            together(misuse, misuse)

        proved(program)


MODULE_LOCK = threading.Lock()
MODULE_QUEUE: queue.Queue[int] = queue.Queue()
MODULE_EVENT = threading.Event()
CHECKED = mmu.sync.Lock("made at import")
RW = rwlock.RWLockFair()


class Holder:
    lock = threading.Lock()

    def __init__(self) -> None:
        self.own = threading.RLock()
        self.simple: queue.SimpleQueue[int] = queue.SimpleQueue()


HOLDER = Holder()


class TestMadeBefore:
    @pytest.mark.parametrize(
        "lock",
        [
            lambda: MODULE_LOCK,
            lambda: Holder.lock,
            lambda: HOLDER.own,
            lambda: CHECKED,
            RW.gen_wlock,
        ],
    )
    def test_a_lock_made_at_import_is_under_control(self, lock: Callable[[], Any]) -> None:
        entered = []

        def program() -> None:
            def enter() -> None:
                mine = lock()
                with mine:
                    entered.append(1)
                    time.sleep(0)
                    entered.pop()
                    assert not entered

            together(enter, enter)

        assert proved(program).classes >= 2

    def test_it_is_the_real_one_afterwards(self) -> None:
        kinds = [type(MODULE_LOCK), type(Holder.lock), type(HOLDER.own), type(HOLDER.simple)]

        def program() -> None:
            MODULE_QUEUE.put(1)
            MODULE_EVENT.set()
            HOLDER.simple.put(1)
            together(MODULE_QUEUE.get, MODULE_EVENT.clear)

        proved(program)
        after = [type(MODULE_LOCK), type(Holder.lock), type(HOLDER.own), type(HOLDER.simple)]
        assert after == kinds
        assert MODULE_QUEUE.empty()
        assert not MODULE_EVENT.is_set()
        assert HOLDER.simple.empty()

    def test_another_thread_of_the_process_is_served_as_ever(self) -> None:
        kinds: set[str] = set()
        told, tell = os.pipe()
        done, finish = os.pipe()

        def elsewhere() -> None:
            os.read(told, 1)
            kinds.add(type(threading.Lock()).__module__)
            kinds.add(type(queue.SimpleQueue()).__module__)
            threading.Event().set()
            with MODULE_LOCK:
                kinds.add(str(time.monotonic() > 0))
            os.write(finish, b"x")

        thread = Thread(target=elsewhere)
        thread.start()

        def program() -> None:
            lock = threading.Lock()

            def enter() -> None:
                with lock:
                    if not kinds:
                        os.write(tell, b"x")
                        os.read(done, 1)

            together(enter, enter)

        proved(program)
        thread.join()
        assert kinds == {"_thread", "_queue", "True"}


class TestWaits:
    def test_a_condition_hands_over(self) -> None:
        def program() -> None:
            condition, ready = threading.Condition(), []

            def wait() -> None:
                with condition:
                    while not ready:
                        condition.wait()

            def notify() -> None:
                with condition:
                    ready.append(1)
                    condition.notify()

            together(wait, notify)

        assert proved(program).classes == 2

    def test_a_notify_before_the_wait_is_lost(self) -> None:
        def program() -> None:
            condition = threading.Condition()

            def wait() -> None:
                with condition:
                    condition.wait()

            def notify() -> None:
                with condition:
                    condition.notify_all()

            together(wait, notify)

        assert "wait1 waits for a notify of condition" in failure_of(program)

    def test_if_instead_of_while(self) -> None:
        """Two consumers, one item at a time: the second to wake finds nothing."""

        def program() -> None:
            condition, items = threading.Condition(), []

            def consume() -> None:
                with condition:
                    if not items:
                        condition.wait()
                    items.pop()

            def produce() -> None:
                for _ in range(2):
                    with condition:
                        items.append(1)
                        condition.notify_all()

            together(consume, consume, produce)

        assert failure_of(program).startswith("IndexError in consume")

    def test_a_semaphore_lets_two_in(self) -> None:
        def program(sync: Any) -> None:
            semaphore, inside = threading.Semaphore(2), sync.counter("inside")

            def enter() -> None:
                with semaphore:
                    assert inside.fetch_add(1) < 2
                    inside.fetch_add(-1)

            together(enter, enter, enter)

        proved(program)

    def test_a_bounded_semaphore_is_not_released_too_often(self) -> None:
        def program() -> None:
            semaphore = threading.BoundedSemaphore(1)

            def enter() -> None:
                semaphore.acquire()
                semaphore.release()
                semaphore.release()

            together(enter, enter)

        assert failure_of(program).startswith("ValueError in enter")

    def test_events_and_barriers(self) -> None:
        def program() -> None:
            event, barrier, places = threading.Event(), threading.Barrier(2), []

            def meet() -> None:
                event.wait()
                places.append(barrier.wait())

            together(meet, meet, event.set)
            assert sorted(places) == [0, 1]

        proved(program)


class TestQueues:
    @pytest.mark.parametrize(
        ("make", "order"),
        [
            (queue.Queue, [2, 1, 3]),
            (queue.LifoQueue, [3, 1, 2]),
            (queue.PriorityQueue, [1, 2, 3]),
            (queue.SimpleQueue, [2, 1, 3]),
        ],
    )
    def test_each_in_its_order(self, make: Callable[[], Any], order: list[int]) -> None:
        def program() -> None:
            items, got = make(), []

            def take() -> None:
                got.extend(items.get() for _ in range(3))

            for item in (2, 1, 3):
                items.put(item)
            together(take, items.qsize)
            assert got == order

        proved(program)

    def test_a_bounded_queue_makes_both_ends_wait(self) -> None:
        def program() -> None:
            items: queue.Queue[int] = queue.Queue(maxsize=1)
            got: list[int] = []

            def put() -> None:
                for number in range(3):
                    items.put(number)

            def take() -> None:
                for _ in range(3):
                    got.append(items.get())
                    items.task_done()

            together(put, take, items.join)
            assert got == [0, 1, 2]

        proved(program)

    def test_more_gets_than_puts(self) -> None:
        def program() -> None:
            items: queue.Queue[int] = queue.Queue()
            together(lambda: items.put(1), items.get, items.get)

        assert "an item in items" in failure_of(program)

    def test_empty_is_no_promise(self) -> None:
        def program() -> None:
            items: queue.Queue[int] = queue.Queue()
            items.put(1)

            def take() -> None:
                if not items.empty():
                    items.get_nowait()

            together(take, take)

        assert failure_of(program).startswith("Empty in take")


class TestThreads:
    def test_a_subclass_is_the_current_thread(self) -> None:
        class Worker(Thread):
            def __init__(self) -> None:
                super().__init__()
                self.done = threading.Event()

            def run(self) -> None:
                assert threading.current_thread() is self
                assert self.is_alive()
                self.done.set()

        def program() -> None:
            assert threading.current_thread() is threading.main_thread()
            worker = Worker()
            assert not worker.is_alive()
            with pytest.raises(RuntimeError, match="before it is started"):
                worker.join()
            worker.start()
            with pytest.raises(RuntimeError, match="once"):
                worker.start()
            worker.done.wait()
            worker.join()
            assert not worker.is_alive()
            assert worker not in threading.enumerate()

        proved(program)

    def test_names_are_the_same_in_every_schedule(self) -> None:
        names = set()

        def program() -> None:
            lock, own = threading.Lock(), []

            def work() -> None:
                with lock:
                    own.append(threading.current_thread().name)

            together(work, work)
            names.update(own)

        proved(program)
        assert names == {"Thread-1 (work)", "Thread-2 (work)"}

    def test_a_daemon_need_not_end_and_another_thread_must(self) -> None:
        def program(daemon: bool) -> None:
            event, other = threading.Event(), threading.Event()

            def wait() -> None:
                other.set()
                event.wait()

            Thread(target=wait, daemon=daemon).start()
            other.wait()

        proved(lambda: program(True))
        assert "wait1 waits for event" in failure_of(lambda: program(False))

    def test_an_exception_in_a_thread_is_a_failure_and_an_exit_is_none(self) -> None:
        def program(error: type[BaseException]) -> None:
            lock = threading.Lock()

            def fail() -> None:
                with lock:
                    raise error

            together(fail, fail)

        assert failure_of(lambda: program(KeyError)).startswith("KeyError in fail")
        proved(lambda: program(SystemExit))

    def test_a_pool(self) -> None:
        def program() -> None:
            lock, total = threading.Lock(), [0]

            def add(number: int) -> int:
                with lock:
                    total[0] += number
                return 2 * number

            with ThreadPoolExecutor(2) as pool:
                futures = [pool.submit(add, number) for number in (1, 2)]
                assert sorted(future.result() for future in as_completed(futures)) == [2, 4]
            assert total == [3]
            with pytest.raises(RuntimeError, match="after shutdown"):
                pool.submit(add, 1)

        explore(program, Settings(schedules=50))

    def test_a_pool_whose_work_waits_for_more_of_its_work(self) -> None:
        def program() -> None:
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(lambda: pool.submit(int).result()).result() == 0

        assert failure_of(program).startswith("BUG: deadlock")

    def test_both_ways_to_make_tasks(self) -> None:
        def program(sync: Any) -> Any:
            count, event = sync.counter("count"), threading.Event()

            def add() -> None:
                count.add(1)
                event.set()

            sync.spawn(add)
            Thread(target=add).start()
            event.wait()
            return lambda: count.value == 2

        proved(program)


class TestTime:
    def test_a_short_time_out_may_come_before_what_is_waited_for(self) -> None:
        def program() -> None:
            event = threading.Event()
            Thread(target=event.set).start()
            assert event.wait(0.1), "too late"

        assert failure_of(program).startswith("AssertionError in main: too late")

    def test_a_long_one_comes_when_nothing_else_can(self) -> None:
        def program() -> None:
            event, lock = threading.Event(), threading.Lock()
            thread = Thread(target=event.set)
            thread.start()
            assert event.wait(5)
            thread.join(5)
            assert not thread.is_alive()
            with lock:
                start = time.monotonic()
                assert not lock.acquire(timeout=30)
                assert time.monotonic() - start >= 30

        proved(program)

    def test_sleeping_orders_nothing_unless_it_is_long(self) -> None:
        def program(seconds: float) -> None:
            event = threading.Event()
            Thread(target=event.set).start()
            time.sleep(seconds)
            assert event.is_set()

        assert "AssertionError" in failure_of(lambda: program(0.1))
        proved(lambda: program(5))

    def test_polling_ends(self) -> None:
        def program() -> None:
            event, items = threading.Event(), queue.Queue()

            def serve() -> None:
                while not event.is_set():
                    try:
                        items.get(timeout=0.1)
                    except queue.Empty:
                        time.sleep(0.01)

            thread = Thread(target=serve)
            thread.start()
            items.put(1)
            event.set()
            thread.join()

        proved(program)

    def test_a_timer_and_one_that_is_cancelled(self) -> None:
        def program() -> None:
            event = threading.Event()
            timer, cancelled = threading.Timer(3, event.set), threading.Timer(3, event.clear)
            timer.start()
            cancelled.start()
            cancelled.cancel()
            event.wait()
            timer.join()
            cancelled.join()

        proved(program)

    def test_the_clock_is_virtual_and_goes_on(self) -> None:
        seen = set()

        def program() -> None:
            lock, own = threading.Lock(), []

            def work() -> None:
                with lock:
                    start = time.monotonic()
                    time.sleep(0.5)
                    assert 0.5 < time.monotonic() - start < 0.6
                    own.append(time.time())

            together(work, work)
            seen.update(own)

        began = time.monotonic()
        proved(program)
        assert len(seen) == 1
        assert time.monotonic() >= began


def test_reader_writer_locks_of_the_library() -> None:
    def program() -> None:
        lock, pair = rwlock.RWLockFair(), [0, 0]

        def write() -> None:
            with lock.gen_wlock():
                pair[0] += 1
                time.sleep(0)
                pair[1] += 1

        def read() -> None:
            with lock.gen_rlock():
                assert pair[0] == pair[1]

        together(write, read)

    proved(program)


def test_checked_locks_with_the_default_sync() -> None:
    def program() -> None:
        first, second = mmu.sync.Lock("first"), mmu.sync.Lock("second")

        def one() -> None:
            with first, second:
                pass

        def two() -> None:
            with second, first:
                pass

        together(one, two)

    before = mmu.sync.reports()
    assert "possible circular locking dependency" in failure_of(program)
    assert mmu.sync.reports() == before
