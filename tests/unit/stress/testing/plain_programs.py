"""Ordinary threaded programs with their known verdict: each is written as its user would write it,
and knows nothing of schedules. They are the classic ones: lost updates, checks before acts, lazy
initialisation, locks in two orders, and the programs of concurrency benchmarks."""

from __future__ import annotations

import collections
import dataclasses
import heapq
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from tests.unit.stress.testing.programs import together

Program = Callable[[], None]
WRONG: dict[str, Program] = {}
RIGHT: dict[str, Program] = {}


def wrong(program: Program) -> Program:
    """One that fails in some schedule."""
    WRONG[program.__name__] = program
    return program


def right(program: Program) -> Program:
    """One that never fails."""
    RIGHT[program.__name__] = program
    return program


class Count:
    def __init__(self) -> None:
        self.n = 0
        self.lock = threading.Lock()

    def add(self) -> None:
        self.n += 1

    def add_locked(self) -> None:
        with self.lock:
            self.n += 1


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


@dataclasses.dataclass
class Record:
    n: int = 0


class Guarded:
    """A property is code like any other."""

    def __init__(self) -> None:
        self._n = 0

    @property
    def n(self) -> int:
        return self._n

    @n.setter
    def n(self, value: int) -> None:
        self._n = value


class Settings:
    instance: ClassVar[Any] = None

    @classmethod
    def get(cls) -> Any:
        if cls.instance is None:
            cls.instance = cls()
        return cls.instance


total = 0
shared_list: list[int] = []


# Updates that get lost.


@wrong
def attribute() -> None:
    count = Count()
    together(count.add, count.add)
    assert count.n == 2


@right
def attribute_with_a_lock() -> None:
    count = Count()
    together(count.add_locked, count.add_locked)
    assert count.n == 2


@wrong
def global_variable() -> None:
    def add() -> None:
        global total  # noqa: PLW0603 - that is the case
        total += 1

    before = total
    together(add, add)
    assert total == before + 2


@wrong
def closure() -> None:
    n = 0

    def add() -> None:
        nonlocal n
        n += 1

    together(add, add)
    assert n == 2


@wrong
def class_attribute() -> None:
    class Stats:
        n = 0

    def add() -> None:
        Stats.n += 1

    together(add, add)
    assert Stats.n == 2


@wrong
def slot() -> None:
    thing = Slotted()

    def add() -> None:
        thing.n += 1

    together(add, add)
    assert thing.n == 2


@wrong
def dataclass() -> None:
    thing = Record()

    def add() -> None:
        thing.n += 1

    together(add, add)
    assert thing.n == 2


@wrong
def behind_a_property() -> None:
    thing = Guarded()

    def add() -> None:
        thing.n += 1

    together(add, add)
    assert thing.n == 2


@wrong
def by_getattr_and_setattr() -> None:
    thing = Record()

    def add() -> None:
        setattr(thing, "n", getattr(thing, "n") + 1)  # noqa: B009, B010 - that is the case

    together(add, add)
    assert thing.n == 2


@wrong
def dict_item() -> None:
    counts = {"n": 0}

    def add() -> None:
        counts["n"] += 1

    together(add, add)
    assert counts["n"] == 2


@wrong
def defaultdict_item() -> None:
    counts: dict[str, int] = collections.defaultdict(int)

    def add() -> None:
        counts["n"] += 1

    together(add, add)
    assert counts["n"] == 2


@right
def different_keys() -> None:
    counts = {"a": 0, "b": 0}

    def add(key: str) -> None:
        counts[key] += 1

    together(lambda: add("a"), lambda: add("b"))
    assert counts == {"a": 1, "b": 1}


@wrong
def list_item() -> None:
    counts = [0]

    def add() -> None:
        counts[0] += 1

    together(add, add)
    assert counts == [2]


@wrong
def items_swapped() -> None:
    pair = [1, 2]

    def swap() -> None:
        pair[0], pair[1] = pair[1], pair[0]

    together(swap, swap)
    assert pair == [1, 2]


