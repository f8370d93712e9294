"""O1 and O16 by obligation: what was removed from a valid root is flushed, all of it, before
mmu_lock is released."""

from __future__ import annotations

import itertools

import pytest

from mmu.export.device import Device, Dma
from mmu.export.policies import KEEP_VALID_YIELDING, SEPARATE_ROOT, SLOT_LEAVES
from mmu.export.vtd import VtdDomain
from mmu.memory.tlb import RemoteTlb, TranslationCache
from mmu.paging.spte import REMOVED_SPTE
from mmu.posted import POSTED
from mmu.tdp.fault import RetPf
from mmu.tdp.huge import HugePages
from mmu.tdp.iter import TdpIter
from mmu.tdp.write import SpteWriter
from mmu.tdp.yielding import Yielding
from mmu.tdp.zap import Zapper
from mmu.variant import Variant
from tests.conftest import blocked, evidence, finish, writing
from tests.model import Machine, w
from tests.unit.stress.observe.oracles.conftest import Watch, reported


class OneShortAtTheEnd(RemoteTlb):
    """Range flushes leave out their last frame."""

    def flush_range(self, reason: str, gfn: int, pages: int) -> None:
        super().flush_range(reason, gfn, pages - 1)


class OneShortAtTheStart(RemoteTlb):
    """Range flushes leave out their first frame."""

    def flush_range(self, reason: str, gfn: int, pages: int) -> None:
        super().flush_range(reason, gfn + 1, pages - 1)


class VcpusOnly(RemoteTlb):
    """Importers are not told."""

    def notify_importers(self, gfn: int, pages: int) -> None:
        pass


def variant(*parts: type) -> Variant:
    return Variant("test", "for this test", parts)


def bound(machine: Machine, *gfns: int) -> Device:
    """Slots 0 at gfns 8..15 and 1 at 32..39; a device has `gfns` mapped in the exported root, and
    cached."""
    machine.add_slot(8, 8)
    machine.add_slot(32, 8, slot=1)
    device, hwpt = machine.attach(machine.export())
    for gfn in gfns:
        assert hwpt.io_fault(gfn, write=True)
        assert device.transact(gfn, write=True) is Dma.DONE
    return device


# Ranges.


@pytest.mark.parametrize(
    ("part", "gfns", "lost"),
    [
        (OneShortAtTheEnd, (39,), True),
        (OneShortAtTheEnd, (32, 39), True),
        (OneShortAtTheEnd, (32, 38), False),
        (OneShortAtTheStart, (32,), True),
        (OneShortAtTheStart, (32, 35), True),
        (OneShortAtTheStart, (33, 39), False),
        (RemoteTlb, (32, 39), False),
    ],
)
def test_a_range_flush_pays_for_what_it_covers(
    watch: Watch, part: type, gfns: tuple[int, ...], lost: bool
) -> None:
    machine = watch(SLOT_LEAVES, *([variant(part)] if part is not RemoteTlb else []))
    bound(machine, *gfns)
    machine.delete_slot(1)
    machine.expect(*(["O1 missing-flush", "O16 importer-not-told"] if lost else []))
    if lost:
        assert reported(machine, "missing-flush").gfn == min(gfns)
        assert reported(machine, "importer-not-told").gfn == min(gfns)
        assert "lost entries that nobody flushed" in reported(machine, "missing-flush").headline


def test_a_flush_of_other_frames_pays_nothing(watch: Watch) -> None:
    class Elsewhere(RemoteTlb):
        def flush_range(self, reason: str, gfn: int, pages: int) -> None:
            super().flush_range(reason, 8, 8)

    machine = watch(SLOT_LEAVES, variant(Elsewhere))
    bound(machine, 33)
    machine.delete_slot(1)
    machine.expect("O1 missing-flush", "O16 importer-not-told")


def test_a_flush_before_the_removal_pays_nothing(watch: Watch) -> None:
    class FlushFirst(Zapper):
        def zap_memslot_leafs(self, slot: object) -> None:
            self.kvm.mmu_lock.write_lock()
            self.tlb.flush("memslot-zap")
            self.zap_roots_leafs(slot.as_id, slot.base_gfn, slot.end_gfn)  # type: ignore[attr-defined]
            self.kvm.mmu_lock.write_unlock()

    machine = watch(SLOT_LEAVES, variant(FlushFirst))
    bound(machine, 33)
    machine.delete_slot(1)
    machine.expect("O1 missing-flush", "O16 importer-not-told")


