"""A vCPU: what it does in the guest, between two entries and on the way out, seen through its TLB
and its counters."""

from __future__ import annotations

from typing import Any

import pytest

from mmu.candidates import CANDIDATES
from mmu.machine.vcpu import Exit, Vcpu
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from mmu.memory.requests import IN_GUEST_MODE, KVM_REQ_TLB_FLUSH, OUTSIDE_GUEST_MODE
from mmu.probe import Instrument, override
from mmu.runtime import Table
from mmu.sync.lockdep import READ
from mmu.tdp.fault import RetPf
from tests.conftest import blocked, finish, rcu_section, together, writing
from tests.model import Machine, ParkedGuest, Script, w
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine


@pytest.fixture
def vcpu(machine: Machine) -> Vcpu:
    """A vCPU that never ran, of a VM with a slot at gfns 0..15."""
    machine.add_slot(0, 16)
    return machine.vm.create_vcpu()


class Watcher:
    """A guest that reads gfn 1 and looks at its vCPU while it is in the guest."""

    def __init__(self, look: Any) -> None:
        self._look = look

    def next_access(self) -> int:
        """One read, after a look."""
        self._look()
        return 1 << 1


# Running.


def test_the_guest_reads_and_writes_its_memory(machine: Machine, vcpu: Vcpu) -> None:
    assert machine.run(vcpu, 1, w(1), 2, w(9), 1) is Exit.INTR
    assert vcpu.stat.accesses == 5
    assert sorted(vcpu.tlb.entries) == [1, 2, 9]
    machine.assert_sound()


def test_the_budget_is_the_number_of_accesses(machine: Machine, vcpu: Vcpu) -> None:
    assert vcpu.run(Script(*[1] * 10), accesses=7) is Exit.INTR
    assert vcpu.stat.accesses == 7


def test_the_first_run_loads_the_root_and_empties_the_tlb(machine: Machine, vcpu: Vcpu) -> None:
    assert vcpu.root is None
    machine.run(vcpu, 1)
    assert vcpu.root is machine.root()
    assert (vcpu.stat.root_loads, vcpu.stat.tlb_flush) == (1, 1)
    machine.run(vcpu, 1)
    assert (vcpu.stat.root_loads, vcpu.stat.tlb_flush) == (1, 1)


def test_a_fault_is_handled_and_the_same_access_repeated(machine: Machine, vcpu: Vcpu) -> None:
    events = machine.record("fault_done")
    machine.run(vcpu, 5)
    assert [args[:2] for args in events.args("fault_done")] == [(vcpu, RetPf.FIXED)]
    assert (vcpu.stat.entries, vcpu.stat.accesses, vcpu.stat.pf_taken) == (2, 1, 1)


def test_a_translation_is_walked_once_and_then_remembered(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 5)
    walks = vcpu.stat.walks
    machine.run(vcpu, 5, w(5), 5)
    assert vcpu.stat.walks == walks


def test_an_access_without_a_slot_is_for_user_space(machine: Machine, vcpu: Vcpu) -> None:
    guest = Script(1, 40, 2)
    assert vcpu.run(guest, 3) is Exit.MMIO
    assert (vcpu.stat.mmio_exits, vcpu.stat.pf_emulate, vcpu.stat.accesses) == (1, 1, 1)
    assert vcpu.run(guest, 1) is Exit.INTR, (
        "user space has done the access; the guest goes on behind it"
    )
    assert sorted(vcpu.tlb.entries) == [1, 2]


def test_an_access_beyond_the_tables_is_for_user_space_too(machine: Machine, vcpu: Vcpu) -> None:
    """Bits that no level looks at must be zero; they are not simply left out."""
    machine.run(vcpu, 1)
    beyond = machine.kvm.geometry.max_gfn + 1 + 1
    before = machine.spte(1)
    assert machine.fault(vcpu, beyond) is RetPf.EMULATE
    assert machine.spte(1) == before
    assert machine.run(vcpu, beyond) is Exit.MMIO
    assert machine.wrong == []


def test_a_write_to_a_read_only_slot_is_for_user_space_every_time(machine: Machine) -> None:
    machine.add_slot(0, 4, flags=KVM_MEM_READONLY)
    vcpu = machine.vm.create_vcpu()
    assert machine.run(vcpu, 1) is Exit.INTR
    assert [machine.run(vcpu, w(1)) for _ in range(3)] == [Exit.MMIO] * 3


def test_a_run_that_is_to_end_at_once_does(machine: Machine, vcpu: Vcpu) -> None:
    vcpu.immediate_exit.value = True
    assert machine.run(vcpu, 1) is Exit.INTR
    assert vcpu.stat.entries == 0
    vcpu.immediate_exit.value = False
    assert machine.run(vcpu, 1) is Exit.INTR
    assert vcpu.stat.accesses == 1