@wrong
def one_of_several_instances() -> None:
    accounts = [Count(), Count()]

    def move(source: int, target: int) -> None:
        accounts[source].n -= 1
        accounts[target].n += 1

    together(lambda: move(0, 1), lambda: move(1, 0))
    assert [account.n for account in accounts] == [0, 0]


@wrong
def in_a_pool_of_threads() -> None:
    count = Count()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(count.add) for _ in range(2)]
    for future in futures:
        future.result()
    assert count.n == 2


# What is one step, because one call of the interpreter does it.


@right
def appends() -> None:
    found: list[int] = []
    together(lambda: found.append(1), lambda: found.append(2))
    assert sorted(found) == [1, 2]


@wrong
def order_of_appends() -> None:
    found: list[int] = []
    together(lambda: found.append(1), lambda: found.append(2))
    assert found == [1, 2]


@right
def setdefault() -> None:
    cache: dict[str, list[int]] = {}
    found: list[list[int]] = []

    def get() -> None:
        found.append(cache.setdefault("key", []))

    together(get, get)
    assert found[0] is found[1]


@right
def counter_updated_by_its_method() -> None:
    counts: collections.Counter[str] = collections.Counter()
    together(lambda: counts.update("a"), lambda: counts.update("a"))
    assert counts["a"] == 2


@wrong
def list_changed_by_a_function_of_the_library() -> None:
    heap: list[int] = []

    def push(item: int) -> None:
        heapq.heappush(heap, item)
        assert heap[0] == item

    together(lambda: push(1), lambda: push(2))


# A check, and then an act.


@wrong
def cache_filled_twice() -> None:
    cache: dict[str, object] = {}
    made: list[int] = []

    def get() -> None:
        if "key" not in cache:
            made.append(1)
            cache["key"] = object()

    together(get, get)
    assert made == [1]


@wrong
def set_checked_first() -> None:
    seen: set[int] = set()
    done: list[int] = []

    def visit() -> None:
        if 1 not in seen:
            seen.add(1)
            done.append(1)

    together(visit, visit)
    assert done == [1]


@wrong
def length_checked_first() -> None:
    slots: list[int] = []

    def take() -> None:
        if len(slots) < 1:
            slots.append(0)

    together(take, take)
    assert len(slots) == 1


@wrong
def list_of_a_module() -> None:
    def take() -> None:
        if not shared_list:
            shared_list.append(1)

    together(take, take)
    assert shared_list == [1]


@wrong
def stack_emptied_by_another() -> None:
    stack = [1]

    def pop() -> None:
        if stack:
            stack.pop()

    together(pop, pop)


@wrong
def deque_emptied_by_another() -> None:
    work = collections.deque([1])

    def take() -> None:
        while work:
            work.popleft()

    together(take, take)


@wrong
def dict_changed_during_a_loop() -> None:
    things = {1: 1, 2: 2}

    def look() -> None:
        for key in things:  # noqa: PLC0206 - two steps, as people write it
            assert things[key] == key

    def grow() -> None:
        things[3] = 3

    together(look, grow)


@wrong
def money_spent_twice() -> None:
    account = {"mine": 100, "yours": 0}

    def pay(amount: int) -> None:
        if account["mine"] >= amount:
            account["mine"] -= amount
            account["yours"] += amount

    together(lambda: pay(60), lambda: pay(60))
    assert account["mine"] >= 0


@wrong
def lazy_singleton() -> None:
    found: list[Any] = []
    together(lambda: found.append(Settings.get()), lambda: found.append(Settings.get()))
    assert found[0] is found[1]


@right
def double_checked_singleton() -> None:
    class Lazy:
        instance: ClassVar[Any] = None
        lock = threading.Lock()

        @classmethod
        def get(cls) -> Any:
            if cls.instance is None:
                with cls.lock:
                    if cls.instance is None:
                        cls.instance = cls()
            return cls.instance

    found: list[Any] = []
    together(lambda: found.append(Lazy.get()), lambda: found.append(Lazy.get()))
    assert found[0] is found[1]
