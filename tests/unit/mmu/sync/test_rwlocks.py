"""`readerwriterlock`'s classes with their rules: the examples show each trap, this is the rest."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mmu.errors import BrokenLock, BrokenRule, MmuError, SelfDeadlock
from mmu.report import Reporter
from mmu.sync import (
    Lock,
    RWLockFair,
    RWLockFairD,
    RWLockRead,
    RWLockReadD,
    RWLockWrite,
    RWLockWriteD,
    Sync,
)
from mmu.sync.default import raise_report
from mmu.sync.lockdep import READ, WRITE
from mmu.sync.rwlocks import ReaderWriterLock
from mmu.task import current
from stress.selftest.detectors.clock import ClockRuntime
from tests.conftest import codes, evidence, the_report
from tests.patience import PATIENCE
from tests.unit.mmu.sync.test_threads import in_thread

ALL = [RWLockFair, RWLockFairD, RWLockRead, RWLockReadD, RWLockWrite, RWLockWriteD]
DOWNGRADABLE = [RWLockFairD, RWLockWriteD]
Kind = type[ReaderWriterLock]


@pytest.mark.parametrize("kind", ALL)
def test_readers_share_and_writers_do_not(sync: Sync, reporter: Reporter, kind: Kind) -> None:
    lock = kind(sync=sync, name="table")

    def read() -> int:
        with lock.read():
            return lock.held_mode()

    with lock.read() as granted:
        assert granted is True
        assert lock.held_mode() == READ
        assert in_thread(read) == READ
    with lock.write():
        assert lock.held_mode() == WRITE
        assert in_thread(lambda: lock.read().acquire(blocking=False)) is False
        assert in_thread(lambda: lock.gen_wlock().acquire(timeout=0.01)) is False
    assert lock.held_mode() == 0
    assert current.task.held == []
    assert reporter.reports == ()


@pytest.mark.parametrize("kind", ALL)
def test_writers_lose_no_addition(sync: Sync, reporter: Reporter, kind: Kind) -> None:
    lock, box = kind(sync=sync, name="table"), [0]

    def work() -> None:
        for turn in range(150):
            if turn % 3:
                with lock.read():
                    assert box[0] >= 0
            else:
                with lock.write():
                    box[0] = box[0] + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert box == [200]
    assert reporter.reports == ()
    assert not lock.locked()


@pytest.mark.parametrize("kind", DOWNGRADABLE)
def test_a_downgrade_keeps_writers_out_and_lets_readers_in(
    sync: Sync, reporter: Reporter, kind: Kind
) -> None:
    lock = kind(sync=sync, name="table")
    writer = lock.write()
    writer.acquire()
    reader = writer.downgrade()
    assert lock.held_mode() == READ
    assert not writer.locked()
    assert reader.locked()
    assert in_thread(lambda: lock.write().acquire(blocking=False)) is False

    def read() -> None:
        with lock.read():
            pass

    in_thread(read)
    reader.release()
    assert in_thread(
        lambda: (handle := lock.write()).acquire(blocking=False) and (handle.release() or True)
    )
    assert reporter.reports == ()
    assert current.task.held == []


@pytest.mark.parametrize("kind", sorted(set(ALL) - set(DOWNGRADABLE), key=str))
def test_a_downgrade_is_refused_where_it_cannot_be_atomic(
    sync: Sync, reporter: Reporter, kind: Kind
) -> None:
    lock = kind(sync=sync, name="table")
    writer = lock.write()
    writer.acquire()
    with pytest.raises(MmuError, match="use RWLockFairD or RWLockWriteD"):
        writer.downgrade()
    assert lock.held_mode() == WRITE
    writer.release()
    assert codes(reporter) == ["downgrade-not-atomic"]


def test_a_handle_that_holds_nothing_has_nothing_to_downgrade(
    sync: Sync, reporter: Reporter
) -> None:
    with pytest.raises(RuntimeError):
        RWLockFairD(sync=sync, name="table").write().downgrade()
    the_report(reporter, "bad-unlock-balance")


@pytest.mark.parametrize(
    ("kind", "reported"),
    [(RWLockRead, []), (RWLockFair, ["read-in-read"]), (RWLockWrite, ["read-in-read"])],
)
def test_a_read_in_a_read_is_counted(
    sync: Sync, reporter: Reporter, kind: Kind, reported: list[str]
) -> None:
    lock = kind(sync=sync, name="table")
    with lock.read():
        with lock.read():
            pass
        assert lock.held_mode() == READ
        assert in_thread(lambda: lock.write().acquire(blocking=False)) is False
    assert not lock.locked()
    assert codes(reporter) == reported


def test_trying_is_no_mistake(sync: Sync, reporter: Reporter) -> None:
    lock = RWLockFair(sync=sync, name="table")
    with lock.write():
        assert lock.write().acquire(blocking=False) is False
        assert lock.read().acquire(blocking=False) is False
    with lock.read():
        handle = lock.read()
        assert handle.acquire(blocking=False)
        handle.release()
    assert reporter.reports == ()


def test_the_modes_are_in_the_lock_order(sync: Sync, reporter: Reporter) -> None:
    table, log = RWLockFair(sync=sync, name="table"), Lock("log", sync=sync)
    with table.read(), log:
        pass
    with log, table.write():
        pass
    report = the_report(reporter, "circular-dependency")
    assert evidence(report, "existing dependency: table (read) then log (write)")


def test_an_atomic_one_may_not_be_slept_under(sync: Sync, reporter: Reporter) -> None:
    with RWLockFair(sync=sync, name="table", atomic=True).read():
        sync.might_sleep("reading a file")
    the_report(reporter, "sleep-in-atomic")


def test_waiting_for_a_sleeping_one_inside_rcu_is_a_report(sync: Sync, reporter: Reporter) -> None:
    with sync.rcu.read(), RWLockFair(sync=sync, name="table").read():
        pass
    the_report(reporter, "sleep-in-rcu")


def test_two_releases_of_one_acquisition_are_one(sync: Sync, reporter: Reporter) -> None:
    lock = RWLockFair(sync=sync, name="table")
    handle = lock.write()
    handle.acquire()
    grant = handle._grant
    assert grant is not None
    lock.give(grant)
    with pytest.raises(RuntimeError, match="release unlocked lock"):
        handle.release()  # has not seen that the other one was faster
    the_report(reporter, "bad-unlock-balance")
    with lock.write():
        pass


def test_a_raised_report_takes_nothing(sync: Sync, reporter: Reporter) -> None:
    reporter.redirect(raise_report)
    lock = RWLockFair(sync=sync, name="table")
    with lock.read():
        with pytest.raises(BrokenRule), lock.read():
            pytest.fail("it was taken")
        assert lock.held_mode() == READ
    assert not lock.locked()


class Interrupting:
    """An inner lock that an exception from outside meets: the `at`th acquire."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.lock = threading.Lock()

    def acquire(self, *args: Any, **options: Any) -> bool:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return self.lock.acquire(*args, **options)

    def release(self) -> None:
        self.lock.release()


