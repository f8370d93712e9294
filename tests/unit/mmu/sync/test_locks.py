"""Mutex, spinlock and the reader-writer lock: they exclude, they yield, and misuse is a report that
does no harm."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import methodcaller

import pytest

from mmu.errors import SelfDeadlock
from mmu.probe import Instrument, Probe, override
from mmu.report import Reporter
from mmu.sync import Mutex, RwLock, SpinLock, Sync
from mmu.sync.lockdep import READ, WRITE
from mmu.task import Task
from tests.conftest import (
    MakeSync,
    blocked,
    codes,
    elsewhere,
    eventually,
    evidence,
    finish,
    rcu_section,
    reading,
    the_report,
    together,
    writing,
)
from tests.patience import PATIENCE

PREFERENCES = ["fair", "writer", "reader"]
each_preference = pytest.mark.parametrize("preference", PREFERENCES)
each_mode = pytest.mark.parametrize("shared", [True, False], ids=["read", "write"])


@pytest.fixture(params=["mutex", "spinlock"])
def lock(request: pytest.FixtureRequest, sync: Sync) -> Mutex:
    """A lock with one mode: each test runs on both kinds."""
    return sync.mutex("a_lock") if request.param == "mutex" else sync.spinlock("a_lock")


@pytest.fixture
def mmu_lock(sync: Sync) -> RwLock:
    """A fair reader-writer lock, as the model uses it."""
    return sync.rwlock("mmu_lock")


def take(
    section: AbstractContextManager[object], inside: Callable[[], object] = lambda: None
) -> Callable[[], None]:
    """A thread's body: enter `section`, do something `inside`, leave."""

    def enter_and_leave() -> None:
        with section:
            inside()

    return enter_and_leave


def assert_works(sync: Sync, lock: Mutex) -> None:
    """Other threads can take the lock, one after the other."""
    together(sync.runtime, take(lock), take(lock))


def assert_rw_works(sync: Sync, lock: RwLock) -> None:
    """Other threads can take the lock in either mode, and two of them can read at once."""
    two_readers = threading.Barrier(2)
    together(sync.runtime, take(writing(lock)))
    together(
        sync.runtime, *[take(reading(lock), lambda: two_readers.wait(PATIENCE)) for _ in range(2)]
    )
    together(sync.runtime, take(writing(lock)))


# Exclusion


def contend(sync: Sync, enter: Callable[[], None], leave: Callable[[], None]) -> int:
    """Three threads add to one number in two steps inside a lock; what they lost."""
    total = [0]

    def add() -> None:
        for _ in range(200):
            enter()
            seen = total[0]
            sync.runtime.relax()
            total[0] = seen + 1
            leave()

    together(sync.runtime, add, add, add)
    return 600 - total[0]


def test_a_lock_admits_one_thread_at_a_time(sync: Sync, reporter: Reporter, lock: Mutex) -> None:
    assert contend(sync, lock.acquire, lock.release) == 0
    assert reporter.reports == ()


@each_preference
def test_a_write_lock_admits_one_thread_at_a_time(
    sync: Sync, reporter: Reporter, preference: str
) -> None:
    lock = sync.rwlock("mmu_lock", preference)
    assert contend(sync, lock.write_lock, lock.write_unlock) == 0
    assert reporter.reports == ()


@each_preference
def test_a_writer_waits_for_a_reader(sync: Sync, preference: str) -> None:
    lock = sync.rwlock("mmu_lock", preference)
    with elsewhere(sync.runtime, reading(lock)):
        writer = blocked(sync.runtime, take(writing(lock)))
        assert writer.waiting_for == "mmu_lock (write)"
    finish(sync.runtime, writer)
    assert writer.waiting_for == ""


def test_a_task_shows_which_lock_it_waits_for(sync: Sync, lock: Mutex) -> None:
    with lock:
        waiter = blocked(sync.runtime, take(lock))
        assert waiter.waiting_for == "a_lock"
    finish(sync.runtime, waiter)
    assert waiter.waiting_for == ""


