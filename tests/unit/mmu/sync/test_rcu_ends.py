"""How RCU ends: threads that leave inside a section, callbacks that raise, work that comes too
late."""

from __future__ import annotations

import threading

import pytest

from mmu.report import Reporter
from mmu.runtime import Runtime
from mmu.sync import Sync
from mmu.task import Task
from tests.patience import PATIENCE


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def sync(failures: list[str]) -> Sync:
    runtime = Runtime()

    def note(task: Task, error: BaseException) -> None:
        failures.append(f"{task.name}: {error!r}")

    runtime.on_task_error = note
    return Sync(runtime, Reporter(sink=None))


def codes(sync: Sync) -> list[str]:
    return [report.code for report in sync.reporter.reports]


def run(sync: Sync, body: object) -> None:
    task = sync.runtime.spawn("worker", body)  # type: ignore[arg-type]
    assert sync.runtime.join(task, PATIENCE)


def test_a_thread_that_ends_inside_an_rcu_section_is_reported(sync: Sync) -> None:
    run(sync, sync.rcu.read_lock)
    assert codes(sync) == ["exit-in-section"]


def test_a_thread_that_ends_inside_an_srcu_section_is_reported(sync: Sync) -> None:
    srcu = sync.srcu("kvm->srcu")
    run(sync, srcu.read_lock)
    assert codes(sync) == ["held-at-exit"]


def test_a_callback_that_raises_holds_up_nobody(sync: Sync, failures: list[str]) -> None:
    ran = threading.Event()

    def broken() -> None:
        raise ZeroDivisionError("a broken callback")

    sync.rcu.call(broken)
    sync.rcu.call(ran.set)
    sync.rcu.barrier()
    assert ran.is_set()
    assert failures == ["rcu_gp: ZeroDivisionError('a broken callback')"]
    assert sync.rcu.pending() == 0
    sync.rcu.shutdown()


def test_a_callback_after_shutdown_is_reported_and_not_waited_for(sync: Sync) -> None:
    sync.rcu.call(lambda: None)
    sync.rcu.barrier()
    sync.rcu.shutdown()
    sync.rcu.call(lambda: None)
    sync.rcu.barrier()
    assert codes(sync) == ["call-after-shutdown"]


def test_records_of_threads_that_have_ended_are_forgotten(sync: Sync) -> None:
    lock = sync.rwlock("mmu_lock")

    def use() -> None:
        lock.read_lock()
        sync.rcu.read_lock()
        sync.rcu.read_unlock()
        lock.read_unlock()

    for _ in range(50):
        run(sync, use)
    assert len(lock._holds) < 10
    assert len(sync.rcu._readers.value) < 10
