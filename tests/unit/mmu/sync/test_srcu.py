"""SRCU: readers may sleep, tokens belong to their section, and nobody waits for a grace period
inside its own section."""

from __future__ import annotations

import threading

import pytest

from mmu.report import Reporter
from mmu.sync import Srcu, Sync
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
    srcu_section,
    the_report,
    together,
)
from tests.patience import PATIENCE


@pytest.fixture
def srcu(sync: Sync) -> Srcu:
    """The domain that guards the memslots."""
    return sync.srcu("kvm->srcu")


class NoWait(Srcu):
    """SRCU, broken: a grace period that waits for nobody."""

    def wait_for_readers(self) -> None:
        """Return at once."""


# Sections


def test_a_reader_may_sleep_and_take_mutexes(sync: Sync, reporter: Reporter, srcu: Srcu) -> None:
    with srcu_section(srcu), sync.mutex("kvm->lock"):
        sync.might_sleep("copying from the user")
    assert reporter.reports == ()


def test_sections_nest(reporter: Reporter, srcu: Srcu) -> None:
    with srcu_section(srcu):
        with srcu_section(srcu):
            assert srcu.depth() == 2
        assert srcu.read_held()
    assert not srcu.read_held()
    assert reporter.reports == ()


def test_nested_sections_may_be_left_in_any_order(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    outer = srcu.read_lock()
    inner = srcu.read_lock()
    srcu.read_unlock(outer)
    assert srcu.inside()
    srcu.read_unlock(inner)
    assert srcu.inside() == ()
    srcu.synchronize()
    assert reporter.reports == ()


def test_a_section_inside_a_spinning_lock_is_no_report(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    with reading(sync.rwlock("mmu_lock")), srcu_section(srcu):
        pass
    assert reporter.reports == ()


def test_a_section_inside_an_rcu_section_is_no_report(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    with rcu_section(sync.rcu), srcu_section(srcu):
        pass
    assert reporter.reports == ()


def test_a_token_opens_its_section_once_only(reporter: Reporter, srcu: Srcu) -> None:
    token = srcu.read_lock()
    srcu.read_unlock(token)
    srcu.read_unlock(token)
    assert codes(reporter) == ["unlock-without-lock"]
    assert srcu.depth() == 0


def test_a_used_token_does_not_close_another_section(reporter: Reporter, srcu: Srcu) -> None:
    used = srcu.read_lock()
    srcu.read_unlock(used)
    with srcu_section(srcu):
        srcu.read_unlock(used)
        assert srcu.depth() == 1
    assert codes(reporter) == ["unlock-without-lock"]


def test_another_threads_token_closes_no_section(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    tokens, leave = [], threading.Event()

    def read() -> None:
        tokens.append(srcu.read_lock())
        assert leave.wait(PATIENCE)
        srcu.read_unlock(tokens[0])

    reader = sync.runtime.spawn("reader", read)
    eventually(lambda: tokens, "the reader to enter")
    with srcu_section(srcu):
        srcu.read_unlock(tokens[0])
        leave.set()
        finish(sync.runtime, reader)
        assert srcu.depth() == 1
    assert srcu.inside() == ()
    assert the_report(reporter, "unlock-without-lock").count == 1


def test_a_token_of_another_domain_closes_no_section(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    other = sync.srcu("kvm->irq_srcu")
    with srcu_section(srcu):
        token = other.read_lock()
        srcu.read_unlock(token)
        assert (srcu.depth(), other.depth()) == (1, 1)
        other.read_unlock(token)
    assert codes(reporter) == ["unlock-without-lock"]


def test_a_section_open_at_thread_exit_is_a_report(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    def forget() -> None:
        srcu.read_lock()

    together(sync.runtime, forget)
    assert the_report(reporter, "held-at-exit").subject == "kvm->srcu"


# synchronize_srcu


def test_synchronize_waits_for_a_reader_that_was_inside_before(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    with elsewhere(sync.runtime, srcu_section(srcu)) as reader:
        waiter = blocked(sync.runtime, srcu.synchronize)
        assert waiter.waiting_for == f"kvm->srcu grace period, reader {reader}"
    finish(sync.runtime, waiter)
    assert reporter.reports == ()


def test_synchronize_waits_for_a_reader_that_sleeps_in_a_mutex(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    lock = sync.mutex("kvm->lock")

    def read() -> None:
        with srcu_section(srcu), lock:
            pass

    with elsewhere(sync.runtime, lock):
        reader = blocked(sync.runtime, read, at=lambda task: task.waiting_for == "kvm->lock")
        waiter = blocked(sync.runtime, srcu.synchronize)
    finish(sync.runtime, reader, waiter)
    assert reporter.reports == ()


def test_synchronize_does_not_wait_for_readers_of_another_domain(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    with (
        elsewhere(sync.runtime, srcu_section(sync.srcu("kvm->irq_srcu"))),
        elsewhere(sync.runtime, rcu_section(sync.rcu)),
    ):
        srcu.synchronize()
    assert reporter.reports == ()


def test_synchronize_inside_another_domains_section_is_no_report(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    with srcu_section(sync.srcu("kvm->irq_srcu")):
        srcu.synchronize()
    assert reporter.reports == ()


def test_synchronize_inside_its_own_section_is_a_report_and_returns(
    reporter: Reporter, srcu: Srcu
) -> None:
    with srcu_section(srcu):
        srcu.synchronize()
    report = the_report(reporter, "synchronize-in-reader")
    assert (report.rule, report.subject) == ("O3", "kvm->srcu")


def test_synchronize_inside_an_rcu_section_is_a_report(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    with rcu_section(sync.rcu):
        srcu.synchronize()
    assert "synchronize_srcu(kvm->srcu)" in the_report(reporter, "sleep-in-rcu").headline


def test_synchronize_under_a_spinning_lock_is_one_report(
    sync: Sync, reporter: Reporter, srcu: Srcu
) -> None:
    with sync.spinlock("pages_lock"):
        srcu.synchronize()
    assert (
        the_report(reporter, "sleep-in-atomic").subject
        == "synchronize_srcu(kvm->srcu) in pages_lock"
    )


def test_synchronize_leaves_nothing_held(sync: Sync, reporter: Reporter, srcu: Srcu) -> None:
    together(sync.runtime, srcu.synchronize)
    assert reporter.reports == ()


def test_a_synchronize_that_does_not_wait_is_caught(
    make_sync: MakeSync, reporter: Reporter
) -> None:
    sync = make_sync(srcu_class=NoWait)
    srcu = sync.srcu("kvm->srcu")
    with elsewhere(sync.runtime, srcu_section(srcu), "old_reader") as reader:
        srcu.synchronize()
    report = the_report(reporter, "grace-period-too-short")
    assert f"{reader} still is" in report.sentence
    assert evidence(report, f"stack of reader {reader}")


def test_a_reader_that_stays_too_long_is_named(make_sync: MakeSync, reporter: Reporter) -> None:
    sync = make_sync(stall_seconds=0.2)
    srcu = sync.srcu("kvm->srcu")
    with elsewhere(sync.runtime, srcu_section(srcu), "slow_reader") as reader:
        waiter = blocked(sync.runtime, srcu.synchronize)
        eventually(lambda: reporter.reports, "a stall warning")
    finish(sync.runtime, waiter)
    assert the_report(reporter, "rcu-stall").headline.startswith(
        f"INFO: kvm->srcu detected a stall: {reader} "
    )
