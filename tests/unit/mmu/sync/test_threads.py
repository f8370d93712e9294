"""`Lock`, `RLock` and `Condition` on ordinary threads: what `threading` promises, and what lockdep
adds."""

from __future__ import annotations

import dataclasses
import gc
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mmu.errors import BrokenRule, SelfDeadlock
from mmu.report import Reporter
from mmu.sync import (
    Condition,
    Lock,
    RLock,
    Sync,
    collect,
    default_sync,
    on_report,
    reports,
    show_locks,
)
from mmu.sync.default import raise_report, sink_of
from mmu.task import current
from stress.selftest.detectors.clock import ClockRuntime
from tests.command import python
from tests.conftest import codes, eventually, evidence, the_report
from tests.patience import PATIENCE

CYCLE = "circular-dependency"


def in_thread(body: Callable[[], Any], name: str = "other") -> Any:
    """Run `body` in a plain thread, to its end; its result, or its exception."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append((body(), None))
        except BaseException as error:
            box.append((None, error))

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    result, error = box[0]
    if error is not None:
        raise error
    return result


# What `threading` has


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_it_is_acquired_and_released_as_in_threading(
    sync: Sync, reporter: Reporter, kind: type[Lock]
) -> None:
    lock = kind("lock", sync=sync)
    assert lock.acquire() is True
    assert lock.locked()
    assert in_thread(lambda: lock.acquire(False)) is False
    assert in_thread(lambda: lock.acquire(blocking=False)) is False
    assert in_thread(lambda: lock.acquire(True, 0.01)) is False
    assert in_thread(lambda: lock.acquire(timeout=0)) is False
    lock.release()
    assert not lock.locked()
    with lock as granted:
        assert granted is True
        assert lock.held()
        assert not in_thread(lock.held)
    assert not lock.held()
    assert reporter.reports == ()
    assert current.task.held == []


@pytest.mark.parametrize("kind", [Lock, RLock])
def test_an_exception_inside_releases_it(sync: Sync, kind: type[Lock]) -> None:
    lock = kind("lock", sync=sync)
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.locked()


def test_only_one_thread_is_inside(sync: Sync, reporter: Reporter) -> None:
    lock, start, box = Lock("lock", sync=sync), threading.Barrier(4), [0]

    def add() -> None:
        start.wait(PATIENCE)
        for _ in range(500):
            with lock:
                seen = box[0]
                assert lock.owner() is current.task
                box[0] = seen + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert box == [2000]
    assert reporter.reports == ()


def test_an_rlock_is_released_as_often_as_it_was_taken(sync: Sync, reporter: Reporter) -> None:
    lock = RLock("lock", sync=sync)
    with lock, lock:
        lock.acquire()
        lock.release()
        assert not in_thread(lambda: lock.acquire(False))
    assert in_thread(lambda: lock.acquire(False) and (lock.release() or True))
    assert reporter.reports == ()


@pytest.mark.parametrize(
    ("kind", "text"), [(Lock, "release unlocked lock"), (RLock, "cannot release un-acquired lock")]
)
def test_a_release_too_many_is_a_report_and_threadings_error(
    sync: Sync, reporter: Reporter, kind: type[Lock], text: str
) -> None:
    with pytest.raises(RuntimeError, match=text):
        kind("lock", sync=sync).release()
    assert the_report(reporter, "bad-unlock-balance").subject == "lock"


def test_another_threads_rlock_cannot_be_released(sync: Sync, reporter: Reporter) -> None:
    lock = RLock("lock", sync=sync)
    with lock:
        with pytest.raises(RuntimeError):
            in_thread(lock.release)
        assert lock.held()
    the_report(reporter, "released-by-other")


def test_another_threads_lock_is_released_as_in_threading_and_reported(
    sync: Sync, reporter: Reporter
) -> None:
    lock, other = Lock("lock", sync=sync), Lock("other", sync=sync)
    lock.acquire()
    in_thread(lock.release)
    assert evidence(the_report(reporter, "released-by-other"), "taken by").startswith(
        "test_another_threads_lock"
    )
    assert not lock.held()
    # its thread knows that it is gone: no order lock -> other, so this is none the wrong way round
    with other, lock:
        pass
    with other:
        pass
    assert codes(reporter) == ["released-by-other"]
    assert current.task.held == []


# Condition


def test_a_condition_hands_over(sync: Sync, reporter: Reporter) -> None:
    condition, items, taken = Condition(name="room", sync=sync), [], []

    def take() -> None:
        with condition:
            assert condition.wait_for(lambda: items, PATIENCE)
            taken.append(items.pop())

    thread = threading.Thread(target=take)
    thread.start()
    with condition:
        items.append("item")
        condition.notify()
    thread.join(PATIENCE)
    assert taken == ["item"]
    assert reporter.reports == ()


def test_a_wait_gives_back_every_level_of_its_lock(sync: Sync) -> None:
    condition = Condition(sync=sync, name="room")
    with condition, condition:
        assert condition.wait(0) is False
        assert in_thread(lambda: condition.acquire(blocking=False)) is False
    assert in_thread(lambda: condition.acquire(blocking=False) and (condition.release() or True))


def test_a_wait_that_takes_its_lock_back_under_another_is_an_inversion(
    sync: Sync, reporter: Reporter
) -> None:
    condition, other = Condition(Lock("room", sync=sync)), Lock("other", sync=sync)
    with condition, other:
        condition.wait(0)
    assert the_report(reporter, CYCLE).subject == "other / room"


def test_a_wait_under_an_atomic_lock_or_in_an_rcu_section_is_a_report(
    sync: Sync, reporter: Reporter
) -> None:
    condition, ticks = (
        Condition(Lock("room", atomic=True, sync=sync)),
        Lock("ticks", atomic=True, sync=sync),
    )
    with condition:
        condition.wait(0)  # its own lock is given back
    assert reporter.reports == ()
    with ticks, condition:
        condition.wait(0)
    assert "sleep-in-atomic" in codes(reporter)
    with condition, sync.rcu.read():
        condition.wait(0)
    assert "sleep-in-rcu" in codes(reporter)


# Classes


class Account:
    def __init__(self, sync: Sync) -> None:
        self.lock = Lock(sync=sync)


def test_locks_made_at_one_place_are_one_class_with_the_name_of_what_they_are_assigned_to(
    sync: Sync,
) -> None:
    one, two = Account(sync).lock, Account(sync).lock
    assert one.lock_class is two.lock_class
    assert re.fullmatch(r"Account\.lock \(tests/unit/mmu/sync/test_threads\.py:\d+\)", one.name)


def test_two_locks_made_on_one_line_are_two_classes(sync: Sync) -> None:
    a, b = Lock(sync=sync), Lock(sync=sync)
    assert a.lock_class is not b.lock_class


def test_locks_of_a_local_variable_and_of_none_have_names_too(sync: Sync) -> None:
    guard: Lock = Lock(sync=sync)
    assert guard.name.startswith("guard (tests/unit/")
    assert [RLock(sync=sync)][0].name.startswith("RLock (tests/unit/")


def test_the_locks_of_two_dataclasses_are_two_classes(sync: Sync) -> None:
    def make() -> Lock:
        return Lock(sync=sync)

    @dataclasses.dataclass
    class Engine:
        lock: Lock = dataclasses.field(default_factory=lambda: Lock(sync=sync))

    @dataclasses.dataclass
    class Wheel:
        lock: Lock = dataclasses.field(default_factory=lambda: Lock(sync=sync))

    assert Engine().lock.lock_class is not Wheel().lock.lock_class
    assert Engine().lock.lock_class is Engine().lock.lock_class
    assert make().lock_class is make().lock_class


def test_a_default_factory_of_generated_code_is_told_apart_by_its_class() -> None:
    @dataclasses.dataclass
    class Engine:
        lock: Lock = dataclasses.field(default_factory=Lock)

    @dataclasses.dataclass
    class Wheel:
        lock: Lock = dataclasses.field(default_factory=Lock)

    assert Engine().lock.lock_class is Engine().lock.lock_class
    assert Engine().lock.lock_class is not Wheel().lock.lock_class
    assert "Engine" in Engine().lock.name


def test_a_name_makes_a_class_of_its_own(sync: Sync) -> None:
    assert Lock("accounts", sync=sync).lock_class is RLock("accounts", sync=sync).lock_class


def test_two_locks_of_one_class_inside_each_other_need_a_subclass(
    sync: Sync, reporter: Reporter
) -> None:
    parent, child = Lock("node", sync=sync), Lock("node", sync=sync)
    with parent, child.nested(1):
        pass
    with parent:
        child.acquire(subclass=1)
        child.release()
    assert reporter.reports == ()
    with parent, child:
        pass
    the_report(reporter, "recursive-class")


def test_subclasses_have_an_order_too(sync: Sync, reporter: Reporter) -> None:
    parent, child = Lock("node", sync=sync), Lock("node", sync=sync)
    with parent, child.nested(1):
        pass
    with child.nested(1), parent:
        pass
    assert the_report(reporter, CYCLE).subject == "node / node/1"


@pytest.mark.parametrize("subclass", [-1, 8])
def test_there_are_eight_subclasses(sync: Sync, subclass: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 7"):
        Lock("node", sync=sync).acquire(subclass=subclass)


# Order


def test_an_inversion_shows_both_places(sync: Sync, reporter: Reporter) -> None:
    a, b = Lock("a", sync=sync), Lock("b", sync=sync)

    def a_then_b() -> None:
        with a, b:
            pass

    def b_then_a() -> None:
        with b, a:
            pass

    in_thread(a_then_b)
    in_thread(b_then_a)
    report = the_report(reporter, CYCLE)
    assert "b_then_a" in evidence(report, "call trace")
    assert "a_then_b" in evidence(report, "existing dependency: a (write) then b (write)")
    assert "b_then_a" in evidence(report, "locks held by")


def test_a_trylock_comes_after_nothing(sync: Sync, reporter: Reporter) -> None:
    a, b = Lock("a", sync=sync), Lock("b", sync=sync)
    with a, b:
        pass
    with b:
        assert a.acquire(blocking=False)
        a.release()
    assert reporter.reports == ()


def test_but_others_come_after_it(sync: Sync, reporter: Reporter) -> None:
    a, b = Lock("a", sync=sync), Lock("b", sync=sync)
    assert a.acquire(blocking=False)
    with b:
        pass
    a.release()
    with b, a:
        pass
    the_report(reporter, CYCLE)


def test_a_chain_that_was_tried_is_checked_when_it_is_waited_for(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = Lock("a", sync=sync), Lock("b", sync=sync)
    with b, a:
        pass
    with a:
        assert b.acquire(blocking=False)
        b.release()
    assert reporter.reports == ()
    with a, b:
        pass
    the_report(reporter, CYCLE)


def test_a_lock_and_a_mutex_of_one_sync_are_in_one_order(sync: Sync, reporter: Reporter) -> None:
    lock, mutex = Lock("lock", sync=sync), sync.mutex("mutex")
    with lock, mutex:
        pass
    with mutex, lock:
        pass
    the_report(reporter, CYCLE)


# Waits that cannot end


def test_a_thread_that_waits_for_itself_gets_an_exception(sync: Sync, reporter: Reporter) -> None:
    lock = Lock("lock", sync=sync)
    with lock:
        assert lock.acquire(blocking=False) is False
        assert reporter.reports == ()
        with pytest.raises(SelfDeadlock):
            lock.acquire()
        assert lock.acquire(timeout=5) is False  # at once: it could not be granted in time
    assert the_report(reporter, "recursive-lock").count == 2
    assert not lock.locked()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_threads_that_wait_in_a_ring_are_let_out(sync: Sync, reporter: Reporter, size: int) -> None:
    locks = [Lock(f"lock{number}", sync=sync) for number in range(size)]
    everybody, refused, through = threading.Barrier(size), [], []

    def hold_and_wait(number: int) -> None:
        with locks[number]:
            everybody.wait(PATIENCE)
            try:
                with locks[(number + 1) % size]:
                    through.append(number)
            except SelfDeadlock:
                refused.append(number)

    threads = [threading.Thread(target=hold_and_wait, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert refused
    assert len(refused) + len(through) == size
    assert set(codes(reporter)) == {CYCLE, "deadlock"}
    report = next(report for report in reporter.reports if report.code == "deadlock")
    assert len(evidence(report, "waits for").splitlines()) >= 2
    assert "hold_and_wait" in "".join(
        line for part in report.sections if "taken at" in part.title for line in part.lines
    )


def test_a_wait_is_not_a_ring_because_its_holder_waits_elsewhere(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = Lock("a", sync=sync), Lock("b", sync=sync)
    b.acquire()

    def holds_a_waits_for_b() -> None:
        with a, b:
            pass

    def waits_for_a() -> None:
        with a:
            pass

    holder = threading.Thread(target=holds_a_waits_for_b)
    holder.start()
    eventually(lambda: a.owner() is not None and a.owner().blocked_on is b, "the holder to wait")  # type: ignore[union-attr]
    waiter = threading.Thread(target=waits_for_a)
    waiter.start()
    eventually(lambda: "waiting for a" in show_locks(), "the other one to wait")
    b.release()
    for thread in (holder, waiter):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert reporter.reports == ()


def test_a_lock_whose_holder_has_ended_is_reported_with_that(reporter: Reporter) -> None:
    clock = ClockRuntime()
    sync = Sync(clock, reporter, hung_seconds=10.0)
    lock = Lock("lock", sync=sync)
    in_thread(lock.acquire, "gone")
    assert lock.acquire(timeout=20) is False
    assert "has ended" in evidence(the_report(reporter, "hung-task"), " now")


# Threads that nobody registered


def test_a_lock_that_a_plain_thread_takes_with_it_is_reported() -> None:
    lock = Lock("taken along")
    with collect() as found:
        thread = threading.Thread(target=lock.acquire, name="forgetful")
        thread.start()
        thread.join(PATIENCE)
        del thread
        gc.collect()
    assert [report.code for report in found] == ["held-at-exit"]
    assert "forgetful" in found[0].task


def test_what_another_sync_knows_of_is_not_reported_twice(sync: Sync) -> None:
    lock = Lock("elsewhere", sync=sync)
    with collect() as found:
        in_thread(lock.acquire)
    assert found == []


def test_show_locks_lists_what_is_held_and_waited_for(sync: Sync) -> None:
    lock = Lock("shown", sync=sync)
    assert "(shown)" not in show_locks()
    with lock:
        thread = threading.Thread(target=lambda: lock.acquire() and lock.release(), name="waiter")
        thread.start()
        eventually(
            lambda: re.search(r"waiter/\d+, waiting for shown", show_locks()),
            "the other thread to wait",
        )
        assert re.search(
            r"#0: \(shown\)\{write\} sleeping, at: test_show_locks_lists", show_locks()
        )
    thread.join(PATIENCE)


# Handlers


def test_a_report_can_be_raised_where_the_rule_was_broken_and_nothing_is_taken(
    sync: Sync, reporter: Reporter
) -> None:
    reporter.redirect(raise_report)
    a, b = Lock("a", sync=sync), Lock("b", sync=sync)
    with a, b:
        pass
    with pytest.raises(BrokenRule, match="possible circular locking dependency") as raised, b, a:
        pytest.fail("the lock was taken")
    assert raised.value.report.code == CYCLE
    assert not a.locked()
    assert not b.locked()
    assert current.task.held == []
    assert sync.lockdep.chain_of(current.task) is sync.lockdep.root


def test_an_srcu_section_that_is_refused_was_not_entered(sync: Sync, reporter: Reporter) -> None:
    reporter.redirect(raise_report)
    srcu, lock = sync.srcu("srcu"), sync.mutex("lock")
    with srcu.read(), lock:
        pass
    with pytest.raises(BrokenRule), lock:
        srcu.synchronize()
    assert srcu.depth() == 0


def test_handlers_have_names() -> None:
    assert sink_of("raise") is raise_report
    assert sink_of(print) is print
    with pytest.raises(ValueError, match="expected 'print', 'raise' or a function"):
        on_report("shout")  # type: ignore[arg-type]


def test_collect_gives_back_what_was_there(capsys: pytest.CaptureFixture[str]) -> None:
    with collect() as found:
        default_sync().might_sleep("nothing")
        default_sync().rcu.pointer("of the test", 1).dereference()
    assert [report.code for report in found] == ["suspicious-rcu-usage"]
    assert found[0] in reports()
    default_sync().rcu.pointer("of the test, again", 1).dereference()
    assert "suspicious RCU usage" in capsys.readouterr().err


def test_the_callbacks_go_on_after_one_that_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    rcu, ran = default_sync().rcu, threading.Event()

    def broken() -> None:
        raise KeyError("in a callback")

    rcu.call(broken)
    rcu.call(ran.set)
    rcu.barrier()
    assert ran.is_set()
    assert [error.exc_type for error in errors] == [KeyError]


# Without the model


def test_the_library_does_not_load_the_model() -> None:
    code = (
        "import sys, mmu.sync; print(sorted(name for name in sys.modules if "
        "name.startswith(('mmu.', 'stress'))))"
    )
    loaded = python("-c", code).out
    assert "mmu.machine" not in loaded
    assert "mmu.kvm" not in loaded
    assert "mmu.sync.threads" in loaded