@pytest.mark.parametrize("at", [1, 2])
def test_a_lock_that_was_interrupted_is_refused_from_then_on(
    sync: Sync, reporter: Reporter, at: int
) -> None:
    lock = RWLockFair(lambda: Interrupting(at), sync=sync, name="table")
    for _ in range(at - 1):
        with lock.write():
            pass
    with pytest.raises(KeyboardInterrupt):
        lock.write().acquire()
    the_report(reporter, "interrupted-lock")
    with pytest.raises(BrokenLock, match="KeyboardInterrupt"):
        in_thread(lambda: lock.read().acquire())


def test_whoever_waits_for_it_meanwhile_is_let_out(reporter: Reporter) -> None:
    clock = ClockRuntime()
    sync = Sync(clock, reporter, hung_seconds=10.0)
    lock = RWLockFair(time_source=lambda: clock.now() / 1e9, sync=sync, name="table")
    in_thread(lambda: lock.write().acquire())  # gone with the lock: nobody will ever release it
    clock.after(5.0, lambda: setattr(lock._broken, "value", "KeyboardInterrupt in somebody"))
    with pytest.raises(BrokenLock):
        lock.read().acquire()


def test_a_timeout_longer_than_the_patience_still_ends(reporter: Reporter) -> None:
    clock = ClockRuntime()
    sync = Sync(clock, reporter, hung_seconds=10.0)
    lock = RWLockFair(time_source=lambda: clock.now() / 1e9, sync=sync, name="table")
    in_thread(lambda: lock.write().acquire())
    assert lock.write().acquire(timeout=25.0) is False
    assert 25.0 <= clock.now() / 1e9 < 27.0
    assert the_report(reporter, "hung-task").count == 2
    assert "has ended" in evidence(reporter.reports[0], " now")


def test_self_deadlock_leaves_the_outer_hold(sync: Sync) -> None:
    lock = RWLockRead(sync=sync, name="table")
    with lock.read():
        with pytest.raises(SelfDeadlock):
            lock.write().acquire()
        assert lock.held_mode() == READ
    with lock.write():
        pass
