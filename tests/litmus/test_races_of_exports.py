"""Two threads, one interleaving each: creating, using and closing exports, and what a device still
sees of them.

"posted" puts one defect of the series back, by the reference's R-number; its rule must fire.
Mended, nothing does.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from mmu.errors import KvmError
from mmu.export.device import Dma
from mmu.export.iommu import KvmHwpt
from mmu.machine.vcpu import Exit
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.task import Task
from tests.litmus.bench import (
    Steps,
    assert_clean,
    assert_found,
    both_ways,
    broken,
    defect,
    dma,
    ended,
    expect,
    finish_all,
    litmus,
    meanwhile,
    part,
    reclaim,
    until_stuck,
)
from tests.model import Machine, w

# Two threads export one address space (R1).


def export_or_errno(machine: Machine, into: list[Any]) -> Callable[[], None]:
    """Create a TDP FD; the fd, or the errno of the refusal."""

    def create() -> None:
        try:
            into.append(machine.export())
        except KvmError as refusal:
            into.append(refusal.errno)

    return create


@both_ways
def test_r1_two_threads_meet_between_the_check_and_the_insertion(posted: bool) -> None:
    with litmus(*defect("r1-double-export", posted)) as machine:
        machine.add_slot(0, 8)
        answers: list[Any] = []
        steps = [lambda: meanwhile(machine, export_or_errno(machine, answers))]

        def at_the_fd(step: str) -> bool:
            if step == "get_unused_fd" and steps:
                steps.pop()()
            return False

        machine.kvm.fail_function = at_the_fd
        first = machine.export()
        if not posted:
            assert answers == [errno.EEXIST]
            assert_clean(machine)
            return
        expect(machine, "O12 exported-twice")
        (second,) = answers
        machine.attach(second)
        root = second.metadata().root
        assert first.metadata().root is root
        first.put()
        assert not root.exported.value, "un-exported under the second one's importer"
        machine.vm.set_nx_huge_pages(True)
        assert root.invalid.value
        assert "I5" in broken(machine)
        machine.news()
        machine.abandon()


@both_ways
def test_r1_an_export_is_made_while_another_one_is_released(posted: bool) -> None:
    with litmus(*defect("r1-double-export", posted)) as machine:
        machine.add_slot(0, 8)
        fd = machine.export()
        answers: list[Any] = []
        machine.at("P17", lambda: meanwhile(machine, export_or_errno(machine, answers)))
        fd.put()
        if posted:
            expect(machine, "O12 exported-twice")
            assert broken(machine) == {"I5"}
            assert_found(machine, "INV I5")
        else:
            assert answers == [errno.EEXIST]
            assert_clean(machine)


# The fd is closed by somebody who should not know it yet (R3).


@both_ways
def test_r3_the_fd_is_closed_as_soon_as_it_can_be_seen(posted: bool) -> None:
    with litmus(*defect("r3-publish-before-init", posted)) as machine:
        exporter = machine.vm.exporter
        closed: list[bool] = []

        def close_what_is_there() -> None:
            closed.extend(exporter.close(fd) for fd in exporter.files.value)

        machine.at("P17", lambda: meanwhile(machine, close_what_is_there))
        machine.vm.create_tdp_fd()
        if posted:
            assert closed == [True]
            expect(machine, "O17 list-corruption")
            machine.abandon()
        else:
            assert closed == [], "there was no such moment"
            meanwhile(machine, close_what_is_there)
            assert closed == [True]
            assert_clean(machine)


# No fd number is left (R4); HWPT alloc fails (R15).


@both_ways
def test_r4_a_failed_creation_is_undone_once(posted: bool) -> None:
    with litmus(*defect("r4-error-path-double-destroy", posted)) as machine:
        machine.kvm.fail_function = lambda step: step == "get_unused_fd"
        with pytest.raises(KvmError, match="EMFILE"):
            machine.vm.create_tdp_fd()
        if posted:
            assert {report.split()[0] for report in machine.news()} >= {"O4"}
            machine.abandon()
            return
        machine.kvm.fail_function = None
        assert machine.export().metadata().root.refcount.read() == 2
        assert machine.kvm.users_count.read() == 2
        assert_clean(machine)


@both_ways
def test_r15_a_failed_hwpt_gives_back_its_own_reference_only(posted: bool) -> None:
    with litmus(*defect("r15-hwpt-alloc-double-put", posted)) as machine:
        fd = machine.vm.create_tdp_fd()
        device = machine.vm.create_device()
        machine.kvm.fail_function = lambda step: step == "hwpt_attach"
        with pytest.raises(KvmError, match="ENOMEM"):
            machine.vm.attach(device, fd)
        assert (fd.count.read(), fd.exported.importers()) == ((0 if posted else 1), ())
        meanwhile(machine, fd.put)
        expect(machine, *(["O4 refcount-underflow"] if posted else []))
        assert broken(machine) == set()


# Un-export against a warm vCPU (R5).


@both_ways
def test_r5_a_guest_uses_what_it_has_cached_of_an_un_exported_root(posted: bool) -> None:
    with litmus(*defect("r5-unexport-without-flush", posted)) as machine:
        region = machine.add_slot(0, 8)
        fd = machine.export()
        vcpu = machine.vcpu()
        closing: list[Task] = []

        def close_and_reclaim() -> None:
            fd.put()
            reclaim(machine, region)
            machine.kvm.rcu.barrier()

        def close_meanwhile() -> None:
            closing.append(until_stuck(machine, close_and_reclaim, "leave guest mode"))
            assert ended(machine, closing[0]) is posted, (
                "the flush of a mended un-export waits for this guest"
            )

        vcpu.run(Steps(1, 2, close_meanwhile, 1), 3)
        finish_all(machine, closing)
        if posted:
            assert {"O1 missing-flush", "O1 stale-tlb"} <= machine.news()
            assert vcpu.walk(3) == 0
            assert "O2" in machine.reporter.rules(), "a partial walk leads into a freed table"
            machine.news()
            machine.abandon()
        else:
            machine.run(vcpu, 1, 2, 3)
            assert_clean(machine)


# MMIO SPTEs: the wrap of the generation (R9), and a device that walks one (R18).


@both_ways
def test_r9_the_generation_wraps_under_an_mmio_spte_of_the_exported_root(posted: bool) -> None:
    with litmus(*defect("r9-mmio-sptes-survive", posted), mmio_gen_bits=3) as machine:
        machine.export()
        vcpu = machine.vcpu()
        assert machine.run(vcpu, 40) is Exit.MMIO
        wraps = machine.record("mmio_wrapped")

        def churn() -> None:
            machine.add_slot(40, 4, slot=1)
            machine.add_slot(0, 4, slot=2)
            machine.delete_slot(2)

        meanwhile(machine, churn)
        assert len(wraps.events) == 1
        assert machine.run(vcpu, 40) is (Exit.MMIO if posted else Exit.INTR)
        if posted:
            expect(machine, "O13 stale-mmio-honoured")
            assert_found(machine, "O13 I16")
        else:
            assert_clean(machine)


@both_ways
def test_r18_a_device_walks_an_mmio_spte(posted: bool) -> None:
    with litmus(*defect("r18-mmio-spte-walked", posted)) as machine:
        device, hwpt = machine.attach(machine.export())
        vcpu = machine.vcpu()
        meanwhile(machine, lambda: machine.run(vcpu, 40))
        if posted:
            assert device.transact(40, write=True) is Dma.WRONG
            assert device.transact(40, write=False) is None, "R is not set"
            expect(machine, "O6 mmio-spte-walked")
            machine.abandon()
        else:
            assert device.transact(40, write=True) is None
            assert not hwpt.io_fault(40, write=True)
            assert_clean(machine)


# The process exits while its devices are running (R12).


@both_ways
@pytest.mark.parametrize("in_flight", [False, True])
def test_r12_the_memory_of_an_exiting_process_is_out_of_reach(
    posted: bool, in_flight: bool
) -> None:
    with litmus(*defect("r12-mm-exit-without-flush", posted)) as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        assert dma(device, hwpt, 1, write=True)
        exiting: list[Task] = []
        called = machine.record("importer_called")

        def exit_meanwhile() -> None:
            exiting.append(
                until_stuck(machine, machine.vm.exit_mm, "-", lambda: bool(called.events))
            )
            assert ended(machine, exiting[0]) is posted, (
                "mended, the exit drains the access in flight"
            )

        if in_flight:
            machine.at("P16", exit_meanwhile)
        else:
            meanwhile(machine, machine.vm.exit_mm)
        result = device.transact(1, write=True)
        finish_all(machine, exiting)
        if posted:
            assert result is Dma.WRONG
            expect(machine, "O16 importer-not-told", "O1 stale-tlb")
            machine.abandon()
        else:
            assert result is (Dma.DONE if in_flight else None)
            assert device.transact(1, write=True) is None
            assert not hwpt.io_fault(1, write=True)
            expect(machine)
            machine.wrong.clear()


# HWPT destroy against a flush (R14).


class StopAfterTheDomainIsFreed(KvmHwpt):
    """A point to meet at, in either order of destroy."""

    def free_domain(self) -> None:
        super().free_domain()
        assert self.kvm.probe.point is not None
        self.kvm.probe.point("P17")


@both_ways
def test_r14_a_flush_comes_when_the_domain_has_been_freed(posted: bool) -> None:
    with litmus(part(StopAfterTheDomainIsFreed), *defect("r14-teardown-order", posted)) as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        assert dma(device, hwpt, 1)
        called = machine.record("importer_called")
        flushed: list[bool] = []

        def flush() -> None:
            meanwhile(machine, machine.delete_slot)
            flushed.append(True)

        machine.at("P17", flush)
        hwpt.destroy()
        assert flushed
        assert [args[0] for args in called.args("importer_called")] == ([hwpt] if posted else [])
        expect(machine, *(["O16 callback-after-unregister"] if posted else []))
        machine.assert_sound()


def test_unregister_waits_for_a_callback_that_is_running() -> None:
    """1.4: an importer's callback cannot be running once unregister has returned."""
    with litmus() as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        assert dma(device, hwpt, 1)
        destroying: list[Task] = []

        def destroy(*_: object) -> None:
            destroying.append(until_stuck(machine, hwpt.destroy, "importer_lock"))
            assert not ended(machine, destroying[0])

        machine.on(importer_called=destroy)
        machine.delete_slot()
        finish_all(machine, destroying)
        assert_clean(machine)