def test_a_huge_leaf_that_sticks_out_of_the_range_is_flushed_by_what_touches_it(
    watch: Watch,
) -> None:
    class Beside(RemoteTlb):
        def flush_range(self, reason: str, gfn: int, pages: int) -> None:
            super().flush_range(reason, 8, 4)

    for parts, expected in (((Beside,), ["O1 missing-flush"]), ((), [])):
        machine = watch(variant(*parts), huge_2m=8)
        machine.add_slot(0, 16, max_level=2)
        machine.run(machine.vcpu(), w(5))
        machine.vm.change_attributes(5, 6)
        machine.expect(*expected)


# What the hardware still has.


def kept(machine: Machine) -> list[str]:
    """The headlines of what was kept behind an invalidation."""
    return [r.headline for r in machine.reporter.reports if r.code == "kept-after-invalidation"]


class IotlbForgotten(VtdDomain):
    """Only the device is told."""

    def flush_iotlb(self, pfn: int, mask: int, ih: bool) -> None:
        pass


class DeviceForgotten(VtdDomain):
    """Only the IOMMU is told."""

    def flush_dev_iotlb(self, pfn: int, pages: int) -> None:
        pass


@pytest.mark.parametrize(
    ("part", "cache"), [(IotlbForgotten, "IOTLB"), (DeviceForgotten, "device TLB")]
)
def test_a_cache_that_was_not_flushed_is_found_when_the_importers_return(
    watch: Watch, part: type, cache: str
) -> None:
    machine = watch(variant(part))
    machine.add_slot(8, 8)
    device, hwpt = machine.attach(machine.export(), ats=True)
    assert hwpt.io_fault(9, write=True)
    assert device.transact(9, write=True) is Dma.DONE
    machine.vm.change_attributes(8, 12)
    (headline,) = kept(machine)
    assert f"device0's {cache} still has frame" in headline
    assert "gfn 0x9 " in headline
    machine.expect("O1 kept-after-invalidation")
    machine.abandon()


def test_what_lies_beside_the_range_may_be_kept(watch: Watch) -> None:
    machine = watch()
    device = bound(machine, 8, 9, 12)
    machine.vm.change_attributes(8, 10)
    assert list(device.iotlb.entries) == [12]
    machine.assert_sound()


@pytest.mark.parametrize("hint", [True, False])
def test_a_partial_walk_into_a_table_that_was_removed_is_found(watch: Watch, hint: bool) -> None:
    """R23, where the hint reaches the hardware."""
    machine = watch(POSTED["r23-range-flush-with-hint"], iommu_hint=hint, huge_2m=8)
    machine.add_slot(0, 16, max_level=2)
    machine.log_dirty_pages()
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(5, write=True)
    assert device.transact(5, write=True) is Dma.DONE
    machine.set_flags(0)
    machine.expect(*(["O1 kept-after-invalidation"] if hint else []))
    assert [("a table that is not there" in line) for line in kept(machine)] == [True] * hint
    assert bool(device.iotlb.tables) == hint
    machine.abandon()


def test_a_part_of_a_huge_leaf_that_was_split_may_not_be_kept(watch: Watch) -> None:
    class KeepsHuge(TranslationCache):
        def drops_huge(self, key: int, gfn: int, end: int) -> bool:
            return False

    machine = watch(variant(KeepsHuge), huge_2m=8)
    machine.add_slot(0, 16, max_level=2)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(5, write=True)
    assert device.transact(6, write=True) is Dma.DONE
    machine.vm.change_attributes(5, 6)
    (headline,) = kept(machine)
    assert "by a huge leaf" in headline
    machine.expect("O1 kept-after-invalidation")
    machine.abandon()


def test_a_device_tlb_has_a_huge_leaf_as_one_entry(watch: Watch) -> None:
    """A flush of a few of its pages drops all of it, in every cache alike."""
    machine = watch(huge_2m=8)
    machine.add_slot(0, 16, max_level=2)
    device, hwpt = machine.attach(machine.export(), ats=True)
    assert hwpt.io_fault(5, write=True)
    assert [device.transact(gfn, write=True) for gfn in (6, 7)] == [Dma.DONE] * 2
    assert device.devtlb is not None
    assert len(device.devtlb.huge) == 1
    assert device.devtlb_hits == 1
    machine.vm.change_attributes(5, 6)
    assert not device.devtlb.huge
    machine.assert_sound()


# Who is owed.


def test_importers_that_are_not_told_are_owed_apart_from_vcpus(watch: Watch) -> None:
    machine = watch(variant(VcpusOnly))
    bound(machine, 33)
    machine.delete_slot(1)
    machine.expect("O16 importer-not-told")
    assert reported(machine, "importer-not-told").gfn == 33


