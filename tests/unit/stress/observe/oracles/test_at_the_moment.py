"""Rules that are judged when they break: what a range, a frame, a root and a device must not be."""

from __future__ import annotations

import pytest

from mmu.export.device import Device
from mmu.export.policies import REPUBLISH
from mmu.memory.memslots import Memslot
from mmu.paging.table import RootPage, RootRole
from mmu.tdp.notifier import MmuNotifier
from mmu.tdp.nx import NxHugePages
from mmu.variant import Variant
from tests.conftest import rcu_section, reading, writing
from tests.model import w, x
from tests.unit.stress.observe.oracles.conftest import Watch, reported


def variant(*parts: type) -> Variant:
    return Variant("test", "for this test", parts)


class Deaf(MmuNotifier):
    """Unmaps nothing."""

    def unmap_gfn_range(self, slot: Memslot, start: int, end: int, *, flush: bool) -> bool:
        return False


class ValidOnly(MmuNotifier):
    """Unmaps in valid roots only."""

    def unmap_gfn_range(self, slot: Memslot, start: int, end: int, *, flush: bool) -> bool:
        zapper = self.zapper
        for root in zapper.roots.each_yield_safe(shared=False, only_valid=True, as_id=slot.as_id):
            flush = zapper.zap_leafs(root, start, end, can_yield=True, flush=flush)
        return flush


# Ranges and frames (O6).


def test_a_range_that_nothing_maps_any_more_is_silent(watch: Watch) -> None:
    machine = watch()
    region = machine.add_slot(8, 8)
    machine.run(machine.vcpu(), w(8), w(12))
    machine.discard(region, 0, 2)
    assert list(machine.leaves(machine.root())) == [12]
    machine.expect()


@pytest.mark.parametrize(("first", "last", "found"), [(0, 1, False), (1, 2, True), (2, 8, False)])
def test_a_leaf_in_the_range_is_reported_and_no_other(
    watch: Watch, first: int, last: int, found: bool
) -> None:
    machine = watch(variant(Deaf))
    region = machine.add_slot(8, 8)
    machine.run(machine.vcpu(), w(9))
    with machine.invalidating(region, first, last):
        machine.expect(*(["O6 leaf-of-invalidated-range"] if found else []))
    if found:
        assert reported(machine, "leaf-of-invalidated-range").gfn == 9


def test_a_root_that_was_made_invalid_counts_too(watch: Watch) -> None:
    machine = watch(variant(ValidOnly))
    region = machine.add_slot(8, 8)
    machine.run(machine.vcpu(), w(9))
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate_all_roots()
    with machine.invalidating(region):
        machine.expect("O6 leaf-of-invalidated-range")


@pytest.mark.parametrize("host_keeps_it", [True, False])
def test_a_huge_leaf_may_stick_out_only_if_the_host_s_page_does(
    watch: Watch, host_keeps_it: bool
) -> None:
    machine = watch(variant(Deaf), huge_2m=8)
    region = machine.add_slot(8, 8, max_level=2)
    machine.run(machine.vcpu(), w(8))
    assert machine.huge_leaves() == [(8, 2)]
    if not host_keeps_it:
        region.levels.store(1, 1)
    with machine.invalidating(region, 1, 2):
        machine.expect(*([] if host_keeps_it else ["O6 leaf-of-invalidated-range"]))


def test_a_leaf_that_goes_after_its_frame_is_reported(watch: Watch) -> None:
    machine = watch()
    region = machine.add_slot(8, 8)
    machine.run(machine.vcpu(), w(9))
    machine.vm.host.discard(region, 1, 2)
    machine.vm.change_attributes(8, 12)
    machine.expect("O6 frame-released-first")
    assert reported(machine, "frame-released-first").gfn == 9


# Roots (O12).


def test_two_valid_roots_of_one_role_are_reported(watch: Watch) -> None:
    machine = watch()
    machine.root()
    with writing(machine.mmu_lock):
        second = machine.vm.roots.allocate_root(RootRole(0))
        machine.expect()
    machine.expect("O12 two-roots-of-one-role")
    with writing(machine.mmu_lock):
        machine.vm.roots.put_root(second, shared=False)


def test_under_the_read_lock_a_second_root_is_reported_when_it_is_made(watch: Watch) -> None:
    machine = watch()
    machine.root()
    with reading(machine.mmu_lock):
        second = machine.vm.roots.allocate_root(RootRole(0))
        machine.expect("O12 two-roots-of-one-role")
        machine.vm.roots.put_root(second, shared=True)


def test_roots_of_two_roles_and_an_invalid_one_are_silent(watch: Watch) -> None:
    machine = watch()
    machine.root()
    machine.root(as_id=1)
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate_all_roots()
    machine.root()
    machine.expect()


def test_a_republish_may_have_two_exported_roots(watch: Watch) -> None:
    machine = watch(REPUBLISH)
    machine.add_slot(8, 8)
    device, _ = machine.attach(machine.export())
    machine.delete_slot()
    assert device.root.value is machine.root()
    machine.expect()