def test_an_error_inside_a_with_block_releases_the_lock(
    sync: Sync, reporter: Reporter, lock: Mutex
) -> None:
    with pytest.raises(RuntimeError, match="inside"), lock:
        raise RuntimeError("inside")
    assert not lock.held()
    assert_works(sync, lock)
    assert reporter.reports == ()


def test_lock_and_unlock_take_the_mode_as_an_argument(mmu_lock: RwLock) -> None:
    seen = []
    for shared in (True, False):
        mmu_lock.lock(shared)
        seen.append(mmu_lock.held_mode())
        mmu_lock.unlock(shared)
        seen.append(mmu_lock.held_mode())
    assert seen == [READ, 0, WRITE, 0]


def test_a_caller_may_pass_its_own_record(reporter: Reporter, mmu_lock: RwLock) -> None:
    record = mmu_lock.local.mine
    mmu_lock.read_lock(record)
    mmu_lock.assert_held_read()
    mmu_lock.read_unlock(record)
    mmu_lock.assert_not_held()
    assert reporter.reports == ()


def test_the_probe_hears_of_write_holds_only(make_sync: MakeSync) -> None:
    heard, probe = [], Probe()
    mmu_lock = make_sync(probe=probe).rwlock("mmu_lock")

    class Observer(Instrument):
        @override
        def mmu_write_locked(self) -> None:
            heard.append("locked")

        @override
        def mmu_write_unlocking(self) -> None:
            heard.append(f"unlocking in mode {mmu_lock.held_mode()}")

    probe.attach(Observer())
    with reading(mmu_lock):
        pass
    with writing(mmu_lock):
        pass
    assert heard == ["locked", f"unlocking in mode {WRITE}"]


# A thread in its own way


# These run in threads of their own: should a lock be broken, the test fails and does not hang.


def test_a_lock_inside_itself_is_a_report_and_raises(
    sync: Sync, reporter: Reporter, lock: Mutex
) -> None:
    def take_twice() -> None:
        with lock:
            with pytest.raises(SelfDeadlock, match="already holds a_lock"):
                lock.acquire()
            assert lock.held()

    together(sync.runtime, take_twice)
    assert the_report(reporter, "recursive-lock").subject == "a_lock"
    assert_works(sync, lock)


NEVER_GRANTED = {
    "write-in-read": (reading, RwLock.write_lock, READ),
    "write-in-write": (writing, RwLock.write_lock, WRITE),
    "read-in-write": (writing, RwLock.read_lock, WRITE),
}


@each_preference
@pytest.mark.parametrize("code", NEVER_GRANTED)
def test_what_can_never_be_granted_is_a_report_and_raises(
    sync: Sync, reporter: Reporter, code: str, preference: str
) -> None:
    lock = sync.rwlock("mmu_lock", preference)
    outer, inner, mode = NEVER_GRANTED[code]

    def take_twice() -> None:
        with outer(lock):
            with pytest.raises(SelfDeadlock, match="release it first"):
                inner(lock)
            assert lock.held_mode() == mode

    together(sync.runtime, take_twice)
    assert the_report(reporter, code).subject == "mmu_lock"
    assert_rw_works(sync, lock)


@each_mode
def test_an_error_from_a_self_deadlock_releases_what_was_held(
    sync: Sync, reporter: Reporter, mmu_lock: RwLock, shared: bool
) -> None:
    with pytest.raises(SelfDeadlock):
        together(
            sync.runtime,
            take(reading(mmu_lock) if shared else writing(mmu_lock), mmu_lock.write_lock),
        )
    assert_rw_works(sync, mmu_lock)


@pytest.mark.parametrize("preference", ["fair", "writer"])
def test_a_read_inside_a_read_is_a_report_where_a_waiting_writer_blocks_readers(
    sync: Sync, reporter: Reporter, preference: str
) -> None:
    lock = sync.rwlock("mmu_lock", preference)
    with reading(lock), reading(lock):
        assert lock.held_mode() == READ
    assert "a waiting writer blocks the inner read" in the_report(reporter, "read-in-read").sentence
    assert_rw_works(sync, lock)