# Dirty logging and a device that writes (R19).


@both_ways
@pytest.mark.parametrize("first", ["export", "logging"])
def test_r19_a_device_writes_while_dirty_pages_are_logged_by_d_bits(
    posted: bool, first: str
) -> None:
    with litmus(*defect("r19-device-writes-not-logged", posted)) as machine:
        machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, w(1))
        if first == "logging":
            machine.log_dirty_pages()
            machine.run(vcpu, w(1))
        device, hwpt = machine.attach(machine.export())
        if first == "export":
            assert dma(device, hwpt, 1, write=True)
            machine.log_dirty_pages()
        machine.vm.get_dirty_log(0)
        meanwhile(machine, lambda: dma(device, hwpt, 1, write=True))
        logs = machine.vm.get_dirty_log(0), machine.vm.get_dirty_log(0)
        if posted:
            assert 1 not in logs[0] | logs[1]
            expect(machine, "O8 dirty-page-lost")
            machine.abandon()
        else:
            assert 1 in logs[0]
            assert_clean(machine)


@both_ways
def test_r19_a_write_in_flight_is_in_this_log_or_in_the_next(posted: bool) -> None:
    """P16: the IOTLB has given its answer when the log is read; the flush drains the write."""
    with litmus(*defect("r19-device-writes-not-logged", posted)) as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        machine.log_dirty_pages()
        assert dma(device, hwpt, 1, write=True)
        logs: list[set[int]] = []
        reading: list[Task] = []
        called = machine.record("importer_called")

        def read_log() -> None:
            body = lambda: logs.append(machine.vm.get_dirty_log(0))  # noqa: E731
            reading.append(until_stuck(machine, body, "-", lambda: bool(called.events)))
            assert not ended(machine, reading[0]), "the flush waits for the access"

        machine.at("P16", read_log)
        assert device.transact(1, write=True) is Dma.DONE
        finish_all(machine, reading)
        assert logs == [{1}]
        assert dma(device, hwpt, 1, write=True)
        machine.vm.get_dirty_log(0)
        machine.vm.get_dirty_log(0)
        expect(machine, *(["O8 dirty-page-lost"] if posted else []))
        machine.abandon()