def test_srcu_is_held_except_in_the_guest(machine: Machine, vcpu: Vcpu) -> None:
    """A memslot change waits for faults, but not for guests."""
    in_the_guest: list[tuple[bool, int]] = []
    in_the_fault: list[bool] = []
    machine.at("P1", lambda: in_the_fault.append(machine.kvm.srcu.read_held()))
    vcpu.run(
        Watcher(lambda: in_the_guest.append((machine.kvm.srcu.read_held(), vcpu.state.mode.value))),
        1,
    )
    assert in_the_guest == [(False, IN_GUEST_MODE)]
    assert in_the_fault == [True]
    assert not machine.kvm.srcu.read_held()
    assert vcpu.state.mode.value == OUTSIDE_GUEST_MODE


def test_a_guest_that_fails_leaves_guest_mode_and_nothing_behind(
    machine: Machine, vcpu: Vcpu
) -> None:
    """Otherwise the next kick waits for ever, with mmu_lock held."""
    machine.run(vcpu, 1)
    with pytest.raises(StopIteration):
        vcpu.run(Script(), 1)
    assert vcpu.state.mode.value == OUTSIDE_GUEST_MODE
    assert not machine.kvm.srcu.read_held()
    machine.expect()


def test_entering_the_guest_is_an_event(machine: Machine, vcpu: Vcpu) -> None:
    events = machine.record("guest_enter")
    machine.run(vcpu, 1)
    assert events.args("guest_enter") == [(vcpu,)] * vcpu.stat.entries


# Requests.


def test_a_flush_request_empties_the_tlb_before_the_next_access(
    machine: Machine, vcpu: Vcpu
) -> None:
    machine.run(vcpu, 1, 2)
    machine.vm.tlb.flush("test")
    assert sorted(vcpu.tlb.entries) == [1, 2], "it is the vCPU that does it, when it comes to it"
    walks = vcpu.stat.walks
    machine.run(vcpu, 2)
    assert list(vcpu.tlb.entries) == [2]
    assert vcpu.stat.walks == walks + 1


def test_a_running_vcpu_is_kicked_out_before_a_memslot_change_goes_on(
    machine: Machine, vcpu: Vcpu
) -> None:
    machine.run(vcpu, 1)
    guest = ParkedGuest(1)
    runner = machine.runtime.spawn("vcpu", lambda: vcpu.run(guest, 1))
    assert guest.inside.wait(PATIENCE)
    worker = blocked(
        machine.runtime,
        machine.delete_slot,
        lambda task: task.waiting_for.endswith("leave guest mode"),
    )
    guest.leave.set()
    finish(machine.runtime, worker, runner)
    assert vcpu.stat.kicks == 1
    machine.assert_sound()


def test_an_invalid_root_is_dropped_for_a_new_one(machine: Machine, vcpu: Vcpu) -> None:
    machine.add_slot(32, 8, slot=1)
    machine.run(vcpu, 1, 33)
    old = vcpu.root
    machine.delete_slot()
    machine.run(vcpu, 33)
    assert vcpu.root is machine.root()
    assert vcpu.root is not old
    assert list(vcpu.tlb.entries) == [33], "loading a root empties the TLB"
    machine.assert_sound()


def test_a_request_to_free_obsolete_roots_keeps_a_valid_one(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 1)
    machine.export()
    root = vcpu.root
    machine.delete_slot()
    machine.add_slot(0, 16)
    machine.run(vcpu, 1)
    assert vcpu.root is root
    assert vcpu.stat.root_loads == 1
    machine.assert_sound()


def test_a_root_is_put_in_the_mode_that_the_lock_is_held_in(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 1)
    root = machine.root()
    vcpu.unload()
    assert (vcpu.root, root.refcount.read()) == (None, 1)
    vcpu.unload()
    assert root.refcount.read() == 1


# Translation.


def test_partial_walks_are_remembered_and_flushed(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 1)
    table, _ = machine.entry(machine.root(), 1)
    assert list(vcpu.tlb.tables.values()) == [table]
    vcpu.flush_local()
    assert (vcpu.tlb.tables, vcpu.tlb.entries) == ({}, {})


def test_a_stale_partial_walk_into_a_freed_table_is_reported(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 1)
    root = machine.root()
    with writing(machine.mmu_lock), rcu_section(machine.kvm.rcu):
        machine.vm.writer.set_spte(root, 0, 0, root.spt[0], 0)
    machine.kvm.rcu.barrier()
    assert vcpu.walk(2) == 0
    machine.expect("O2 use-after-free")