def test_an_invalid_root_that_is_marked_exported_is_reported(watch: Watch) -> None:
    machine = watch()
    root = machine.root()
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate_all_roots()
    machine.expect()
    with writing(machine.mmu_lock):
        root.exported.value = True
    machine.expect("O12 invalid-root-exported")
    root.exported.value = False


def test_a_root_that_a_device_walks_stays_valid_whatever_its_flag_says(watch: Watch) -> None:
    machine = watch()
    device, _ = machine.attach(machine.export())
    root = device.root.value
    assert root is not None
    root.exported.value = False
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate_all_roots()
    machine.expect("O12 exported-root-invalid")
    machine.abandon()


# Devices (O16, O2).


class KeepsIotlb(Device):
    """Detaches without a flush."""

    def detach(self) -> None:
        self.root.value = None


class StaysAttached(Device):
    """Flushes without detaching."""

    def detach(self) -> None:
        self.flush()


@pytest.mark.parametrize(("part", "subject"), [(KeepsIotlb, "caches"), (StaysAttached, "root")])
def test_a_device_that_was_detached_and_still_translates_is_reported(
    watch: Watch, part: type[Device], subject: str
) -> None:
    machine = watch(variant(part))
    machine.add_slot(8, 8)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(9, write=True)
    device.transact(9, write=True)
    hwpt.unbind()
    machine.expect("O16 blocked-device-translates")
    assert reported(machine, "blocked-device-translates").subject == subject
    machine.abandon()


def test_a_device_that_is_revoked_must_be_blocked_too(watch: Watch) -> None:
    machine = watch(variant(StaysAttached))
    _, hwpt = machine.attach(machine.export())
    hwpt.revoke()
    machine.expect("O16 blocked-device-translates")
    machine.abandon()


def test_detaching_and_revoking_as_they_should_are_silent(watch: Watch) -> None:
    machine = watch()
    machine.add_slot(8, 8)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(9, write=True)
    device.transact(9, write=True)
    hwpt.revoke()
    assert hwpt.reattach()
    hwpt.destroy()
    machine.expect()


def test_a_request_that_outlives_its_domain_is_reported(watch: Watch) -> None:
    machine = watch()
    machine.add_slot(8, 8)
    _, hwpt = machine.attach(machine.export())
    machine.at("P1", hwpt.free_domain)
    hwpt.handle(hwpt.request([(9, True)]))
    machine.expect("O2 response-through-freed-domain")
    hwpt.live.store(True)


def test_a_device_that_was_detached_requests_nothing_of_its_own(watch: Watch) -> None:
    machine = watch()
    machine.add_slot(8, 8)
    _, hwpt = machine.attach(machine.export())
    request = hwpt.request_of_its_own([(9, True)])
    assert request is not None
    hwpt.handle(request)
    hwpt.destroy()
    assert hwpt.request_of_its_own([(9, True)]) is None
    machine.expect()


# Flushes (O1, O16).


def test_who_walks_a_root_is_owed_a_notification_whoever_is_on_the_list(watch: Watch) -> None:
    machine = watch()
    machine.add_slot(8, 8)
    fd = machine.export()
    device, hwpt = machine.attach(fd)
    assert hwpt.io_fault(9, write=True)
    fd.unregister_importer(hwpt)
    machine.vm.exported_tdps.flush_notify = lambda gfn, pages: None  # type: ignore[method-assign]
    machine.vm.change_attributes(8, 12)
    machine.expect("O16 importer-not-told")
    machine.abandon()
    assert device.root.value is not None


class LateFlush(NxHugePages):
    """Flushes behind the RCU section, as kvm_recover_nx_huge_pages() must not."""

    def settle(self, flush: bool) -> bool:
        if flush:
            self.kvm.rcu.read_unlock()
            self.tlb.flush("nx-recovery")
            self.kvm.rcu.read_lock()
        return False


@pytest.mark.parametrize("late", [False, True])
def test_removed_tables_are_flushed_inside_their_rcu_section(watch: Watch, late: bool) -> None:
    parts = [variant(LateFlush)] if late else []
    machine = watch(*parts, huge_2m=8, nx_huge_pages=True, nx_recovery_ratio=1)
    machine.add_slot(8, 8, max_level=2)
    machine.run(machine.vcpu(), x(8))
    assert machine.vm.recover_nx_huge_pages() == 1
    machine.expect(*(["O1 flush-after-rcu-section"] if late else []))


def test_a_section_of_its_own_is_none_that_keeps_the_table(watch: Watch) -> None:
    """The flush is inside a section, but not inside the one in which the table was removed."""
    machine = watch()
    machine.add_slot(8, 8)
    machine.run(machine.vcpu(), w(9))
    root: RootPage = machine.root()
    entry = next(index for index, spte in enumerate(root.spt) if spte)
    with writing(machine.mmu_lock):
        with rcu_section(machine.kvm.rcu):
            machine.vm.writer.set_spte(root, entry, entry * 16, root.spt[entry], 0)
        with rcu_section(machine.kvm.rcu):
            machine.vm.tlb.flush("test")
    machine.expect("O1 flush-after-rcu-section")