def test_an_exported_root_without_an_importer_owes_importers_nothing(watch: Watch) -> None:
    machine = watch(variant(VcpusOnly))
    machine.add_slot(8, 8)
    machine.export()
    machine.run(machine.vcpu(), w(9))
    machine.delete_slot()
    machine.assert_sound()


def test_a_root_that_only_an_iommu_walks_owes_vcpus_nothing(watch: Watch) -> None:
    """Policy E tells importers alone; told of nothing, they are owed."""
    machine = watch(SEPARATE_ROOT)
    bound(machine, 9, 33)
    machine.run(machine.vcpu(), w(33))
    flushes = machine.record("flush_end", "importers_notified")
    machine.delete_slot(1)
    assert flushes.names() == ["importers_notified"]
    machine.assert_sound()

    silent = watch(SEPARATE_ROOT, variant(VcpusOnly))
    bound(silent, 33)
    silent.delete_slot(1)
    silent.expect("O16 importer-not-told")


def test_an_iommu_root_is_told_exactly_what_the_slot_had(watch: Watch) -> None:
    class OneShort(RemoteTlb):
        def notify_importers(self, gfn: int, pages: int) -> None:
            super().notify_importers(gfn, pages - 1)

    machine = watch(SEPARATE_ROOT, variant(OneShort))
    bound(machine, 38)
    machine.delete_slot(1)
    machine.expect()
    other = watch(SEPARATE_ROOT, variant(OneShort))
    bound(other, 39)
    other.delete_slot(1)
    other.expect("O16 importer-not-told")


def test_a_root_that_became_invalid_owes_nothing(watch: Watch) -> None:
    machine = watch()
    machine.add_slot(8, 8)
    machine.add_slot(32, 8, slot=1)
    machine.run(machine.vcpu(), w(9), w(33))
    flushes = machine.record("flush_end", "spte_zapped")
    machine.delete_slot(1)
    assert set(flushes.names()) == {"spte_zapped"}
    machine.assert_sound()


def test_once_the_process_is_gone_vcpus_are_owed_nothing_but_devices_are(watch: Watch) -> None:
    forgetful = watch(POSTED["r12-mm-exit-without-flush"])
    bound(forgetful, 33)
    forgetful.vm.exit_mm()
    forgetful.expect("O16 importer-not-told")

    machine = watch()
    bound(machine, 33)
    machine.vm.exit_mm()
    machine.expect()

    alone = watch(POSTED["r12-mm-exit-without-flush"])
    alone.add_slot(8, 8)
    alone.run(alone.vcpu(), w(9))
    alone.vm.exit_mm()
    alone.expect()


def test_un_export_of_a_live_root_without_a_flush_is_reported(watch: Watch) -> None:
    for variants, expected in (
        ([POSTED["r5-unexport-without-flush"]], ["O1 missing-flush"]),
        ([], []),
    ):
        machine = watch(*variants)
        machine.add_slot(8, 8)
        machine.run(vcpu := machine.vcpu(), w(9))
        machine.vm.close_tdp_fd(machine.vm.create_tdp_fd())
        machine.expect(*expected)
        vcpu.flush_local()


# Yields.


def in_turns(machine: Machine) -> None:
    """Every second look finds mmu_lock contended."""
    looks = itertools.count()
    machine.mmu_lock.needbreak = lambda: next(looks) % 2 == 1  # type: ignore[method-assign]


def test_a_zap_that_yields_pays_before_each_yield(watch: Watch) -> None:
    machine = watch(KEEP_VALID_YIELDING)
    bound(machine, 9, 12, 33, 37)
    events = machine.record("flush_end", "zap_yielded", "spte_zapped")
    in_turns(machine)
    machine.delete_slot(1)
    names = events.names()
    assert "zap_yielded" in names[names.index("spte_zapped") :], (
        "it yielded after it had removed something"
    )
    machine.assert_sound()


def test_a_zap_that_yields_without_paying_is_reported(watch: Watch) -> None:
    class YieldInDebt(Yielding):
        def iter_cond_resched(self, it: TdpIter, flush: bool, shared: bool) -> bool:
            return super().iter_cond_resched(it, False, shared)

    machine = watch(KEEP_VALID_YIELDING, variant(YieldInDebt))
    bound(machine, 9, 12, 33, 37)
    in_turns(machine)
    machine.delete_slot(1)
    machine.expect("O1 missing-flush", "O16 importer-not-told")
    assert reported(machine, "missing-flush").gfn == 9


