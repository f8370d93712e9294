"""lockdep finds wrong orders, modes and contexts the first time they are seen, without any deadlock
having to happen."""

from __future__ import annotations

import re
import threading
from contextlib import AbstractContextManager

import pytest

from mmu.report import Reporter
from mmu.sync import Mutex, Sync
from mmu.sync.lockdep import WRITE, describe_held, holds_class
from mmu.task import current
from tests.conftest import (
    blocked,
    codes,
    elsewhere,
    evidence,
    finish,
    reading,
    srcu_section,
    the_report,
    together,
    writing,
)
from tests.patience import PATIENCE

CYCLE = "circular-dependency"


def nest(*sections: AbstractContextManager[object]) -> None:
    """Enter `sections` one inside the other, then leave them all."""
    if sections:
        with sections[0]:
            nest(*sections[1:])


# Order


def test_one_order_seen_many_times_is_no_report(sync: Sync, reporter: Reporter) -> None:
    a, b, c = sync.mutex("a"), sync.mutex("b"), sync.mutex("c")
    for _ in range(3):
        nest(a, b, c)
        nest(a, c)
        nest(b, c)
    assert reporter.reports == ()


def test_an_inversion_is_reported_when_its_second_order_is_first_seen_on_one_thread(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")
    nest(a, b)
    assert reporter.reports == ()
    nest(b, a)
    report = the_report(reporter, CYCLE)
    assert (report.rule, report.subject, report.count) == ("O5", "a / b", 1)


def test_an_inversion_report_shows_the_stacks_of_both_orders(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")

    def a_then_b() -> None:
        with a, b:
            pass

    def b_then_a() -> None:
        with b, a:
            pass

    a_then_b()
    b_then_a()
    report = the_report(reporter, CYCLE)
    here = r" \(tests/unit/mmu/sync/test_lockdep\.py:\d+\)"
    assert re.search(r"\bb_then_a" + here, evidence(report, "call trace"))
    assert re.search(
        r"\ba_then_b" + here, evidence(report, "#1 existing dependency: a (write) then b (write)")
    )


def test_an_inversion_across_threads_names_both_though_they_never_met(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")
    first = sync.runtime.spawn("first", lambda: nest(a, b))
    finish(sync.runtime, first)
    second = sync.runtime.spawn("second", lambda: nest(b, a))
    finish(sync.runtime, second)
    report = the_report(reporter, CYCLE)
    assert report.task == str(second)
    assert evidence(report, f"first seen in {first}")


def test_an_inversion_report_draws_the_deadlock_that_is_possible(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")
    nest(a, b)
    nest(b, a)
    scenario = evidence(
        the_report(reporter, CYCLE), "possible unsafe locking scenario"
    ).splitlines()
    steps = [("CPU1" if line.startswith(" ") else "CPU0", line.strip()) for line in scenario[2:-1]]
    assert steps == [
        ("CPU0", "lock(b);"),
        ("CPU1", "lock(a);"),
        ("CPU1", "lock(b);"),
        ("CPU0", "lock(a);"),
    ]
    assert scenario[-1] == "*** DEADLOCK ***"


def test_an_inversion_report_lists_the_locks_held_and_where_they_were_taken(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")
    nest(a, b)
    nest(b, a)
    held = evidence(the_report(reporter, CYCLE), "locks held by")
    assert re.fullmatch(
        r"#0: \(b\)\{write\} sleeping, at: nest \(tests/unit/mmu/sync/test_lockdep\.py:\d+\)", held
    )


def test_three_orders_that_close_a_ring_are_a_cycle(sync: Sync, reporter: Reporter) -> None:
    a, b, c = sync.mutex("a"), sync.mutex("b"), sync.mutex("c")
    nest(a, b)
    nest(b, c)
    assert reporter.reports == ()
    nest(c, a)
    report = the_report(reporter, CYCLE)
    assert evidence(report, "#1 existing dependency: a (write) then b (write)")
    assert evidence(report, "#2 existing dependency: b (write) then c (write)")


def test_a_cycle_is_found_through_a_lock_that_is_not_innermost(
    sync: Sync, reporter: Reporter
) -> None:
    outer, middle, inner = sync.mutex("outer"), sync.mutex("middle"), sync.mutex("inner")
    nest(outer, middle, inner)
    nest(inner, outer)
    assert the_report(reporter, CYCLE).subject == "inner / outer"


def test_locks_with_one_name_share_their_order(sync: Sync, reporter: Reporter) -> None:
    outer = sync.mutex("vcpu->mutex")
    nest(outer, sync.mutex("page_lock"))
    nest(sync.mutex("page_lock"), outer)
    assert the_report(reporter, CYCLE).subject == "page_lock / vcpu->mutex"


def test_two_locks_of_one_class_inside_each_other_are_a_report(
    sync: Sync, reporter: Reporter
) -> None:
    nest(sync.mutex("page_lock"), sync.mutex("page_lock"))
    assert the_report(reporter, "recursive-class").subject == "page_lock"


def test_the_same_inversion_again_is_not_reported_again(sync: Sync, reporter: Reporter) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")
    nest(a, b)
    for _ in range(3):
        nest(b, a)
    assert the_report(reporter, CYCLE).count == 1


# Modes


def test_two_threads_may_both_read(sync: Sync, reporter: Reporter) -> None:
    lock, both_inside = sync.rwlock("mmu_lock"), threading.Barrier(2)

    def read() -> None:
        with reading(lock):
            both_inside.wait(PATIENCE)

    together(sync.runtime, read, read)
    assert reporter.reports == ()


@pytest.mark.parametrize("preference", ["fair", "writer"])
def test_inverted_reads_are_a_cycle_where_a_waiting_writer_blocks_readers(
    sync: Sync, reporter: Reporter, preference: str
) -> None:
    a, b = sync.rwlock("a", preference), sync.rwlock("b", preference)
    nest(reading(a), reading(b))
    nest(reading(b), reading(a))
    assert evidence(the_report(reporter, CYCLE), "a (read) then b (read)")


def test_inverted_reads_are_no_cycle_on_reader_preferring_locks(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = sync.rwlock("a", "reader"), sync.rwlock("b", "reader")
    nest(reading(a), reading(b))
    nest(reading(b), reading(a))
    assert reporter.reports == ()


@pytest.mark.parametrize("preference", ["fair", "writer", "reader"])
def test_a_write_inside_and_a_read_outside_are_a_cycle_for_every_preference(
    sync: Sync, reporter: Reporter, preference: str
) -> None:
    lock, pages = sync.rwlock("mmu_lock", preference), sync.spinlock("pages_lock")
    nest(reading(lock), pages)
    nest(pages, writing(lock))
    assert evidence(the_report(reporter, CYCLE), "mmu_lock (read) then pages_lock (write)")


@pytest.mark.parametrize(
    ("preference", "reported"), [("fair", [CYCLE]), ("writer", [CYCLE]), ("reader", [])]
)
def test_a_read_on_both_sides_of_a_spinlock_is_a_cycle_unless_reads_are_recursive(
    sync: Sync, reporter: Reporter, preference: str, reported: list[str]
) -> None:
    lock, pages = sync.rwlock("mmu_lock", preference), sync.spinlock("pages_lock")
    nest(reading(lock), pages)
    nest(pages, reading(lock))
    assert codes(reporter) == reported


def test_the_lock_order_graph_tells_the_modes_apart(sync: Sync) -> None:
    lock, pages = sync.rwlock("mmu_lock"), sync.spinlock("pages_lock")
    nest(reading(lock), pages)
    nest(writing(lock), pages)
    assert sync.lockdep.orders() == [
        ("mmu_lock", "read", "pages_lock", "write"),
        ("mmu_lock", "write", "pages_lock", "write"),
    ]


# Orders that are documented


def documented(sync: Sync, outer: Mutex, inner: Mutex) -> None:
    sync.lockdep.document(outer.lock_class, WRITE, inner.lock_class, WRITE, "the book")


def test_one_wrong_order_is_enough_when_the_right_one_is_documented(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")
    documented(sync, a, b)
    nest(a, b)
    assert reporter.reports == ()
    nest(b, a)
    assert the_report(reporter, CYCLE).subject == "a / b"


def test_a_report_says_that_an_order_is_documented_and_not_seen(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")
    documented(sync, a, b)
    nest(b, a)
    report = the_report(reporter, CYCLE)
    assert report.sentence.endswith(
        "takes a while it holds b, and the opposite order is documented"
    )
    assert (
        evidence(report, "documented dependency: a (write) then b (write)")
        == "the book\nnobody was seen to do so until now"
    )
    assert not any("existing dependency" in part.title for part in report.sections)


def test_an_order_that_is_documented_and_seen_is_reported_as_seen_with_its_stack(
    sync: Sync, reporter: Reporter
) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")
    documented(sync, a, b)
    assert sync.lockdep.orders() == []

    def a_then_b() -> None:
        with a, b:
            pass

    a_then_b()
    assert sync.lockdep.orders() == [("a", "write", "b", "write")]
    nest(b, a)
    report = the_report(reporter, CYCLE)
    assert report.sentence.endswith("and the opposite order was seen before")
    assert "a_then_b" in evidence(report, "existing dependency: a (write) then b (write)")


def test_a_ring_of_documented_and_seen_orders_tells_them_apart(
    sync: Sync, reporter: Reporter
) -> None:
    a, b, c = sync.mutex("a"), sync.mutex("b"), sync.mutex("c")
    documented(sync, a, b)
    nest(b, c)
    nest(c, a)
    report = the_report(reporter, CYCLE)
    assert report.sentence.endswith(
        "and the opposite order was seen in part, and in part is documented"
    )
    titles = [part.title.split(": ")[0] for part in report.sections if "dependency" in part.title]
    assert titles == ["-> #2 existing dependency", "-> #1 documented dependency"]


def test_documents_that_contradict_each_other_or_what_was_seen_are_refused(
    sync: Sync, reporter: Reporter
) -> None:
    a, b, c = sync.mutex("a"), sync.mutex("b"), sync.mutex("c")
    documented(sync, a, b)
    nest(b, c)
    with pytest.raises(
        ValueError, match=r"the book says c \(write\) then a \(write\), but a \(write\) then b"
    ):
        documented(sync, c, a)
    nest(a, c)
    assert reporter.reports == (), "what was refused is forgotten"


# SRCU in the order graph


def test_srcu_sections_inside_and_outside_a_mutex_are_no_cycle_while_nobody_synchronizes(
    sync: Sync, reporter: Reporter
) -> None:
    srcu, lock = sync.srcu("kvm->srcu"), sync.mutex("kvm->lock")
    nest(srcu_section(srcu), lock)
    nest(lock, srcu_section(srcu))
    nest(srcu_section(srcu), lock, srcu_section(srcu))
    assert reporter.reports == ()


def synchronize_under(lock: Mutex, sync: Sync) -> None:
    with lock:
        sync.srcu("kvm->srcu").synchronize()


def test_a_mutex_inside_srcu_and_a_synchronize_under_it_are_a_cycle(
    sync: Sync, reporter: Reporter
) -> None:
    slots_lock = sync.mutex("slots_lock")
    nest(srcu_section(sync.srcu("kvm->srcu")), slots_lock)
    assert reporter.reports == ()
    synchronize_under(slots_lock, sync)
    assert the_report(reporter, CYCLE).subject == "kvm->srcu / slots_lock"


def test_the_srcu_cycle_is_found_in_the_other_order_too(sync: Sync, reporter: Reporter) -> None:
    slots_lock = sync.mutex("slots_lock")
    synchronize_under(slots_lock, sync)
    assert reporter.reports == ()
    nest(srcu_section(sync.srcu("kvm->srcu")), slots_lock)
    assert evidence(the_report(reporter, CYCLE), "slots_lock (write) then kvm->srcu (write)")


def test_a_mutex_released_before_the_synchronize_is_no_cycle(
    sync: Sync, reporter: Reporter
) -> None:
    srcu, slots_arch_lock = sync.srcu("kvm->srcu"), sync.mutex("slots_arch_lock")
    nest(srcu_section(srcu), slots_arch_lock)
    nest(slots_arch_lock)
    srcu.synchronize()
    assert reporter.reports == ()


# Unlock order


def test_locks_may_be_released_in_any_order(sync: Sync, reporter: Reporter) -> None:
    a, b, c = sync.mutex("a"), sync.mutex("b"), sync.mutex("c")
    for lock in (a, b, c):
        lock.acquire()
    for lock in (a, c, b):
        lock.release()
    assert reporter.reports == ()
    assert sync.lockdep.chain_of(current.task) is sync.lockdep.root
    assert current.task.held == []


def test_a_lock_released_out_of_order_is_outer_to_nothing_more(
    sync: Sync, reporter: Reporter
) -> None:
    first, second, third = sync.mutex("first"), sync.mutex("second"), sync.mutex("third")
    first.acquire()
    second.acquire()
    first.release()
    nest(third)
    second.release()
    assert [(outer, inner) for outer, _, inner, _ in sync.lockdep.orders()] == [
        ("first", "second"),
        ("second", "third"),
    ]
    nest(third, first)
    assert codes(reporter) == [CYCLE]


def test_the_atomic_context_lasts_until_the_last_spinning_lock_is_released(
    sync: Sync, reporter: Reporter
) -> None:
    slots_lock, mmu_lock, pages_lock = (
        sync.mutex("slots_lock"),
        sync.rwlock("mmu_lock"),
        sync.spinlock("pages_lock"),
    )
    slots_lock.acquire()
    mmu_lock.read_lock()
    pages_lock.acquire()
    mmu_lock.read_unlock()
    sync.might_sleep("too early")
    pages_lock.release()
    sync.might_sleep("in time")
    slots_lock.release()
    assert the_report(reporter, "sleep-in-atomic").subject == "too early in pages_lock"


# The chain cache


def count_slow_paths(sync: Sync, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class name of every acquisition that is checked in full from now on."""
    checked: list[str] = []
    extend = sync.lockdep.extend

    def counting(task, lock_class, mode):  # type: ignore[no-untyped-def]
        checked.append(lock_class.name)
        return extend(task, lock_class, mode)

    monkeypatch.setattr(sync.lockdep, "extend", counting)
    return checked


def test_an_acquisition_sequence_is_checked_in_full_only_the_first_time(
    sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = count_slow_paths(sync, monkeypatch)
    srcu, slots_lock, mmu_lock, pages_lock = (
        sync.srcu("srcu"),
        sync.mutex("slots"),
        sync.rwlock("mmu"),
        sync.spinlock("pages"),
    )
    for _ in range(3):
        nest(srcu_section(srcu), slots_lock, reading(mmu_lock), pages_lock)
    assert checked == ["srcu", "slots", "mmu", "pages"]


def test_another_thread_profits_from_a_sequence_that_was_checked(
    sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots_lock, mmu_lock = sync.mutex("slots"), sync.rwlock("mmu")
    nest(slots_lock, writing(mmu_lock))
    checked = count_slow_paths(sync, monkeypatch)
    together(sync.runtime, lambda: nest(slots_lock, writing(mmu_lock)))
    assert checked == []


def test_another_mode_or_another_position_is_checked_anew(
    sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots_lock, mmu_lock = sync.mutex("slots"), sync.rwlock("mmu")
    nest(slots_lock, writing(mmu_lock))
    checked = count_slow_paths(sync, monkeypatch)
    nest(slots_lock, reading(mmu_lock))
    nest(writing(mmu_lock))
    assert checked == ["mmu", "mmu"]


def test_a_synchronize_that_was_checked_before_takes_no_slow_path(
    sync: Sync, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = count_slow_paths(sync, monkeypatch)
    slots_lock = sync.mutex("slots_lock")
    for _ in range(3):
        synchronize_under(slots_lock, sync)
    assert checked == ["slots_lock", "kvm->srcu"]


# What a task holds


def test_a_task_that_waits_for_a_lock_does_not_hold_it(sync: Sync) -> None:
    slots_lock, mmu_lock = sync.mutex("slots_lock"), sync.rwlock("mmu_lock")
    with elsewhere(sync.runtime, reading(mmu_lock)) as reader:
        writer = blocked(sync.runtime, lambda: nest(slots_lock, writing(mmu_lock)))
        assert [holds_class(task, "mmu_lock") for task in (reader, writer)] == [True, False]
        assert [line.split(" sleeping")[0] for line in describe_held(writer)] == [
            "#0: (slots_lock){write}"
        ]
    finish(sync.runtime, writer)
    assert describe_held(writer) == ["no locks held"]


def test_a_lock_whose_wait_is_not_on_record_is_left_out_by_name(sync: Sync) -> None:
    mmu_lock = sync.rwlock("mmu_lock")
    with elsewhere(sync.runtime, reading(mmu_lock)) as reader:
        assert holds_class(reader, "mmu_lock")
        assert not holds_class(reader, "mmu_lock", pending="mmu_lock")


# Reports


def test_a_report_reads_like_a_kernel_splat(sync: Sync, reporter: Reporter) -> None:
    a, b = sync.mutex("a"), sync.mutex("b")
    nest(a, b)
    nest(b, a)
    report = the_report(reporter, CYCLE)
    lines = report.render().splitlines()
    bar = "=" * (len(report.headline) + 9)
    assert lines[:3] == [
        bar,
        "WARNING: possible circular locking dependency detected",
        "-" * len(bar),
    ]
    assert lines[3].startswith("rule O5 (circular-dependency): ")
    assert lines[4].startswith("  ")
    assert lines[5].startswith("source: Documentation/locking/lockdep-design")
    assert lines[6] == f"task: {report.task}"
    assert max(map(len, lines)) <= 100
    titles = [line for line in lines[7:-1] if line and not line.startswith(" ")]
    assert [title.split(":")[0] for title in titles[:3]] == [
        "call trace",
        "-> #1 existing dependency",
        "possible unsafe locking scenario",
    ]
    assert titles[3] == f"locks held by {report.task}:"
    assert lines[-1] == bar


def test_the_call_trace_starts_at_the_caller_and_not_in_the_checks(
    sync: Sync, reporter: Reporter
) -> None:
    sync.mutex("slots_lock").assert_held()
    first = evidence(the_report(reporter, "assert-held"), "call trace").splitlines()[0]
    assert first.startswith(
        "test_the_call_trace_starts_at_the_caller_and_not_in_the_checks "
        "(tests/unit/mmu/sync/test_lockdep.py:"
    )


def test_equal_reports_are_counted_and_shown_once(sync: Sync, reporter: Reporter) -> None:
    slots_lock = sync.mutex("slots_lock")
    for _ in range(3):
        slots_lock.release()
    report = the_report(reporter, "bad-unlock-balance")
    assert report.count == 3
    assert "seen 3 times" in report.render()


def test_equal_reports_of_many_threads_reach_the_sink_once_and_are_all_counted() -> None:
    shown: list[str] = []
    reporter = Reporter(sink=lambda report: shown.append(report.code))
    sync = Sync(reporter=reporter)
    slots_lock, start = sync.mutex("slots_lock"), threading.Barrier(4)

    def release_unheld() -> None:
        start.wait(PATIENCE)
        for _ in range(50):
            slots_lock.release()

    together(sync.runtime, *[release_unheld] * 4)
    assert shown == ["bad-unlock-balance"]
    assert the_report(reporter, "bad-unlock-balance").count == 200
