"""Policies A', B, D and E at work: what each does to roots, leaves and devices when memslots change
(reference 5.2)."""

from __future__ import annotations

from typing import Any

import pytest

from mmu.export.device import Device, Dma
from mmu.export.iommu import KvmHwpt
from mmu.export.policies import (
    KEEP_VALID,
    KEEP_VALID_YIELDING,
    REPUBLISH,
    SEPARATE_ROOT,
    SLOT_LEAVES,
)
from mmu.machine.vcpu import Vcpu
from mmu.memory.requests import KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
from mmu.paging.table import RootPage, RootRole
from mmu.tdp.fault import RetPf
from mmu.variant import Variant
from tests.conftest import blocked, finish, together
from tests.model import Machine, Recorder, w
from tests.unit.conftest import MakeMachine

SAFE = [KEEP_VALID, KEEP_VALID_YIELDING, REPUBLISH, SLOT_LEAVES, SEPARATE_ROOT]
every_policy = pytest.mark.parametrize("policy", SAFE, ids=lambda policy: policy.name)


class Bound:
    """A machine under a policy: slots 1 at gfns 0..7 and 2 at 16..23, a vCPU and a device that have
    used gfns 1 and 17."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.add_slot(0, 8, slot=1)
        machine.add_slot(16, 8, slot=2)
        self.vcpu: Vcpu = machine.vcpu()
        self.device: Device
        self.hwpt: KvmHwpt
        self.device, self.hwpt = machine.attach(machine.export())
        for gfn in (1, 17):
            assert self.dma(gfn) is Dma.DONE
        machine.run(self.vcpu, 1, w(17))

    @property
    def root(self) -> RootPage:
        """What the device walks."""
        root = self.device.root.value
        assert root is not None
        return root

    def dma(self, gfn: int) -> Dma | None:
        """A DMA write, after an IO fault if need be; None when that cannot be served."""
        if (outcome := self.device.transact(gfn, write=True)) is not None:
            return outcome
        return (
            self.device.transact(gfn, write=True) if self.hwpt.io_fault(gfn, write=True) else None
        )


@pytest.fixture
def bound(request: pytest.FixtureRequest, make_machine: MakeMachine) -> Bound:
    """The machine under the policy that the test names by `under`."""
    options: dict[str, Any] = request.param
    return Bound(make_machine(**options))


def under(policy: Variant, **options: Any) -> pytest.MarkDecorator:
    """Run the test under one policy."""
    return pytest.mark.parametrize(
        "bound", [{"variants": [policy], **options}], indirect=True, ids=[policy.name]
    )


# What they have in common.


@every_policy
def test_a_deleted_slot_is_out_of_reach_and_the_other_is_not(
    make_machine: MakeMachine, policy: Variant
) -> None:
    bound = Bound(make_machine(variants=[policy]))
    machine = bound.machine
    machine.delete_slot(1)
    assert bound.device.transact(1, write=False) is None
    assert not bound.hwpt.io_fault(1, write=False)
    assert bound.dma(17) is Dma.DONE
    machine.run(bound.vcpu, 17, w(18))
    assert not bound.root.invalid.value
    machine.assert_sound()


@every_policy
def test_a_moved_slot_is_found_at_its_new_place(make_machine: MakeMachine, policy: Variant) -> None:
    bound = Bound(make_machine(variants=[policy]))
    bound.machine.move_slot(32, slot=1)
    assert bound.device.transact(1, write=False) is None
    assert [bound.dma(gfn) for gfn in (33, 17)] == [Dma.DONE, Dma.DONE]
    bound.machine.run(bound.vcpu, 33, w(17))
    bound.machine.assert_sound()


@every_policy
def test_a_toggle_of_the_mitigation_does_no_harm(
    make_machine: MakeMachine, policy: Variant
) -> None:
    machine = make_machine(variants=[policy], huge_2m=8)
    machine.add_slot(0, 16, max_level=2)
    vcpu = machine.vcpu()
    device, hwpt = machine.attach(machine.export())
    machine.run(vcpu, w(5))
    for on in (True, False):
        machine.vm.set_nx_huge_pages(on)
        machine.run(vcpu, w(5))
        assert hwpt.io_fault(5, write=True)
        assert device.transact(5, write=True) is Dma.DONE
        machine.assert_sound()


@every_policy
def test_un_export_and_export_again(make_machine: MakeMachine, policy: Variant) -> None:
    bound = Bound(make_machine(variants=[policy]))
    machine = bound.machine
    bound.hwpt.destroy()
    machine._fds.pop().put()
    machine.delete_slot(1)
    machine.assert_sound()
    device, hwpt = machine.attach(machine.export(), "device1")
    assert hwpt.io_fault(17, write=True)
    assert device.transact(17, write=True) is Dma.DONE
    machine.run(bound.vcpu, 17)
    machine.assert_sound()


@every_policy
def test_guests_a_device_and_memslot_changes_at_once(
    make_machine: MakeMachine, policy: Variant
) -> None:
    bound = Bound(make_machine(variants=[policy]))
    machine, other = bound.machine, bound.machine.vm.create_vcpu()
    outcomes: list[Dma | None] = []

    def guest(vcpu: Vcpu) -> None:
        for _ in range(8):
            for access in (1, w(2), 33, w(34), 41):
                machine.run(vcpu, access)

    def dma() -> None:
        for _ in range(8):
            outcomes.extend(bound.dma(gfn) for gfn in (3, 34, 42))

    def churn() -> None:
        for _ in range(6):
            machine.add_slot(32, 4, slot=3)
            machine.move_slot(40, slot=3)
            machine.delete_slot(3)

    together(machine.runtime, lambda: guest(bound.vcpu), lambda: guest(other), dma, churn)
    assert Dma.WRONG not in outcomes
    for vcpu in (bound.vcpu, other):
        vcpu.service_requests()
    machine.assert_sound()


# A': yielding.


def contended(machine: Machine, times: int) -> None:
    """mmu_lock looks contended that many times."""
    looks = iter(range(times))
    machine.mmu_lock.needbreak = lambda: next(looks, -1) >= 0  # type: ignore[method-assign]


@under(KEEP_VALID_YIELDING)
def test_the_yielding_zap_pays_what_it_owes_before_every_yield(bound: Bound) -> None:
    machine = bound.machine
    for gfn in (0, 5, 18, 23):
        bound.dma(gfn)
    events = machine.record("spte_zapped", "flush_end", "mmu_write_unlocking", "exported_zapped")
    contended(machine, 100)
    machine.delete_slot(1)
    owed, yields = False, 0
    for name in events.names():
        owed = name == "spte_zapped" or (owed and name != "flush_end")
        yields += name == "mmu_write_unlocking"
        assert not (owed and name == "mmu_write_unlocking")
    assert yields > 3
    assert events.names().count("exported_zapped") == 1
    machine.assert_sound()


@under(KEEP_VALID_YIELDING)
def test_while_it_yields_the_root_is_pinned(bound: Bound) -> None:
    """Somebody closes the TDP FD in a gap: the zap goes on with a root that is still there."""
    machine, root = bound.machine, bound.root
    counts: list[int] = []

    def close() -> None:
        bound.hwpt.destroy()
        machine._fds.pop().put()

    def let_him_close(shared: bool) -> None:
        machine.mmu_lock.unlock(shared)
        if root.exported.value:
            together(machine.runtime, close)
        machine.mmu_lock.lock(shared)

    machine.mmu_lock.cond_resched = let_him_close  # type: ignore[method-assign]
    machine.on(zap_yielded=lambda *_: counts.append(root.refcount.read()))
    contended(machine, 1)
    machine.delete_slot(1)
    assert counts == [3], "un-exported in the gap: the TDP MMU's, the vCPU's and the zap's own"
    machine.run(bound.vcpu, 17)
    machine.assert_sound()


# B: republish.


@under(REPUBLISH)
def test_the_importer_walks_a_new_root_before_the_old_one_becomes_invalid(bound: Bound) -> None:
    machine, old = bound.machine, bound.root
    order: list[tuple[str, bool, bool]] = []

    def note(what: str) -> Any:
        return lambda *_: (
            order.append((what, bound.device.root.value is old, old.invalid.value))
            if len(order) < 3
            else None
        )

    machine.on(
        importer_switched=note("switched"),
        root_invalidated=note("invalidated"),
        republished=note("republished"),
    )
    machine.delete_slot(1)
    assert order == [
        ("switched", False, False),
        ("invalidated", False, True),
        ("republished", False, True),
    ]
    assert bound.root is not old
    assert bound.root.exported.value
    assert bound.root is bound.hwpt.fd.metadata().root
    assert not old.exported.value
    machine.run(bound.vcpu, 17)
    assert bound.vcpu.root is bound.root, "vCPUs find the new root"
    machine.assert_sound()


@under(REPUBLISH)
def test_vcpus_are_told_again_when_the_old_root_has_become_invalid(bound: Bound) -> None:
    """One that serviced the first request while the importers switched still runs on the old
    root."""
    machine, old = bound.machine, bound.root
    machine.on(importer_switched=lambda *_: bound.vcpu.service_requests())
    machine.delete_slot(1)
    assert bound.vcpu.root is old
    assert bound.vcpu.state.requests.value & KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
    machine.run(bound.vcpu, 17)
    assert bound.vcpu.root is bound.root
    machine.assert_sound()


@under(REPUBLISH)
def test_importers_switch_without_mmu_lock_and_may_sleep(bound: Bound) -> None:
    machine, held = bound.machine, list[tuple[int, bool, bool]]()
    exported = bound.hwpt.fd.exported
    machine.on(
        importer_switched=lambda *_: held.append(
            (machine.mmu_lock.held_mode(), machine.kvm.slots_lock.held(), exported.bind_lock.held())
        )
    )
    machine.delete_slot(1)
    assert held == [(0, True, True)]


@under(REPUBLISH)
def test_the_old_root_is_zapped_and_freed(bound: Bound) -> None:
    machine, old = bound.machine, bound.root
    freed = machine.record("root_freed", "republished")
    machine.delete_slot(1)
    bound.vcpu.service_requests()
    assert freed.args("republished") == [(old, bound.root)]
    assert freed.args("root_freed") == [(old,)]
    machine.kvm.rcu.barrier()
    machine.assert_sound()


class Choosy:
    """Fault injection: switching roots fails while `fails` is set."""

    fails = False

    def __call__(self, step: str) -> bool:
        """should_fail()."""
        return self.fails and step == "switch_root"


def test_an_importer_that_does_not_acknowledge_is_cut_off(make_machine: MakeMachine) -> None:
    """And nobody waits for it: the deleted slot must be out of reach when the call returns."""
    choosy = Choosy()
    bound = Bound(make_machine(variants=[REPUBLISH], fail_function=choosy))
    machine = bound.machine
    events = machine.record("importer_switched")
    choosy.fails = True
    machine.delete_slot(1)
    choosy.fails = False
    assert [args[:2] for args in events.args("importer_switched")] == [(bound.hwpt, False)]
    assert bound.device.root.value is None
    assert bound.hwpt.revoked.value
    assert bound.device.transact(17, write=False) is None
    machine.run(bound.vcpu, 17)
    machine.assert_sound()
    assert bound.dma(17) is Dma.DONE, "its next IO fault brings it back, to the new root"
    assert bound.root is machine.root()
    machine.assert_sound()


@under(REPUBLISH)
def test_every_importer_is_switched(bound: Bound) -> None:
    machine = bound.machine
    other, _ = machine.attach(bound.hwpt.fd, "device1")
    machine.delete_slot(1)
    assert bound.root is other.root.value is machine.root()


@under(REPUBLISH)
def test_a_device_that_is_bound_meanwhile_waits_and_gets_the_new_root(bound: Bound) -> None:
    machine, old = bound.machine, bound.root
    binders: list[Any] = []
    device = machine.vm.create_device("late")

    def bind() -> None:
        machine._hwpts.append(machine.vm.attach(device, bound.hwpt.fd))

    def bind_meanwhile(*_: Any) -> None:
        binders.append(
            blocked(machine.runtime, bind, lambda task: task.waiting_for == "exported_bind_lock")
        )

    machine.on(importer_switched=bind_meanwhile)
    machine.delete_slot(1)
    finish(machine.runtime, *binders)
    assert device.root.value is bound.root
    assert device.root.value is not old
    machine.assert_sound()


@under(REPUBLISH)
def test_without_an_export_roots_are_invalidated_as_ever(bound: Bound) -> None:
    machine = bound.machine
    bound.hwpt.destroy()
    machine._fds.pop().put()
    events: Recorder = machine.record("republished", "root_zapped", "importer_switched")
    machine.delete_slot(1)
    assert events.names() == ["root_zapped"]


# D: only the slot's leaves.


@under(SLOT_LEAVES)
def test_with_slot_leaves_only_every_root_and_every_other_mapping_stays(bound: Bound) -> None:
    machine, root = bound.machine, bound.root
    bound.vcpu.set_guest_mode(nested=True)
    machine.run(bound.vcpu, 2, 18)
    nested = bound.vcpu.root
    assert nested is not None
    events = machine.record("root_invalidated", "flush_begin", "exported_zapped")
    machine.delete_slot(1)
    assert sorted(machine.leaves(root)) == [17]
    assert sorted(machine.leaves(nested)) == [18]
    assert (root.invalid.value, nested.invalid.value) == (False, False)
    assert events.args("flush_begin") == [("memslot-zap", 0, 8)]
    assert events.args("exported_zapped") == [(root, 2)]
    assert "root_invalidated" not in events.names()
    faults = bound.vcpu.stat.pf_taken
    machine.run(bound.vcpu, 18)
    assert bound.vcpu.stat.pf_taken == faults, "no refault"
    assert bound.device.transact(17, write=True) is Dma.DONE, "no IO fault storm"
    machine.assert_sound()


@under(SLOT_LEAVES, mmio_gen_bits=3)
def test_with_slot_leaves_only_mmio_sptes_still_go_at_a_wrap(bound: Bound) -> None:
    machine = bound.machine
    machine.run(bound.vcpu, 40)
    assert bound.vcpu.stat.pf_emulate == 1
    wraps = machine.record("mmio_wrapped")
    for slot in (3, 4, 5):
        machine.add_slot(44 + 4 * (slot - 3), 4, slot=slot)
    assert wraps.events
    machine.run(bound.vcpu, 17)
    machine.add_slot(36, 8, slot=6)
    machine.run(bound.vcpu, w(40))
    machine.assert_sound()


# E: a root for the importer alone.


@under(SEPARATE_ROOT)
def test_the_importer_has_a_root_that_no_vcpu_loads(bound: Bound) -> None:
    machine = bound.machine
    assert bound.root.role == RootRole(0, iommu=True)
    assert bound.vcpu.root is machine.root()
    assert bound.vcpu.root is not bound.root
    before = machine.leaves(bound.root)
    assert machine.fault(bound.vcpu, 3) is RetPf.FIXED
    assert machine.leaves(bound.root) == before, "what a vCPU maps is not mapped for the device"
    assert machine.leaves(machine.root()).keys() == {1, 3, 17}
    machine.assert_sound()


@under(SEPARATE_ROOT)
def test_the_importers_root_loses_the_slots_leaves_and_the_vcpus_roots_everything(
    bound: Bound,
) -> None:
    machine, root, vcpu_root = bound.machine, bound.root, bound.vcpu.root
    assert vcpu_root is not None
    told = machine.record("importer_called", "flush_begin", "exported_zapped")
    machine.delete_slot(1)
    assert (root.invalid.value, vcpu_root.invalid.value) == (False, True)
    assert sorted(machine.leaves(root)) == [17]
    assert told.args("importer_called") == [(bound.hwpt, 0, 8)]
    assert told.args("exported_zapped") == [(root, 1)]
    assert told.args("flush_begin") == [], (
        "no vCPU walks the importer's root, and invalid roots need none"
    )
    assert bound.device.transact(17, write=True) is Dma.DONE
    machine.assert_sound()


@under(SEPARATE_ROOT)
def test_the_importer_is_told_before_mmu_lock_is_dropped(bound: Bound) -> None:
    machine = bound.machine
    events = machine.record(
        "mmu_write_locked", "spte_zapped", "importer_called", "mmu_write_unlocking", "zap_all_fast"
    )
    machine.delete_slot(1)
    names = events.names()
    assert names[: names.index("zap_all_fast")] == [
        "mmu_write_locked",
        "spte_zapped",
        "importer_called",
        "mmu_write_unlocking",
        "mmu_write_locked",
    ]


@under(SEPARATE_ROOT)
def test_a_notifier_unmaps_both_trees(bound: Bound) -> None:
    machine = bound.machine
    region = machine.regions[0, 1]
    with machine.invalidating(region, 1, 2):
        assert 1 not in machine.leaves(bound.root)
        assert 1 not in machine.leaves(machine.root())
        assert bound.device.transact(1, write=False) is None
    machine.run(bound.vcpu, 1)
    assert bound.dma(1) is Dma.DONE
    machine.assert_sound()


@under(SEPARATE_ROOT)
def test_what_the_device_writes_is_logged_by_write_protection(bound: Bound) -> None:
    machine = bound.machine
    assert machine.vm.dirty.needs_write_protect(bound.root)
    assert not machine.vm.dirty.needs_write_protect(machine.root())
    machine.log_dirty_pages(slot=1)
    assert bound.dma(1) is Dma.DONE
    assert machine.vm.get_dirty_log(1) == {1}
    machine.assert_sound()
