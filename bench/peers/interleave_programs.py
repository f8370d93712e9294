"""The four programs for interleave-test: plain objects, every line a step, which is its fastest
setting.

It has no partial-order reduction; its exhaustive search is up to a number of preemptions, so (d) is
not proved by it.
"""

from __future__ import annotations

import threading

import interleave_test
from measure import main


class Counter:
    """(a)"""

    def __init__(self):
        self.value = 0


def add(state):
    """Two of these lose an update."""
    now = state.value
    state.value = now + 1


class Locks:
    """(b)"""

    def __init__(self):
        self.a = threading.Lock()
        self.b = threading.Lock()


def forwards(state):
    """A, then B."""
    with state.a:  # noqa: SIM117 - a line each
        with state.b:
            pass


def backwards(state):
    """B, then A."""
    with state.b:  # noqa: SIM117
        with state.a:
            pass


class Thing:
    """An object that is alive until it is freed."""

    def __init__(self, gen):
        self.alive = True
        self.gen = gen


class Pointer:
    """(c)"""

    def __init__(self):
        self.ptr = Thing(0)
        self.bad = False


def look(state):
    """Nothing keeps what it finds alive."""
    thing = state.ptr
    if not thing.alive:
        state.bad = True


def replace(state):
    """Publishes and frees at once."""
    old = state.ptr
    state.ptr = Thing(1)
    old.alive = False


class Protocol:
    """(d): 20 accesses to what is shared, 6 + 6 + 8."""

    def __init__(self):
        self.ptr = Thing(0)
        self.version = 0
        self.flag0 = False
        self.flag1 = False
        self.deferred = None
        self.bad = False


def reader0(state):
    """Announces itself, reads, leaves."""
    state.flag0 = True
    thing = state.ptr
    before = thing.alive
    gen = thing.gen
    after = thing.alive
    if not (before and after and gen >= 0):
        state.bad = True
    state.flag0 = False


def reader1(state):
    """The same with the other flag."""
    state.flag1 = True
    thing = state.ptr
    before = thing.alive
    gen = thing.gen
    after = thing.alive
    if not (before and after and gen >= 0):
        state.bad = True
    state.flag1 = False


def write(state):
    """Publishes, looks who is there, frees only if nobody is."""
    old = state.ptr
    state.ptr = Thing(1)
    version = state.version
    state.version = version + 1
    busy0 = state.flag0
    busy1 = state.flag1
    if busy0 or busy1:
        state.deferred = old
    else:
        old.alive = False
    state.version = version + 2


RANDOM_SCHEDULES = 300


def model(setup, workers, invariant):
    """A program in the shape that the tool wants: one function that makes everything, runs the
    tasks and judges."""

    def run():
        state = setup()
        tasks = [interleave_test.spawn(worker, state) for worker in workers]
        for task in tasks:
            task.join()
        assert invariant(state)

    return run


def explore(program, seed, strategy, schedules, **options):
    """What the tool says."""
    return interleave_test.explore(
        model(*program),
        iterations=schedules,
        seed=seed,
        strategy=strategy,
        granularity="line",
        raise_on_failure=False,
        **options,
    )


def hunt(program, strategy):
    """Schedules until the bug is found."""

    def run(seed):
        result = explore(program, seed, strategy, 20_000)
        assert result.failure is not None, "the bug was not found"
        return result.schedules_run

    return run


def walk(seed):
    """Random schedules of (d)."""
    result = explore(PROTOCOL, seed, "random", RANDOM_SCHEDULES)
    assert result.failure is None
    return result.schedules_run


def bounded(_):
    """Every schedule of (d) with one preemption: not a proof."""
    result = explore(PROTOCOL, 0, "dfs", 100_000, max_preemptions=1)
    assert result.failure is None
    return result.schedules_run


LOST_UPDATE = (Counter, [add, add], lambda state: state.value == 2)
DEADLOCK = (Locks, [forwards, backwards], bool)
USE_AFTER_FREE = (Pointer, [look, look, replace], lambda state: not state.bad)
PROTOCOL = (Protocol, [reader0, reader1, write], lambda state: not state.bad)

if __name__ == "__main__":
    main(
        {
            "a random": hunt(LOST_UPDATE, "random"),
            "a exhaustive": hunt(LOST_UPDATE, "dfs"),
            "b random": hunt(DEADLOCK, "random"),
            "b exhaustive": hunt(DEADLOCK, "dfs"),
            "c random": hunt(USE_AFTER_FREE, "random"),
            "c exhaustive": hunt(USE_AFTER_FREE, "dfs"),
            "d random": walk,
            "d one preemption": bounded,
        }
    )
