"""The four programs for this project's explorer: shared words and locks from `sync`, every operation on one a step."""

from __future__ import annotations

import math

from measure import main

from stress.engines.carrier import pinned
from stress.engines.program import Executor
from stress.engines.scheduler import END, START
from stress.search.dpor import Dpor
from stress.search.walk import RandomWalk
from stress.testing.program import ExploredSync, FunctionProgram

RANDOM_SCHEDULES = 5_000
PROOFS = 20
"""A proof takes a few milliseconds: so many are timed together."""


def lost_update(sync: ExploredSync):
    """(a)"""
    count = sync.cell("count", 0)

    def add():
        now = count.value
        count.value = now + 1

    sync.spawn(add)
    sync.spawn(add)
    return lambda: count.value == 2


def deadlock(sync: ExploredSync):
    """(b), with bare locks: lockdep would find it in a schedule in which nothing goes wrong."""
    a, b = sync.lock("A"), sync.lock("B")

    def forwards():
        with a, b:
            pass

    def backwards():
        with b, a:
            pass

    sync.spawn(forwards)
    sync.spawn(backwards)


class Thing:
    """An object that is alive until it is freed."""

    def __init__(self, sync: ExploredSync, gen: int) -> None:
        self.alive = sync.cell("alive", True)
        self.gen = sync.cell("gen", gen)


def use_after_free(sync: ExploredSync):
    """(c)"""
    ptr = sync.cell("ptr", Thing(sync, 0))

    def look():
        assert ptr.value.alive.value

    def replace():
        old = ptr.value
        ptr.value = Thing(sync, 1)
        old.alive.value = False

    sync.spawn(look)
    sync.spawn(look)
    sync.spawn(replace)


def protocol(sync: ExploredSync):
    """(d): 20 accesses to what is shared, 6 + 6 + 8."""
    ptr = sync.cell("ptr", Thing(sync, 0))
    version = sync.cell("version", 0)
    flags = [sync.cell("flag0", False), sync.cell("flag1", False)]
    deferred = sync.cell("deferred", None)

    def reader(flag):
        flag.value = True
        thing = ptr.value
        before = thing.alive.value
        gen = thing.gen.value
        after = thing.alive.value
        assert before and after and gen >= 0
        flag.value = False

    def write():
        old = ptr.value
        ptr.value = Thing(sync, 1)
        now = version.value
        version.value = now + 1
        busy0 = flags[0].value
        busy1 = flags[1].value
        if busy0 or busy1:
            deferred.value = old
        else:
            old.alive.value = False
        version.value = now + 2

    sync.spawn(reader, flags[0])
    sync.spawn(reader, flags[1])
    sync.spawn(write)


PROGRAMS = {"a": FunctionProgram(lost_update), "b": FunctionProgram(deadlock), "c": FunctionProgram(use_after_free)}
PROTOCOL = FunctionProgram(protocol)


def hunt(name, make):
    """Schedules until the bug is found."""

    def run(seed):
        executor, strategy = Executor(PROGRAMS[name]), make(seed)
        for number in range(1, 20_000):
            if executor.execute(strategy).failed:
                return number
        raise AssertionError("the bug was not found")

    return run


def walk(seed):
    """Random schedules of (d)."""
    executor, strategy = Executor(PROTOCOL), RandomWalk(seed)
    for _ in range(RANDOM_SCHEDULES):
        run = executor.execute(strategy)
        assert run.completed and not run.failed
    accesses = [event for event in run.trace if event[1] not in (START, END)]
    assert len(accesses) == 20, accesses
    return RANDOM_SCHEDULES


def prove(_):
    """Every class of schedules of (d)."""
    executor, strategy = Executor(PROTOCOL), Dpor()
    while not strategy.exhausted:
        assert not executor.execute(strategy).failed
    return strategy.executions


def proofs(seed):
    """Some proofs, one after another."""
    counts = [prove(seed) for _ in range(PROOFS)]
    assert len(set(counts)) == 1
    return sum(counts)


def interleavings() -> int:
    """How many ways there are to interleave 6, 6 and 8 accesses."""
    return math.factorial(20) // (math.factorial(6) ** 2 * math.factorial(8))


if __name__ == "__main__":
    with pinned():
        main(
            {
                **{f"{name} random": hunt(name, RandomWalk) for name in PROGRAMS},
                **{f"{name} exhaustive": hunt(name, lambda _: Dpor()) for name in PROGRAMS},
                "d random": walk,
                "d proof": proofs,
            }
        )