def test_memory_released_under_a_running_guest_is_wrong_memory(
    machine: Machine, vcpu: Vcpu
) -> None:
    machine.run(vcpu, 1)
    pfn = machine.regions[0, 0].ptes[1]
    machine.vm.host.munmap(machine.regions[0, 0])
    machine.run(vcpu, 1, w(1))
    assert [found[:4] for found in machine.wrong] == [
        ("vcpu0", 1, pfn, False),
        ("vcpu0", 1, pfn, True),
    ]
    machine.abandon()


def test_a_fault_may_be_handled_on_another_thread_than_the_last_run(
    machine: Machine, vcpu: Vcpu
) -> None:
    """A vCPU is run by one thread at a time, but not always by the same one; its locks are those of
    the caller."""
    together(machine.runtime, lambda: machine.run(vcpu, 1))
    held: list[tuple[int, bool]] = []
    machine.on(
        spte_changed=lambda *_: held.append(
            (machine.mmu_lock.held_mode(), machine.kvm.rcu.read_held())
        )
    )
    assert machine.fault(vcpu, 2) is RetPf.FIXED
    assert held == [(READ, True)]
    machine.expect()


def test_runs_move_between_threads(machine: Machine, vcpu: Vcpu) -> None:
    for gfn in range(4):
        together(machine.runtime, lambda gfn=gfn: machine.run(vcpu, gfn, w(gfn + 4)))
    machine.run(vcpu, 9)
    assert vcpu.stat.pf_fixed == 9
    machine.assert_sound()


# System management mode.


def test_smm_has_its_own_root_and_memory(machine: Machine, vcpu: Vcpu) -> None:
    machine.add_slot(32, 4, slot=1, as_id=1)
    machine.run(vcpu, 1)
    normal = machine.root()
    vcpu.set_smm(True)
    assert normal.refcount.read() == 1
    assert machine.run(vcpu, 33) is Exit.INTR
    assert machine.run(vcpu, 1) is Exit.MMIO
    assert vcpu.root is machine.root(as_id=1)
    vcpu.set_smm(False)
    assert machine.run(vcpu, w(1)) is Exit.INTR
    assert vcpu.root is normal
    machine.assert_sound()


# Coming and going.


def test_vcpus_share_a_root_and_nothing_else(machine: Machine, vcpu: Vcpu) -> None:
    other = machine.vm.create_vcpu()
    machine.run(vcpu, 1)
    machine.run(other, 2)
    assert vcpu.root is other.root
    assert (list(vcpu.tlb.entries), list(other.tlb.entries)) == ([1], [2])
    assert machine.root().refcount.read() == 3
    machine.assert_sound()


def test_a_destroyed_vcpu_leaves_nothing(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 1)
    root = machine.root()
    vcpu.destroy()
    assert (vcpu.root, vcpu.cache.pages, vcpu.tlb.entries) == (None, [], {})
    assert root.refcount.read() == 1
    machine.vm.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH)
    assert vcpu.state.requests.value == 0, "nobody asks it any more"


def test_counters_start_at_zero(vcpu: Vcpu) -> None:
    assert {name: getattr(vcpu.stat, name) for name in vcpu.stat.__slots__} == dict.fromkeys(
        vcpu.stat.__slots__, 0
    )
    assert str(vcpu) == "vcpu0"


class AtExit(Instrument):
    """Notes the second word of a bitmap whenever a vCPU leaves the guest."""

    def __init__(self, bitmap: Table) -> None:
        self.bitmap = bitmap
        self.seen: list[int] = []

    @override
    def guest_exit(self, vcpu: Vcpu) -> None:
        self.seen.append(self.bitmap[1])


def test_what_hardware_has_logged_is_in_the_log_before_the_exit_is_acknowledged(
    make_machine: MakeMachine,
) -> None:
    """Else a slot that is moved meanwhile loses it."""
    for variants, logged in (([], True), ([CANDIDATES["pml-flushed-after-exit"]], False)):
        machine = make_machine(variants=variants)
        machine.add_slot(8, 4, flags=KVM_MEM_LOG_DIRTY_PAGES)
        vcpu = machine.vcpu()
        machine.run(vcpu, 9)
        assert machine.vm.get_dirty_log(0) == {1}, "made writable; from here on D is clear"
        bitmap = machine.slot().dirty_bitmap
        assert bitmap is not None
        at_exit = AtExit(bitmap)
        machine.probe.attach(at_exit)
        machine.run(vcpu, w(9))
        assert bool(at_exit.seen[-1]) is logged
        assert bitmap[1] == 1