# A slot that goes while a device is in the middle of an access to it (P15, P16).


def test_a_delete_drains_the_access_in_flight_before_it_returns() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        assert dma(device, hwpt, 1, write=True)
        called = machine.record("importer_called")
        deleting: list[Task] = []
        machine.at(
            "P16",
            lambda: deleting.append(
                until_stuck(machine, machine.delete_slot, "-", lambda: bool(called.events))
            ),
        )
        assert device.transact(1, write=True) is Dma.DONE
        finish_all(machine, deleting)
        assert device.transact(1, write=True) is None
        assert_clean(machine)


def test_an_io_fault_that_waits_behind_a_delete_fails_truly() -> None:
    """slots_lock decides: the fault is handled after the delete, when there is nothing to map any
    more."""
    with litmus() as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        answers: list[bool] = []
        worker: list[Task] = []
        machine.vm.host.fault_in(machine.regions[0, 0], 1)
        assert device.transact(1, write=True) is None
        machine.at(
            "P9",
            lambda: worker.append(
                until_stuck(machine, lambda: answers.append(hwpt.io_fault(1, True)), "slots_lock")
            ),
        )
        machine.delete_slot()
        finish_all(machine, worker)
        assert answers == [False]
        assert_clean(machine)


def test_a_delete_waits_for_an_io_fault_that_came_first() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        deleting: list[Task] = []
        machine.at(
            "P1", lambda: deleting.append(until_stuck(machine, machine.delete_slot, "slots_lock"))
        )
        assert hwpt.io_fault(1, write=True)
        finish_all(machine, deleting)
        assert device.transact(1, write=True) is None
        assert machine.leaves(machine.root()) == {}
        assert_clean(machine)


def test_slots_that_log_are_protected_for_a_device_that_comes_later() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8, flags=KVM_MEM_LOG_DIRTY_PAGES)
        vcpu = machine.vcpu()
        machine.run(vcpu, w(1))
        assert machine.vm.get_dirty_log(0) == {1}
        device, hwpt = machine.attach(machine.export())
        assert dma(device, hwpt, 1, write=True)
        assert machine.vm.get_dirty_log(0) == {1}
        assert_clean(machine)
