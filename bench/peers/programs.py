"""The four programs for this project's explorer: shared words and locks from `sync`, every
operation on one a step."""

from __future__ import annotations

from measure import main

from mmu.report import Report
from stress.engines.carrier import pinned
from stress.engines.program import Executor
from stress.engines.steps import START
from stress.search import garbage
from stress.search.dpor import Dpor
from stress.search.exploration import Exploration, SearchBudget
from stress.search.random_walk import RandomWalk

RANDOM_SCHEDULES = 5_000
PROOFS = 20
"""A proof takes a few milliseconds: so many are timed together."""


class Plain:
    """A program in the engine's own terms: a function that makes everything from the runtime and
    starts the tasks."""

    parts = ()
    has_start = False

    def __init__(self, name, make):
        self.name = name
        self._make = make

    def build(self, runtime, seed):  # noqa: ARG002 - nothing is left to chance
        """A fresh instance."""
        runtime.on_task_error = self._failed
        self._reports = []
        self._make(runtime)
        return self

    def _failed(self, task, error):
        self._reports.append(Report("TEST", "assertion", f"{error!r} in {task.name}", "", ""))

    def start(self):
        """Nobody waits for it."""

    def closing(self):
        """Nothing is left to do."""
        return ()

    def reports(self):
        """What tasks raised."""
        return self._reports

    def errors(self):
        """None."""
        return ()

    def outcome(self):
        """Nothing is compared."""


def lost_update(runtime):
    """(a)"""
    count = runtime.cell("count", 0)
    done = runtime.counter("done")

    def add():
        now = count.value
        count.value = now + 1
        if done.fetch_add(1):
            assert count.value == 2

    runtime.start("add1", add)
    runtime.start("add2", add)


def deadlock(runtime):
    """(b), with bare locks: lockdep would find it in a schedule in which nothing goes wrong."""
    a, b = runtime.lock("A"), runtime.lock("B")

    def forwards():
        with a, b:
            pass

    def backwards():
        with b, a:
            pass

    runtime.start("forwards", forwards)
    runtime.start("backwards", backwards)


class Thing:
    """An object that is alive until it is freed."""

    def __init__(self, runtime, gen):
        self.alive = runtime.cell("alive", True)
        self.gen = runtime.cell("gen", gen)


def use_after_free(runtime):
    """(c)"""
    ptr = runtime.cell("ptr", Thing(runtime, 0))

    def look():
        assert ptr.value.alive.value

    def replace():
        old = ptr.value
        ptr.value = Thing(runtime, 1)
        old.alive.value = False

    runtime.start("look1", look)
    runtime.start("look2", look)
    runtime.start("replace", replace)


def protocol(runtime):
    """(d): 20 accesses to what is shared, 6 + 6 + 8."""
    ptr = runtime.cell("ptr", Thing(runtime, 0))
    version = runtime.cell("version", 0)
    flag0, flag1 = runtime.cell("flag0", False), runtime.cell("flag1", False)
    deferred = runtime.cell("deferred", None)

    def reader(flag):
        flag.value = True
        thing = ptr.value
        before = thing.alive.value
        gen = thing.gen.value
        after = thing.alive.value
        assert (before, after, gen >= 0) == (True, True, True)
        flag.value = False

    def write():
        old = ptr.value
        ptr.value = Thing(runtime, 1)
        now = version.value
        version.value = now + 1
        busy0 = flag0.value
        busy1 = flag1.value
        if busy0 or busy1:
            deferred.value = old
        else:
            old.alive.value = False
        version.value = now + 2

    runtime.start("reader0", lambda: reader(flag0))
    runtime.start("reader1", lambda: reader(flag1))
    runtime.start("write", write)


PROGRAMS = {
    "a": Plain("lost update", lost_update),
    "b": Plain("deadlock", deadlock),
    "c": Plain("use after free", use_after_free),
}
PROTOCOL = Plain("protocol", protocol)


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
        assert (run.completed, run.failed) == (True, False)
        run.release()
        garbage.tidy()
    accesses = [event for event in run.trace if event[1] != START]
    assert len(accesses) == 20, accesses
    return RANDOM_SCHEDULES


def exploration(seed):
    """The same as the command line and the plugin do it: classes counted, races predicted."""
    tally = Exploration(PROTOCOL, RandomWalk(seed)).run(SearchBudget(schedules=RANDOM_SCHEDULES))
    assert not tally.failures
    return tally.schedules


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


MEASUREMENTS = {
    **{f"{name} random": hunt(name, RandomWalk) for name in PROGRAMS},
    **{f"{name} exhaustive": hunt(name, lambda _: Dpor()) for name in PROGRAMS},
    "d random": walk,
    "d exploration": exploration,
    "d proof": proofs,
}


if __name__ == "__main__":
    with garbage.by_hand(), pinned(-1):  # the last CPU: the first is the one that others take
        main(MEASUREMENTS)