def test_a_read_inside_a_read_is_no_report_on_a_reader_preferring_lock(
    sync: Sync, reporter: Reporter
) -> None:
    lock = sync.rwlock("mmu_lock", "reader")
    with reading(lock), reading(lock):
        assert lock.held_mode() == READ
    assert reporter.reports == ()
    assert_rw_works(sync, lock)


@each_preference
def test_a_read_inside_a_read_does_not_hang_while_a_writer_waits(
    sync: Sync, preference: str
) -> None:
    lock, wrote = sync.rwlock("mmu_lock", preference), threading.Event()

    def read_twice() -> None:
        with reading(lock):
            writers.append(blocked(sync.runtime, take(writing(lock), wrote.set)))
            with reading(lock):
                assert not wrote.is_set()
            assert not wrote.is_set(), "the inner unlock must not release the outer read"

    writers: list[Task] = []
    together(sync.runtime, read_twice)
    finish(sync.runtime, *writers)
    assert wrote.is_set()


# Releases without an acquire


def test_a_release_of_a_free_lock_is_a_report(sync: Sync, reporter: Reporter, lock: Mutex) -> None:
    lock.release()
    assert (
        the_report(reporter, "bad-unlock-balance").headline
        == "WARNING: bad unlock balance detected: a_lock"
    )
    assert_works(sync, lock)


def test_a_release_by_a_thread_that_does_not_hold_the_lock_leaves_its_holder_alone(
    sync: Sync, reporter: Reporter, lock: Mutex
) -> None:
    entered = threading.Event()
    with elsewhere(sync.runtime, lock):
        lock.release()
        waiter = blocked(sync.runtime, take(lock, entered.set))
        assert not entered.is_set()
    finish(sync.runtime, waiter)
    assert the_report(reporter, "bad-unlock-balance").subject == "a_lock"
    assert_works(sync, lock)


@pytest.mark.parametrize(
    "release", [RwLock.read_unlock, RwLock.write_unlock], ids=["read_unlock", "write_unlock"]
)
def test_an_unlock_by_a_thread_that_does_not_hold_the_rwlock_leaves_its_writer_alone(
    sync: Sync, reporter: Reporter, mmu_lock: RwLock, release: Callable[[RwLock], None]
) -> None:
    entered = threading.Event()
    with elsewhere(sync.runtime, writing(mmu_lock)):
        release(mmu_lock)
        reader = blocked(
            sync.runtime, take(reading(mmu_lock), entered.set), at=lambda _: mmu_lock.needbreak()
        )
        assert not entered.is_set()
    finish(sync.runtime, reader)
    assert the_report(reporter, "bad-unlock-balance").subject == "mmu_lock"
    assert_rw_works(sync, mmu_lock)


def test_an_unlock_by_another_thread_leaves_a_reader_alone(
    sync: Sync, reporter: Reporter, mmu_lock: RwLock
) -> None:
    with elsewhere(sync.runtime, reading(mmu_lock)):
        mmu_lock.read_unlock()
        writer = blocked(sync.runtime, take(writing(mmu_lock)))
    finish(sync.runtime, writer)
    assert codes(reporter) == ["bad-unlock-balance"]
    assert_rw_works(sync, mmu_lock)


@each_mode
def test_an_unlock_in_the_wrong_mode_is_a_report_and_keeps_the_lock(
    sync: Sync, reporter: Reporter, mmu_lock: RwLock, shared: bool
) -> None:
    mmu_lock.lock(shared)
    mmu_lock.unlock(not shared)
    assert mmu_lock.held_mode() == (READ if shared else WRITE)
    mmu_lock.unlock(shared)
    assert codes(reporter) == ["bad-unlock-balance"]
    assert_rw_works(sync, mmu_lock)


