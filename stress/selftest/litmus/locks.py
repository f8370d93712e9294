"""Locks: exclusion, order, the three preferences of a reader-writer lock, and what its holder can
see of those who wait."""

from __future__ import annotations

from mmu.runtime import RawLock
from mmu.sync.locks import RwLock
from stress.selftest.litmus.base import (
    Family,
    LitmusBench,
    Tasks,
    acceptable,
    forbidden,
    interesting,
)

FAMILY = Family("locks", "locks")


@FAMILY.program(
    "mutex-exclusion",
    title="two tasks add under a mutex",
    rule="what is done with a mutex held is not interleaved with what others do with it held",
    source="struct mutex; mmu.sync.Mutex",
    grades={
        "2": acceptable("both additions are there"),
        "1": forbidden("an addition was lost inside the mutex"),
    },
)
def mutex_exclusion(bench: LitmusBench) -> Tasks:
    """`lost-update` with a mutex around it."""
    mutex = bench.sync().mutex("slots_lock")
    count = bench.cell("count")

    def add() -> None:
        with mutex:
            count.value = count.value + 1

    def add_too() -> None:
        with mutex:
            count.value = count.value + 1

    return Tasks(add, add_too, after=lambda: count.value)


@FAMILY.program(
    "trylock",
    title="one who waits and one who only tries",
    rule="a trylock fails only while somebody holds the lock, and then takes nothing",
    source="mutex_trylock()",
    grades={
        "1, 2": acceptable("tried before the other"),
        "2, 1": acceptable("tried after the other"),
        "1, busy": acceptable("the other was inside"),
    },
)
def trylock(bench: LitmusBench) -> Tasks:
    """The second task does without when it is busy."""
    lock = bench.lock("lock")
    turns = bench.cell("turns")

    def turn() -> int:
        turns.value = mine = turns.value + 1
        lock.release()
        return int(mine)

    def waits() -> int:
        lock.acquire()
        return turn()

    def tries() -> object:
        return turn() if lock.acquire(blocking=False) else "busy"

    return Tasks(waits, tries)


@FAMILY.program(
    "a-b-b-a",
    title="two locks in opposite orders, without lockdep",
    rule="locks are taken in one order",
    source="reference 2.1 order rules; Documentation/locking/lockdep-design",
    broken=True,
    grades={
        "": acceptable("one was through before the other began"),
        "deadlock": forbidden("each holds what the other wants"),
    },
)
def a_b_b_a(bench: LitmusBench) -> Tasks:
    """The deadlock itself: the scheduler finds that nobody can go on."""
    a, b = bench.lock("A"), bench.lock("B")

    def take(first: RawLock, second: RawLock) -> None:
        first.acquire()
        second.acquire()
        second.release()
        first.release()

    def a_then_b() -> None:
        take(a, b)

    def b_then_a() -> None:
        take(b, a)

    return Tasks(a_then_b, b_then_a)


@FAMILY.program(
    "a-b-b-a-lockdep",
    title="two mutexes in opposite orders, with lockdep",
    rule=(
        "lockdep reports an order that could deadlock in every schedule, also in those that do not"
    ),
    source="kernel/locking/lockdep.c check_noncircular(); reference 2.1",
    broken=True,
    grades={
        "circular-dependency": forbidden(
            "the order is wrong, and lockdep says so although it went well this time"
        ),
        "deadlock": forbidden("this time it did not go well"),
    },
)
def a_b_b_a_lockdep(bench: LitmusBench) -> Tasks:
    """The order alone is the finding."""
    sync = bench.sync()
    a, b = sync.mutex("slots_lock"), sync.mutex("slots_arch_lock")

    def a_then_b() -> None:
        with a, b:
            pass

    def b_then_a() -> None:
        with b, a:
            pass

    return Tasks(a_then_b, b_then_a)


def _reader_waits_for_reader(bench: LitmusBench, preference: str) -> Tasks:
    """A reader stays inside until a second one has been in, while a writer asks for the lock."""
    rwlock = bench.runtime.rwlock(preference, "mmu_lock")
    seen = bench.cell("second reader was in")

    def first_reader() -> None:
        handle = rwlock.gen_rlock()
        handle.acquire()
        bench.runtime.wait_until("the second reader", lambda: bool(seen.value))
        handle.release()

    def second_reader() -> None:
        handle = rwlock.gen_rlock()
        handle.acquire()
        seen.value = 1
        handle.release()

    def writer() -> None:
        handle = rwlock.gen_wlock()
        handle.acquire()
        handle.release()

    return Tasks(first_reader, second_reader, writer)


