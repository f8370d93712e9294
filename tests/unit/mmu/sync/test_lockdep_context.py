"""Lockdep on contexts: what may not sleep, and what a thread leaves behind at its end."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest

from mmu.report import Reporter
from mmu.sync import Sync
from tests.conftest import finish, reading, the_report, together, writing
from tests.unit.mmu.sync.test_lockdep import nest


def spinning_sections(sync: Sync) -> dict[str, AbstractContextManager[object]]:
    """Every lock in which sleeping is forbidden."""
    mmu_lock = sync.rwlock("mmu_lock")
    return {
        "spinlock": sync.spinlock("pages_lock"),
        "read": reading(mmu_lock),
        "write": writing(mmu_lock),
    }


@pytest.mark.parametrize("kind", ["spinlock", "read", "write"])
def test_a_mutex_inside_a_spinning_lock_is_a_report(
    sync: Sync, reporter: Reporter, kind: str
) -> None:
    nest(spinning_sections(sync)[kind], sync.mutex("slots_lock"))
    report = the_report(reporter, "sleep-in-atomic")
    assert report.rule == "O5"
    assert (
        report.headline == "BUG: sleeping function called from invalid context: taking slots_lock"
    )


@pytest.mark.parametrize("kind", ["spinlock", "read", "write"])
def test_what_declares_that_it_may_sleep_is_a_report_inside_a_spinning_lock(
    sync: Sync, reporter: Reporter, kind: str
) -> None:
    with spinning_sections(sync)[kind]:
        sync.might_sleep("allocating a page with GFP_KERNEL")
    assert "allocating a page" in the_report(reporter, "sleep-in-atomic").headline


def test_a_sleep_in_atomic_context_is_reported_though_a_mutex_lies_between(
    sync: Sync, reporter: Reporter
) -> None:
    with sync.spinlock("pages_lock"), sync.mutex("cache_lock"):
        sync.might_sleep("copying from the user")
    assert "copying from the user in pages_lock" in [report.subject for report in reporter.reports]


def test_spinning_locks_inside_mutexes_and_each_other_are_no_report(
    sync: Sync, reporter: Reporter
) -> None:
    nest(sync.mutex("slots_lock"), reading(sync.rwlock("mmu_lock")), sync.spinlock("pages_lock"))
    sync.might_sleep("after all locks were released")
    assert reporter.reports == ()


def test_one_sleep_in_atomic_context_is_counted_once(sync: Sync, reporter: Reporter) -> None:
    nest(sync.spinlock("pages_lock"), sync.mutex("slots_lock"))
    assert the_report(reporter, "sleep-in-atomic").count == 1


# The end of a thread


def test_a_mutex_held_at_thread_exit_is_a_report(sync: Sync, reporter: Reporter) -> None:
    task = sync.runtime.spawn("forgetful", sync.mutex("slots_lock").acquire)
    finish(sync.runtime, task)
    assert (
        the_report(reporter, "held-at-exit").headline
        == f"BUG: {task} still has locks held at exit: slots_lock"
    )


def test_every_lock_held_at_thread_exit_is_named(sync: Sync, reporter: Reporter) -> None:
    srcu, slots_lock, mmu_lock = (
        sync.srcu("kvm->srcu"),
        sync.mutex("slots_lock"),
        sync.rwlock("mmu_lock"),
    )

    def take_all_and_end() -> None:
        srcu.read_lock()
        slots_lock.acquire()
        mmu_lock.read_lock()

    together(sync.runtime, take_all_and_end)
    assert the_report(reporter, "held-at-exit").subject == "kvm->srcu, slots_lock, mmu_lock"


def test_a_thread_that_dies_of_an_error_inside_a_lock_is_reported(
    sync: Sync, reporter: Reporter
) -> None:
    def die() -> None:
        sync.spinlock("pages_lock").acquire()
        raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        together(sync.runtime, die)
    assert the_report(reporter, "held-at-exit").subject == "pages_lock"


def test_a_thread_that_released_everything_ends_in_silence(sync: Sync, reporter: Reporter) -> None:
    together(sync.runtime, lambda: nest(sync.mutex("slots_lock"), writing(sync.rwlock("mmu_lock"))))
    assert reporter.reports == ()