def test_one_unlock_too_many_is_a_report(sync: Sync, reporter: Reporter, mmu_lock: RwLock) -> None:
    with reading(mmu_lock):
        pass
    mmu_lock.read_unlock()
    assert "holds it as: none" in the_report(reporter, "bad-unlock-balance").sentence
    assert_rw_works(sync, mmu_lock)


# Assertions


def test_assert_held_wants_the_calling_thread_to_hold_the_lock(
    sync: Sync, reporter: Reporter, lock: Mutex
) -> None:
    with lock:
        lock.assert_held()
    assert reporter.reports == ()
    with elsewhere(sync.runtime, lock):
        lock.assert_held()
    assert the_report(reporter, "assert-held").rule == "O5"


def test_assert_not_held_wants_the_calling_thread_not_to_hold_the_lock(
    sync: Sync, reporter: Reporter, lock: Mutex
) -> None:
    with elsewhere(sync.runtime, lock):
        lock.assert_not_held()
    assert reporter.reports == ()
    with lock:
        lock.assert_not_held()
    assert "a_lock must not be held" in the_report(reporter, "assert-not-held").headline


ASSERTIONS: dict[str, tuple[Callable[[RwLock], None], set[int]]] = {
    "held": (RwLock.assert_held, {READ, WRITE}),
    "held-for-read": (RwLock.assert_held_read, {READ}),
    "held-for-write": (RwLock.assert_held_write, {WRITE}),
    "not-held": (RwLock.assert_not_held, {0}),
}
"""Each assertion with the modes in which it is silent."""


@pytest.mark.parametrize("mode", [0, READ, WRITE], ids=["none", "read", "write"])
@pytest.mark.parametrize("wanted", ASSERTIONS)
def test_an_rwlock_assertion_is_silent_in_its_own_modes_only(
    reporter: Reporter, mmu_lock: RwLock, wanted: str, mode: int
) -> None:
    check, silent = ASSERTIONS[wanted]
    if mode:
        mmu_lock.lock(mode == READ)
    check(mmu_lock)
    if mode:
        mmu_lock.unlock(mode == READ)
    assert codes(reporter) == ([] if mode in silent else [f"assert-{wanted}"])


def test_assert_held_mode_wants_the_mode_that_shared_says(
    reporter: Reporter, mmu_lock: RwLock
) -> None:
    with reading(mmu_lock):
        mmu_lock.assert_held_mode(True)
    with writing(mmu_lock):
        mmu_lock.assert_held_mode(False)
    assert reporter.reports == ()
    with reading(mmu_lock):
        mmu_lock.assert_held_mode(False)
    assert "it is held for read" in the_report(reporter, "assert-held-for-write").sentence


@pytest.mark.parametrize(
    "check", [methodcaller("assert_held_read"), methodcaller("assert_held_mode", True)], ids=str
)
def test_a_failed_assertion_is_told_apart_by_the_function_that_made_it(
    reporter: Reporter, mmu_lock: RwLock, check: Callable[[RwLock], None]
) -> None:
    def zap_root() -> None:
        check(mmu_lock)

    def map_page() -> None:
        check(mmu_lock)

    zap_root()
    map_page()
    assert len(reporter.reports) == 2


# Atomic and RCU context


def test_a_mutex_inside_an_rcu_section_is_a_report(sync: Sync, reporter: Reporter) -> None:
    with rcu_section(sync.rcu), sync.mutex("slots_lock"):
        pass
    assert (
        "illegal context switch in RCU read-side critical section (taking slots_lock)"
        in the_report(reporter, "sleep-in-rcu").headline
    )


def test_what_declares_that_it_may_sleep_is_a_report_inside_an_rcu_section(
    sync: Sync, reporter: Reporter
) -> None:
    with rcu_section(sync.rcu):
        sync.might_sleep("allocating a page with GFP_KERNEL")
    assert "allocating a page" in the_report(reporter, "sleep-in-rcu").headline