_THROUGH = acceptable("the second reader came in beside the first one")
_HELD_OFF = interesting(
    "the writer came in between: it waits for the first reader, and the second reader waits for it"
)


@FAMILY.program(
    "second-reader-fair",
    title="fair rwlock: a reader waits for a second reader while a writer asks",
    rule=(
        "a waiting writer holds off new readers, so no reader may wait for another one, and reads "
        "do not nest"
    ),
    source="queued rwlock, reference 2.1 rule 8; readerwriterlock RWLockFair",
    grades={"": _THROUGH, "deadlock": _HELD_OFF},
)
def second_reader_fair(bench: LitmusBench) -> Tasks:
    """Fairness is what makes a nested read a deadlock."""
    return _reader_waits_for_reader(bench, "fair")


@FAMILY.program(
    "second-reader-writer",
    title="writer-preferring rwlock: a reader waits for a second reader while a writer asks",
    rule="a waiting writer holds off new readers, so no reader may wait for another one",
    source="reference 2.1 rule 8; readerwriterlock RWLockWrite",
    grades={"": _THROUGH, "deadlock": _HELD_OFF},
)
def second_reader_writer(bench: LitmusBench) -> Tasks:
    """As with the fair lock."""
    return _reader_waits_for_reader(bench, "writer")


@FAMILY.program(
    "second-reader-reader",
    title="reader-preferring rwlock: a reader waits for a second reader while a writer asks",
    rule="with reader preference a waiting writer holds off nobody",
    source="rwlock_t of old, read_lock() in interrupts; readerwriterlock RWLockRead",
    grades={"": _THROUGH, "deadlock": forbidden("the writer has held off a reader")},
)
def second_reader_reader(bench: LitmusBench) -> Tasks:
    """The same program cannot deadlock here."""
    return _reader_waits_for_reader(bench, "reader")


def _nested_read(bench: LitmusBench, preference: str) -> Tasks:
    rwlock = bench.runtime.rwlock(preference, "mmu_lock")

    def reader() -> None:
        outer, inner = rwlock.gen_rlock(), rwlock.gen_rlock()
        outer.acquire()
        inner.acquire()
        inner.release()
        outer.release()

    def writer() -> None:
        handle = rwlock.gen_wlock()
        handle.acquire()
        handle.release()

    return Tasks(reader, writer)


@FAMILY.program(
    "nested-read-fair",
    title="fair rwlock: a read inside a read while a writer asks",
    rule="mmu_lock is not recursive: read-held recursion is a deadlock as soon as a writer waits",
    source="reference 2.1 rule 8",
    broken=True,
    grades={
        "": acceptable("the writer did not ask in between"),
        "deadlock": forbidden(
            "the inner read waits for the writer, which waits for the outer read"
        ),
    },
)
def nested_read_fair(bench: LitmusBench) -> Tasks:
    """The recursion that the rule forbids."""
    return _nested_read(bench, "fair")


@FAMILY.program(
    "nested-read-reader",
    title="reader-preferring rwlock: a read inside a read while a writer asks",
    rule="with reader preference a read may nest",
    source="Documentation/locking/lockdep-design, recursive read locks",
    grades={
        "": acceptable("the writer waits for both"),
        "deadlock": forbidden("the writer has held off a reader"),
    },
)
def nested_read_reader(bench: LitmusBench) -> Tasks:
    """Why lockdep treats it as a recursive read."""
    return _nested_read(bench, "reader")


def _needbreak(bench: LitmusBench, preference: str) -> Tasks:
    lock: RwLock = bench.sync().rwlock("mmu_lock", preference)
    written = bench.cell("written")
    bench.warm_up.append(lambda: lock.local.mine)

    def zapper() -> str:
        lock.read_lock()
        before = written.value
        yielded = lock.cond_resched(shared=True)
        after = written.value
        lock.read_unlock()
        return f"{before}{after} {'yielded' if yielded else 'stayed'}"

    def writer() -> None:
        lock.write_lock()
        written.value = 1
        lock.write_unlock()

    return Tasks(zapper, writer)


