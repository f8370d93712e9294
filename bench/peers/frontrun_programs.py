"""The four programs for frontrun: plain objects, every attribute access a step.

It refuses to explore with locks that it has not patched, hence the first two statements. Input and
output are not looked for, and what is found is not replayed: both would only cost it time. The
thing that the writer of (d) publishes is made by the writer, which costs frontrun's search 1,161
executions; made beforehand, 151.
"""

# ruff: noqa: E402 - the locks have to be patched before anything else is imported
from frontrun._cooperative import patch_locks

patch_locks()

import threading

import frontrun
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
    with state.a, state.b:
        pass


def backwards(state):
    """B, then A."""
    with state.b, state.a:
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
    if not state.ptr.alive:
        state.bad = True


def replace(state):
    """Publishes and frees at once."""
    old = state.ptr
    state.ptr = Thing(1)
    old.alive = False


class Protocol:
    """(d): 20 accesses to what is shared, 6 + 6 + 8. What the writer does to a thing of its own
    does not count."""

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
    if not (thing.alive and before and gen >= 0):
        state.bad = True
    state.flag0 = False


def reader1(state):
    """The same with the other flag."""
    state.flag1 = True
    thing = state.ptr
    before = thing.alive
    gen = thing.gen
    if not (thing.alive and before and gen >= 0):
        state.bad = True
    state.flag1 = False


def write(state):
    """Publishes a thing that it makes, looks who is there, frees the old one only if nobody is."""
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


def write_prepared(state, thing=Thing(1)):  # noqa: B008 - made once, on purpose
    """The same with a thing that was made beforehand."""
    old = state.ptr
    state.ptr = thing
    version = state.version
    state.version = version + 1
    busy0 = state.flag0
    busy1 = state.flag1
    if busy0 or busy1:
        state.deferred = old
    else:
        old.alive = False
    state.version = version + 2


RANDOM_SCHEDULES = 200


def good(state):
    """Nobody touched what was freed."""
    return not state.bad


def find(setup, workers, invariant, **options):
    """How many schedules it takes to find the bug."""
    result = frontrun.explore(
        setup, workers, invariant, detect_io=False, reproduce_on_failure=0, **options
    )
    assert result.property_holds is False, "the bug was not found"
    return result.num_explored


def hunt(setup, workers, invariant):
    """Random schedules until the bug is found."""
    return lambda seed: find(
        setup, workers, invariant, strategy="random", seed=seed, max_attempts=2000
    )


def systematic(setup, workers, invariant):
    """DPOR until the bug is found."""
    return lambda _: find(setup, workers, invariant, preemption_bound=None)


def walk(seed):
    """Random schedules of (d)."""
    result = frontrun.explore(
        Protocol,
        [reader0, reader1, write],
        good,
        strategy="random",
        seed=seed,
        max_attempts=RANDOM_SCHEDULES,
        detect_io=False,
    )
    assert result.property_holds is not False
    return result.num_explored


def prove(writer):
    """Every class of schedules of (d), without a bound."""

    def run(_):
        result = frontrun.explore(
            Protocol, [reader0, reader1, writer], good, preemption_bound=None, detect_io=False
        )
        assert result.property_holds is True, "the protocol was not proved"
        return result.num_explored

    return run


LOST_UPDATE = (Counter, [add, add], lambda state: state.value == 2)
DEADLOCK = (Locks, [forwards, backwards], bool)
USE_AFTER_FREE = (Pointer, [look, look, replace], good)

if __name__ == "__main__":
    main(
        {
            "a random": hunt(*LOST_UPDATE),
            "a exhaustive": systematic(*LOST_UPDATE),
            "b random": hunt(*DEADLOCK),
            "b exhaustive": systematic(*DEADLOCK),
            "c random": hunt(*USE_AFTER_FREE),
            "c exhaustive": systematic(*USE_AFTER_FREE),
            "d random": walk,
            "d proof": prove(write),
            "d proof, prepared": prove(write_prepared),
        }
    )