def test_spinning_locks_inside_an_rcu_section_are_no_report(
    sync: Sync, reporter: Reporter, mmu_lock: RwLock
) -> None:
    with rcu_section(sync.rcu), reading(mmu_lock), sync.spinlock("pages_lock"):
        pass
    assert reporter.reports == ()


def test_a_spinlock_is_a_mutex_whose_holder_may_not_sleep(sync: Sync) -> None:
    assert isinstance(sync.spinlock("pages_lock"), SpinLock)
    assert not sync.spinlock("pages_lock").lock_class.sleeping
    assert sync.mutex("slots_lock").lock_class.sleeping


# Contention


@each_preference
def test_needbreak_sees_a_waiting_writer(sync: Sync, preference: str) -> None:
    lock = sync.rwlock("mmu_lock", preference)
    with reading(lock):
        assert not lock.needbreak()
        writer = blocked(sync.runtime, take(writing(lock)))
        assert lock.needbreak()
    finish(sync.runtime, writer)
    assert not lock.needbreak()


@each_preference
def test_needbreak_sees_a_waiting_reader(sync: Sync, preference: str) -> None:
    lock = sync.rwlock("mmu_lock", preference)
    with writing(lock):
        assert not lock.needbreak()
        reader = blocked(sync.runtime, take(reading(lock)), at=lambda _: lock.needbreak())
    finish(sync.runtime, reader)
    assert not lock.needbreak()


def test_waiters_names_who_waits_and_in_which_mode(sync: Sync, mmu_lock: RwLock) -> None:
    with elsewhere(sync.runtime, writing(mmu_lock)):
        reader = blocked(sync.runtime, take(reading(mmu_lock)), at=lambda _: mmu_lock.needbreak())
        writer = blocked(sync.runtime, take(writing(mmu_lock)))
        assert mmu_lock.waiters() == [(reader, "read"), (writer, "write")]
    finish(sync.runtime, reader, writer)
    assert mmu_lock.waiters() == []


def test_needbreak_does_not_count_holders(sync: Sync, mmu_lock: RwLock) -> None:
    with elsewhere(sync.runtime, reading(mmu_lock)), reading(mmu_lock):
        assert not mmu_lock.needbreak()


@each_mode
@each_preference
def test_cond_resched_lets_the_waiter_in_and_takes_the_lock_again(
    sync: Sync, reporter: Reporter, preference: str, shared: bool
) -> None:
    lock, was_inside = sync.rwlock("mmu_lock", preference), threading.Event()
    other_mode = writing(lock) if shared else reading(lock)

    def yield_once_more() -> bool:
        lock.cond_resched(shared)
        return was_inside.is_set()

    lock.lock(shared)
    waiter = blocked(sync.runtime, take(other_mode, was_inside.set), at=lambda _: lock.needbreak())
    assert lock.cond_resched(shared)
    eventually(yield_once_more, "the waiter to be let in")
    assert lock.held_mode() == (READ if shared else WRITE)
    lock.unlock(shared)
    finish(sync.runtime, waiter)
    assert reporter.reports == ()


@each_mode
def test_cond_resched_without_a_waiter_does_nothing(
    reporter: Reporter, mmu_lock: RwLock, shared: bool
) -> None:
    mmu_lock.lock(shared)
    assert not mmu_lock.cond_resched(shared)
    assert mmu_lock.held_mode() == (READ if shared else WRITE)
    mmu_lock.unlock(shared)
    assert reporter.reports == ()


def test_cond_resched_inside_an_rcu_section_is_a_report(
    sync: Sync, reporter: Reporter, mmu_lock: RwLock
) -> None:
    with reading(mmu_lock):
        writer = blocked(sync.runtime, take(writing(mmu_lock)))
        with rcu_section(sync.rcu):
            mmu_lock.cond_resched(shared=True)
    finish(sync.runtime, writer)
    report = the_report(reporter, "sleep-in-rcu")
    assert "cond_resched_rwlock(mmu_lock)" in report.headline
    assert "test_locks.py" in evidence(report, "call trace")