_NEEDBREAK_GRADES = {
    "00 stayed": acceptable("nobody had asked when it looked"),
    "01 yielded": acceptable("the writer had asked and went first"),
    "00 yielded": interesting(
        "the writer had asked, but was not in the queue yet: the reader got the lock back before it"
    ),
    "11 stayed": acceptable("the writer was through before"),
    "01 stayed": forbidden("the writer came in although the reader had not let go"),
    "10 stayed": forbidden("the word went backwards"),
    "11 yielded": forbidden("the reader let go although nobody asked any more"),
}


@FAMILY.program(
    "needbreak-fair",
    title="fair rwlock: rwlock_needbreak() with a writer on its way",
    rule=(
        "a reader that sees the lock contended and lets go lets the writer in; between two such "
        "moments nobody writes"
    ),
    source="rwlock_needbreak(), cond_resched_rwlock_read(); reference 2.5",
    grades=_NEEDBREAK_GRADES,
)
def needbreak_fair(bench: LitmusBench) -> Tasks:
    """The yield of every zap."""
    return _needbreak(bench, "fair")


@FAMILY.program(
    "needbreak-writer",
    title="writer-preferring rwlock: rwlock_needbreak() with a writer on its way",
    rule=(
        "a reader that sees the lock contended and lets go lets the writer in; between two such "
        "moments nobody writes"
    ),
    source="rwlock_needbreak(), cond_resched_rwlock_read(); reference 2.5",
    grades=_NEEDBREAK_GRADES,
)
def needbreak_writer(bench: LitmusBench) -> Tasks:
    """As with the fair lock."""
    return _needbreak(bench, "writer")


@FAMILY.program(
    "needbreak-reader",
    title="reader-preferring rwlock: rwlock_needbreak() with a writer on its way",
    rule="with reader preference letting go is no promise to the writer",
    source="rwlock_needbreak(), cond_resched_rwlock_read(); reference 2.5",
    grades=_NEEDBREAK_GRADES,
)
def needbreak_reader(bench: LitmusBench) -> Tasks:
    """The reader may get it back first at any time."""
    return _needbreak(bench, "reader")


@FAMILY.program(
    "write-excludes-read",
    title="a writer stores two words, a reader loads both",
    rule="under mmu_lock a reader sees all or nothing of a writer's critical section",
    source="rwlock_t; reference 2.1",
    grades={
        "0, 0": acceptable("the reader was first"),
        "1, 1": acceptable("the writer was first"),
        "0, 1": forbidden("the reader was inside together with the writer"),
        "1, 0": forbidden("the reader was inside together with the writer"),
    },
)
def write_excludes_read(bench: LitmusBench) -> Tasks:
    """Exclusion of the reader-writer lock."""
    lock = bench.sync().rwlock("mmu_lock")
    x, y = bench.cell("x"), bench.cell("y")
    bench.warm_up.append(lambda: lock.local.mine)

    def writer() -> None:
        lock.write_lock()
        x.value = 1
        y.value = 1
        lock.write_unlock()

    def reader() -> str:
        lock.read_lock()
        seen = f"{x.value}, {y.value}"
        lock.read_unlock()
        return seen

    return Tasks(writer, reader)


@FAMILY.program(
    "writers-take-turns",
    title="two writers and what each of them finds",
    rule="two writers are never inside together, whatever the preference",
    source="rwlock_t; reference 2.1",
    grades={
        "1, 2": acceptable("left was first"),
        "2, 1": acceptable("right was first"),
        "1, 1": forbidden("both were inside"),
    },
)
def writers_take_turns(bench: LitmusBench) -> Tasks:
    """The gate of the fair lock is closed by one writer at a time."""
    rwlock = bench.runtime.rwlock("fair", "mmu_lock")
    turns = bench.cell("turns")

    def turn() -> int:
        handle = rwlock.gen_wlock()
        handle.acquire()
        turns.value = mine = turns.value + 1
        handle.release()
        return int(mine)

    def left() -> int:
        return turn()

    def right() -> int:
        return turn()

    return Tasks(left, right)