def test_a_fault_that_maps_behind_a_zap_while_it_yields_is_no_fault_of_the_zap(
    watch: Watch,
) -> None:
    """Slot 0 stays: what a vCPU maps of it meanwhile is neither owed (O1) nor left over (O15)."""
    machine = watch(KEEP_VALID_YIELDING)
    bound(machine, 9, 12, 33, 37)
    vcpu = machine.vcpu()
    faults: list[object] = []

    def fault() -> None:
        machine.run(vcpu, w(9))

    def one_more(*_: object) -> None:
        if not faults:
            faults.append(blocked(machine.runtime, fault, at=lambda _: machine.mmu_lock.waiters()))

    machine.on(spte_zapped=one_more)
    done = machine.record("zap_leafs_done")
    machine.delete_slot(1)
    finish(machine.runtime, *faults)  # type: ignore[arg-type]
    assert [args[3] for args in done.args("zap_leafs_done")] == [True]
    assert 9 in machine.leaves(machine.root())
    machine.assert_sound()


# Under the read lock.


class ClearAtOnce(SpteWriter):
    """The entry is cleared, and flushed afterwards."""

    def zap_spte_atomic(self, it: TdpIter) -> bool:
        if not self.iter_set_spte_atomic(it, 0):
            return False
        self.tlb.flush_range("zap-atomic", it.gfn, self.kvm.geometry.pages(it.level))
        return True


def collapse(machine: Machine) -> None:
    """Dirty logging goes on and off: the tables that huge pages were split into are zapped under
    mmu_lock(read)."""
    machine.add_slot(0, 16, max_level=2)
    machine.run(machine.vcpu(), w(5))
    machine.log_dirty_pages()
    machine.set_flags(0)


def test_an_entry_that_is_not_frozen_before_it_is_flushed_is_reported(watch: Watch) -> None:
    machine = watch(variant(ClearAtOnce), huge_2m=8)
    collapse(machine)
    machine.expect("O1 removed-without-freezing")
    report = reported(machine, "removed-without-freezing")
    assert report.gfn == 4
    assert "new 0x0 (not present)" in evidence(report, "SPTE")
    assert "mmu_lock(read)" in report.headline


def test_an_entry_that_is_frozen_flushed_and_cleared_is_in_order(watch: Watch) -> None:
    machine = watch(huge_2m=8)
    removed = machine.record("spte_zapped")
    collapse(machine)
    frozen = [args[1:3] for args in removed.args("spte_zapped") if args[4] == REMOVED_SPTE]
    assert (4, 2) in frozen
    machine.assert_sound()


def test_an_invalid_root_may_be_cleared_without_freezing(watch: Watch) -> None:
    machine = watch()
    machine.add_slot(8, 8)
    machine.add_slot(32, 8, slot=1)
    machine.run(machine.vcpu(), w(9))
    removed = machine.record("spte_zapped")
    machine.delete_slot(1)
    assert {args[4:] for args in removed.args("spte_zapped")} >= {(0, True)}, (
        "not frozen, and under the read lock"
    )
    machine.assert_sound()


def over_a_table(machine: Machine) -> None:
    """A huge leaf takes the place of a table, by a fault under mmu_lock(read); the thread then uses
    mmu_lock for write."""
    machine.add_slot(0, 16, max_level=2)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(5))
    machine.log_dirty_pages()
    machine.vm.huge.is_collapsible = lambda *_: False  # type: ignore[method-assign]
    machine.set_flags(0)
    assert machine.huge_leaves() == []
    assert machine.fault(vcpu, 5, write=True) is RetPf.FIXED
    assert machine.huge_leaves() == [(4, 2)]
    vcpu.flush_local()
    with writing(machine.mmu_lock):
        pass


def test_a_huge_leaf_over_a_table_is_no_removal_and_its_flush_pays(watch: Watch) -> None:
    machine = watch(huge_2m=8)
    over_a_table(machine)
    machine.assert_sound()


def test_a_huge_leaf_over_a_table_without_a_flush_is_reported(watch: Watch) -> None:
    class NoFlush(HugePages):
        def flush_replaced(self, gfn: int, level: int) -> None:
            pass

    machine = watch(variant(NoFlush), huge_2m=8)
    over_a_table(machine)
    machine.expect("O1 missing-flush")


def test_a_removal_under_the_read_lock_that_nobody_flushes_is_reported_when_the_call_returns(
    watch: Watch,
) -> None:
    class FreezeOnly(SpteWriter):
        def zap_spte_atomic(self, it: TdpIter) -> bool:
            if not self.iter_set_spte_atomic(it, REMOVED_SPTE):
                return False
            it.sp.spt.store(it.index, 0)
            return True

    machine = watch(variant(FreezeOnly), huge_2m=8)
    collapse(machine)
    found = machine.news()
    machine.abandon()
    assert found == {"O1 missing-flush"}
