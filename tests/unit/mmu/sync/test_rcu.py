"""RCU: a grace period outlasts every section that was open when it began, and nothing sleeps inside
a section."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest

from mmu.errors import SelfDeadlock
from mmu.probe import Instrument, Probe, override
from mmu.report import Reporter
from mmu.runtime import Cell, Runtime
from mmu.sync import Rcu, Sync
from mmu.sync.rcu import IDLE, EpochDomain
from mmu.task import Task, current
from tests.conftest import (
    MakeSync,
    blocked,
    codes,
    elsewhere,
    eventually,
    evidence,
    finish,
    rcu_section,
    srcu_section,
    the_report,
    together,
)
from tests.patience import PATIENCE


def waits_for_a_grace_period(task: Task) -> bool:
    """Whether `task` is inside a grace period and has met a reader that it must wait for."""
    return task.waiting_for.startswith("rcu grace period")


def callback_task(sync: Sync) -> Task:
    """The task that runs `call_rcu` callbacks."""
    (task,) = [task for task in sync.runtime.tasks() if task.name == "rcu_gp"]
    return task


class NoWait(Rcu):
    """RCU, broken: a grace period that waits for nobody."""

    def wait_for_readers(self) -> None:
        """Return at once."""


# Who keeps whom


def test_a_thread_that_outlives_a_domain_does_not_keep_it(
    runtime: Runtime, reporter: Reporter
) -> None:
    def used() -> weakref.ref[Sync]:
        sync = Sync(runtime, reporter)
        with rcu_section(sync.rcu), srcu_section(sync.srcu("a domain")):
            assert sync.rcu.read_held()
        return weakref.ref(sync)

    domains = [used() for _ in range(100)]
    gc.collect()
    assert [domain() for domain in domains] == [None] * 100
    with rcu_section(Sync(runtime, reporter).rcu):
        assert len(current.task.locals) < 200, "records of domains that are gone are tidied away"


# Sections


def test_sections_nest(sync: Sync, reporter: Reporter) -> None:
    rcu, depths = sync.rcu, []
    with rcu_section(rcu):
        depths.append(rcu.depth())
        with rcu_section(rcu):
            depths.append(rcu.depth())
        depths.append(rcu.depth())
        assert rcu.read_held()
    assert depths == [1, 2, 1]
    assert not rcu.read_held()
    assert reporter.reports == ()


def test_a_section_is_one_threads_own(sync: Sync) -> None:
    with elsewhere(sync.runtime, rcu_section(sync.rcu)):
        assert not sync.rcu.read_held()
        assert [reader.task.name for reader, _, _ in sync.rcu.inside()] == ["elsewhere"]
    assert sync.rcu.inside() == ()


def test_a_caller_may_pass_its_own_record(sync: Sync, reporter: Reporter) -> None:
    record = sync.rcu.local.mine
    sync.rcu.read_lock(record)
    sync.rcu.assert_held("root->spt")
    sync.rcu.read_unlock(record)
    assert not sync.rcu.read_held()
    assert reporter.reports == ()


def test_an_unlock_without_a_lock_is_a_report(sync: Sync, reporter: Reporter) -> None:
    sync.rcu.read_unlock()
    assert (
        the_report(reporter, "unlock-without-lock").subject
        == "test_an_unlock_without_a_lock_is_a_report"
    )
    assert sync.rcu.depth() == 0


def test_an_unlock_without_a_lock_does_not_spoil_later_sections(
    sync: Sync, reporter: Reporter
) -> None:
    with rcu_section(sync.rcu):
        pass
    sync.rcu.read_unlock()
    with rcu_section(sync.rcu):
        assert sync.rcu.depth() == 1
    sync.rcu.synchronize()
    assert codes(reporter) == ["unlock-without-lock"]


def test_a_dereference_outside_a_section_is_a_report(sync: Sync, reporter: Reporter) -> None:
    with rcu_section(sync.rcu):
        sync.rcu.assert_held("root->spt")
    assert reporter.reports == ()
    with sync.mutex("slots_lock"):
        sync.rcu.assert_held("root->spt")
    report = the_report(reporter, "suspicious-rcu-usage")
    assert report.rule == "O3"
    assert report.headline == "WARNING: suspicious RCU usage: root->spt without rcu_read_lock()"


def test_another_threads_section_is_no_license_to_dereference(
    sync: Sync, reporter: Reporter
) -> None:
    with elsewhere(sync.runtime, rcu_section(sync.rcu)):
        sync.rcu.assert_held("root->spt")
    assert codes(reporter) == ["suspicious-rcu-usage"]


# synchronize_rcu


def test_synchronize_returns_at_once_when_nobody_reads(sync: Sync, reporter: Reporter) -> None:
    sync.rcu.synchronize()
    assert reporter.reports == ()


def test_synchronize_waits_for_a_reader_that_was_inside_before(
    sync: Sync, reporter: Reporter
) -> None:
    with elsewhere(sync.runtime, rcu_section(sync.rcu), "old_reader") as reader:
        waiter = blocked(sync.runtime, sync.rcu.synchronize)
        assert waiter.waiting_for == f"rcu grace period, reader {reader}"
    finish(sync.runtime, waiter)
    assert reporter.reports == ()


@pytest.mark.parametrize("domain", ["rcu", "srcu"])
def test_the_wait_ends_with_the_outermost_section_though_the_reader_is_in_its_next(
    make_sync: MakeSync, domain: str
) -> None:
    looks: list[bool] = []
    meet = partial(threading.Barrier(2).wait, PATIENCE)

    class LooksWhenTheReaderSaysSo(Runtime):
        def wait_until(self, what: str, predicate: Callable[[], bool], **options: Any) -> None:
            for _ in range(4):
                meet()
                looks.append(predicate())
                meet()

    sync = make_sync(runtime=LooksWhenTheReaderSaysSo())
    srcu = sync.srcu("kvm->srcu")
    section = partial(rcu_section, sync.rcu) if domain == "rcu" else partial(srcu_section, srcu)
    inside = threading.Event()

    def be_looked_at() -> None:
        meet()
        meet()

    def read() -> None:
        with section():
            inside.set()
            be_looked_at()
            with section():
                be_looked_at()
            be_looked_at()
        with section():
            be_looked_at()

    reader = sync.runtime.spawn("reader", read)
    eventually(inside.is_set, "the reader to enter")
    sync.rcu.synchronize() if domain == "rcu" else srcu.synchronize()
    finish(sync.runtime, reader)
    assert looks == [False, False, False, True]


def test_synchronize_does_not_wait_for_a_reader_that_came_later(
    sync: Sync, reporter: Reporter
) -> None:
    with ExitStack() as until_the_end:
        with elsewhere(sync.runtime, rcu_section(sync.rcu), "old_reader"):
            waiter = blocked(sync.runtime, sync.rcu.synchronize, waits_for_a_grace_period)
            until_the_end.enter_context(
                elsewhere(sync.runtime, rcu_section(sync.rcu), "new_reader")
            )
        finish(sync.runtime, waiter)
        assert [reader.task.name for reader, _, _ in sync.rcu.inside()] == ["new_reader"]
    assert reporter.reports == ()


def synchronize_inside_a_section(make_sync: MakeSync) -> list[str]:
    """What a synchronize waits for that it can never get. The waits of this runtime end when the
    test knows enough."""
    hopeless: list[str] = []

    class Hung(Exception):
        pass

    class Impatient(Runtime):
        def wait_until(self, what: str, predicate: Callable[[], bool], **options: Any) -> None:
            if not predicate():
                hopeless.append(what)
                raise Hung

    rcu = make_sync(runtime=Impatient()).rcu
    with suppress(Hung, SelfDeadlock), rcu_section(rcu):
        rcu.synchronize()
    return hopeless


def test_synchronize_inside_a_section_is_a_report(make_sync: MakeSync, reporter: Reporter) -> None:
    synchronize_inside_a_section(make_sync)
    report = the_report(reporter, "sleep-in-rcu")
    assert report.rule == "O3"
    assert "synchronize_rcu" in report.headline


def test_synchronize_inside_a_section_does_not_wait_for_itself(make_sync: MakeSync) -> None:
    assert not synchronize_inside_a_section(make_sync), "it would wait for its own section for ever"


@pytest.mark.parametrize(
    "waits", [Rcu.synchronize, Rcu.barrier], ids=["synchronize_rcu", "rcu_barrier"]
)
def test_a_grace_period_under_a_spinning_lock_is_a_report(
    sync: Sync, reporter: Reporter, waits: Callable[[Rcu], None]
) -> None:
    with sync.spinlock("pages_lock"):
        waits(sync.rcu)
    assert the_report(reporter, "sleep-in-atomic").rule == "O5"


def test_barrier_inside_a_section_is_a_report(sync: Sync, reporter: Reporter) -> None:
    with rcu_section(sync.rcu):
        sync.rcu.barrier()
    assert "rcu_barrier" in the_report(reporter, "sleep-in-rcu").headline


def test_busy_readers_and_grace_periods_make_no_report(sync: Sync, reporter: Reporter) -> None:
    rcu, stop = sync.rcu, threading.Event()

    def read() -> None:
        while not stop.is_set():
            with rcu_section(rcu), rcu_section(rcu):
                pass

    readers = [sync.runtime.spawn("reader", read) for _ in range(2)]
    for _ in range(50):
        rcu.call(lambda: None)
        rcu.synchronize()
    stop.set()
    finish(sync.runtime, *readers)
    assert reporter.reports == ()


# call_rcu


def test_a_callback_runs_after_the_reader_leaves_and_never_before(
    sync: Sync, reporter: Reporter
) -> None:
    ran = threading.Event()
    with elsewhere(sync.runtime, rcu_section(sync.rcu)):
        sync.rcu.call(ran.set)
        eventually(
            lambda: waits_for_a_grace_period(callback_task(sync)),
            "the callback task to meet the reader",
        )
        assert not ran.is_set()
    sync.rcu.barrier()
    assert ran.is_set()
    assert reporter.reports == ()


def test_a_reader_may_queue_a_callback_and_it_waits_for_that_reader(
    sync: Sync, reporter: Reporter
) -> None:
    ran = threading.Event()
    with rcu_section(sync.rcu):
        sync.rcu.call(ran.set)
        eventually(
            lambda: waits_for_a_grace_period(callback_task(sync)),
            "the callback task to meet the reader",
        )
        assert not ran.is_set()
    sync.rcu.barrier()
    assert ran.is_set()
    assert reporter.reports == ()


def test_a_callback_may_be_queued_under_a_spinning_lock(sync: Sync, reporter: Reporter) -> None:
    with sync.spinlock("pages_lock"):
        sync.rcu.call(lambda: None)
    sync.rcu.barrier()
    assert reporter.reports == ()


def test_barrier_returns_after_every_callback_that_was_queued_before(sync: Sync) -> None:
    ran: list[int] = []

    def queue_some() -> None:
        for number in range(20):
            sync.rcu.call(lambda number=number: ran.append(number))  # type: ignore[misc]

    together(sync.runtime, queue_some, queue_some)
    sync.rcu.barrier()
    assert sorted(ran) == sorted([*range(20), *range(20)])


def test_callbacks_of_one_thread_run_in_the_order_they_were_queued(sync: Sync) -> None:
    ran: list[int] = []
    for number in range(10):
        sync.rcu.call(lambda number=number: ran.append(number))  # type: ignore[misc]
    sync.rcu.barrier()
    assert ran == list(range(10))


def test_pending_counts_the_callbacks_that_have_not_run(sync: Sync) -> None:
    assert sync.rcu.pending() == 0
    with elsewhere(sync.runtime, rcu_section(sync.rcu)):
        sync.rcu.call(lambda: None)
        sync.rcu.call(lambda: None)
        assert sync.rcu.pending() == 2
    sync.rcu.barrier()
    assert sync.rcu.pending() == 0


def test_in_callback_is_true_inside_a_callback_only(sync: Sync) -> None:
    seen: list[bool] = []
    sync.rcu.call(lambda: seen.append(sync.rcu.in_callback()))
    sync.rcu.barrier()
    seen.append(sync.rcu.in_callback())
    assert seen == [True, False]


def test_in_callback_is_false_elsewhere_while_a_callback_runs(sync: Sync) -> None:
    running, seen = threading.Barrier(2), threading.Barrier(2)

    def callback() -> None:
        running.wait(PATIENCE)
        seen.wait(PATIENCE)

    sync.rcu.call(callback)
    running.wait(PATIENCE)
    in_callback = sync.rcu.in_callback()
    seen.wait(PATIENCE)
    sync.rcu.barrier()
    assert not in_callback


def test_callbacks_that_are_queued_when_the_domain_shuts_down_still_run(sync: Sync) -> None:
    ran: list[str] = []
    with elsewhere(sync.runtime, rcu_section(sync.rcu)):
        sync.rcu.call(lambda: ran.append("in hand"))
        eventually(
            lambda: waits_for_a_grace_period(callback_task(sync)),
            "the callback task to take the first in hand",
        )
        sync.rcu.call(lambda: ran.append("in the queue"))
        sync.rcu.shutdown()
    finish(sync.runtime, callback_task(sync))
    assert ran == ["in hand", "in the queue"]


def test_the_probe_hears_of_each_grace_period_that_ran_callbacks(make_sync: MakeSync) -> None:
    heard: list[tuple[int, bool]] = []

    class Observer(Instrument):
        @override
        def grace_period(self, ns: int, callbacks: int) -> None:
            heard.append((callbacks, sync.rcu.in_callback()))

    probe = Probe()
    probe.attach(Observer())
    sync = make_sync(probe=probe)
    with elsewhere(sync.runtime, rcu_section(sync.rcu)):
        for _ in range(5):
            sync.rcu.call(lambda: None)
    sync.rcu.barrier()
    eventually(
        lambda: sum(callbacks for callbacks, _ in heard) == 5, "the probe to hear of all callbacks"
    )
    assert sync.rcu.grace_periods.value == len(heard)
    assert not any(in_callback for _, in_callback in heard), (
        "the probe is told when the callbacks are over"
    )


# Stalls


def test_a_reader_that_stays_too_long_is_named_with_its_stack(
    make_sync: MakeSync, reporter: Reporter
) -> None:
    sync = make_sync(stall_seconds=0.3)
    inside, leave = threading.Event(), threading.Event()

    def overstay() -> None:
        with rcu_section(sync.rcu):
            inside.set()
            assert leave.wait(PATIENCE)

    reader = sync.runtime.spawn("slow_reader", overstay)
    eventually(inside.is_set, "the reader to enter")
    waiter = blocked(sync.runtime, sync.rcu.synchronize)
    eventually(lambda: reporter.reports, "a stall warning")
    leave.set()
    finish(sync.runtime, waiter, reader)
    report = the_report(reporter, "rcu-stall")
    assert (report.rule, report.subject, report.task) == ("O10", str(reader), str(waiter))
    assert report.headline.startswith(f"INFO: rcu detected a stall: {reader} ")
    assert "overstay (tests/unit/mmu/sync/test_rcu.py:" in evidence(
        report, f"stack of reader {reader}"
    )


# The check of the grace period itself


def test_a_synchronize_that_does_not_wait_is_caught(
    make_sync: MakeSync, reporter: Reporter
) -> None:
    sync = make_sync(rcu_class=NoWait)
    with elsewhere(sync.runtime, rcu_section(sync.rcu), "old_reader") as reader:
        sync.rcu.synchronize()
    report = the_report(reporter, "grace-period-too-short")
    assert report.rule == "O3"
    assert (
        "synchronize_rcu must wait for every reader that was inside when it was asked for; "
        f"{reader} still is" in report.sentence
    )
    assert "stay_inside (tests/conftest.py:" in evidence(report, f"stack of reader {reader}")


def test_a_call_rcu_that_does_not_wait_is_caught(make_sync: MakeSync, reporter: Reporter) -> None:
    sync = make_sync(rcu_class=NoWait)
    with elsewhere(sync.runtime, rcu_section(sync.rcu)):
        sync.rcu.call(lambda: None)
        sync.rcu.barrier()
    assert the_report(reporter, "grace-period-too-short").sentence.startswith("call_rcu must wait")


def test_a_reader_that_only_nests_its_section_is_still_inside(
    sync: Sync, reporter: Reporter
) -> None:
    srcu = sync.srcu("kvm->srcu")
    with rcu_section(sync.rcu), srcu_section(srcu):
        before = sync.rcu.inside(), srcu.inside()
        with rcu_section(sync.rcu), srcu_section(srcu):
            assert (sync.rcu.inside(), srcu.inside()) == before
    assert reporter.reports == ()


def test_a_broken_grace_period_is_no_report_when_the_reader_had_left(
    make_sync: MakeSync, reporter: Reporter
) -> None:
    sync = make_sync(rcu_class=NoWait)
    with elsewhere(sync.runtime, rcu_section(sync.rcu)):
        snapshot = sync.rcu.inside()
    with rcu_section(sync.rcu):
        sync.rcu.check_outlasted(snapshot, "synchronize_rcu")
    assert reporter.reports == ()


class Between:
    """A reader caught between two sections: the first look meets it in one state, every later look
    in the next.

    On a free-threaded build a reader moves on between any two loads of its observer.
    """

    def __init__(self, *states: tuple[int, int]) -> None:
        self._states = iter(states)
        self._state = next(self._states)
        self.task = Task("reader")

    def _look(self) -> tuple[int, int]:
        seen, self._state = self._state, next(self._states, self._state)
        return seen

    @property
    def sections(self) -> int:
        return self._look()[0]

    @property
    def epoch(self) -> Cell[int]:
        return Cell("epoch", self._look()[1])


def test_a_reader_that_enters_its_next_section_during_the_check_is_no_report(
    sync: Sync, reporter: Reporter
) -> None:
    left_first, entered_second = (1, IDLE), (2, 7)
    reader: Any = Between(left_first, entered_second)
    sync.rcu.check_outlasted(((reader, 1, 7),), "synchronize_rcu")
    assert reporter.reports == ()


def test_a_section_that_is_not_announced_yet_is_not_inside(sync: Sync) -> None:
    in_first, entering_second = (1, 7), (2, IDLE)
    reader: Any = Between(in_first, entering_second)
    domain: EpochDomain = sync.rcu
    domain.enlist(reader)
    assert 2 not in {number for _, number, _ in domain.inside()}
