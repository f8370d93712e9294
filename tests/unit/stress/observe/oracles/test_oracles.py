"""Each oracle fires when its rule is broken, on one thread, without any luck - and is silent when
it is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmu.export.tdp_fd import Exporter
from mmu.kvm import VmConfig
from mmu.machine.vm import VirtualMachine
from mmu.memory.memslots import MemoryRegion
from mmu.paging.table import RootRole
from mmu.probe import Probe
from mmu.report import Reporter
from mmu.tdp.fault import RetPf
from mmu.tdp.iter import TdpIter
from mmu.tdp.zap import Zapper
from mmu.variant import Variant
from stress.mutants import MUTANTS
from stress.observe.oracles import ORACLES, attach_all
from stress.scenario.types import Limits, Seconds


class Script:
    """A guest that makes the given accesses."""

    def __init__(self, *accesses: tuple[int, bool]) -> None:
        self._accesses = [gfn << 1 | write for gfn, write in accesses]

    def next_access(self) -> int:
        return self._accesses.pop(0)


class Bench:
    """A VM under every oracle, with a vCPU, an exported root, a device, and two slots."""

    def __init__(self, *variants: Variant, limits: Limits | None = None) -> None:
        self.reporter = Reporter(sink=None)
        self.vm = VirtualMachine(
            VmConfig(frames=256), variants, reporter=self.reporter, probe=Probe()
        )
        attach_all(self.vm, limits or Limits())
        self.regions = [self.add(0, 0), self.add(1, 1024)]
        self.vcpu = self.vm.create_vcpu()
        self.fd = self.vm.create_tdp_fd()
        self.device = self.vm.create_device()
        self.hwpt = self.vm.attach(self.device, self.fd)
        _made.append(self)

    def add(self, slot: int, gfn: int, as_id: int = 0) -> object:
        region = self.vm.host.mmap(16)
        self.vm.host.assign(region, gfn)
        self.vm.set_user_memory_region(MemoryRegion(slot, gfn, 16, region, 0, as_id))
        return region

    def touch(self) -> None:
        """Map gfn 1024 through the vCPU, use it from the device."""
        self.vcpu.run(Script((1024, True), (0, True)), 2)
        assert self.device.transact(1024, write=True)

    def delete(self) -> None:
        """Delete slot 1 and release its memory."""
        self.vm.set_user_memory_region(MemoryRegion(1, 0, 0))
        self.vm.host.munmap(self.regions[1])  # type: ignore[arg-type]

    def codes(self) -> set[str]:
        return {report.code for report in self.reporter.reports}


_made: list[Bench] = []


@pytest.fixture(autouse=True)
def everything_ends() -> Iterator[None]:
    """No thread of a bench outlives its test."""
    yield
    while _made:
        _made.pop().vm.kvm.rcu.shutdown()


def test_the_correct_protocol_is_silent() -> None:
    bench = Bench()
    bench.touch()
    bench.delete()
    assert bench.device.transact(1024, write=True) is None
    assert not bench.hwpt.io_fault(1024, write=True)
    bench.hwpt.destroy()
    bench.fd.put()
    bench.vm.put()
    assert bench.codes() == set()


def test_a_stale_iotlb_entry_is_seen_when_it_is_used() -> None:
    bench = Bench(MUTANTS["importers-not-notified"])
    bench.touch()
    bench.delete()
    assert bench.codes() == {"importer-not-told"}
    bench.device.transact(1024, write=True)
    assert bench.codes() == {"importer-not-told", "stale-tlb"}


def test_a_stale_vcpu_tlb_entry_is_seen_when_it_is_used() -> None:
    bench = Bench(MUTANTS["no-flush-after-exported-zap"])
    bench.touch()
    bench.delete()
    assert {"missing-flush", "importer-not-told"} <= bench.codes()
    bench.vcpu.run(Script((1024, False)), 1)
    reports = {report.code: report for report in bench.reporter.reports}
    assert "vcpu0 used gfn 0x400" in reports["stale-tlb"].render()
    assert "has been released" in reports["stale-tlb"].render()


def test_a_leaf_that_survives_its_slot_is_seen_when_the_call_returns() -> None:
    class KeepsLeaves(Zapper):
        def zap_exported_roots(self) -> None:
            pass

    bench = Bench(Variant("keeps-leaves", "keeps leaves", (KeepsLeaves,)))
    bench.touch()
    bench.delete()
    assert "leaf-of-deleted-slot" in bench.codes()
    bench.device.transact(1024, write=True)
    assert "stale-map" in bench.codes()


def test_an_obsolete_shadow_page_is_seen_when_the_call_returns() -> None:
    bench = Bench(MUTANTS["obsolete-zap-not-restarted"])
    bench.vcpu.shadow(11)
    bench.vm.kvm.mmu_lock.needbreak = lambda: True  # type: ignore[method-assign]
    bench.delete()
    assert bench.codes() == {"obsolete-shadow-page"}


def test_invalidating_an_exported_root_is_seen_at_once() -> None:
    bench = Bench(MUTANTS["exported-root-invalidated"])
    bench.touch()
    bench.delete()
    assert "exported-root-invalid" in bench.codes()


def test_a_guest_on_an_obsolete_root_is_seen_at_entry() -> None:
    bench = Bench()
    bench.add(2, 0, as_id=1)
    vcpu = bench.vcpu
    vcpu.set_smm(True)
    vcpu.run(Script((1, False)), 1)
    root = vcpu.root
    bench.delete()
    assert root is not None
    assert root.invalid.value
    vcpu.state.requests.store(0)
    vcpu.run(Script((1, False)), 1)
    assert "guest-on-obsolete-root" in bench.codes()


def test_mapping_in_an_obsolete_root_is_seen() -> None:
    bench = Bench(MUTANTS["stale-check-skipped"])
    kvm = bench.vm.kvm
    kvm.mmu_lock.write_lock()
    root = bench.vm.roots.get_vcpu_root(RootRole(1))
    bench.vm.roots.invalidate(root)
    kvm.mmu_lock.write_unlock()
    bench.add(3, 0, as_id=1)
    bench.vcpu.set_smm(True)
    bench.vcpu.root = root
    bench.vcpu.run(Script((1, False)), 1)
    assert "map-in-obsolete-root" in bench.codes()


def test_an_untrue_answer_to_an_io_fault_is_seen() -> None:
    class SpuriousIsFailure(Exporter):
        def answer(self, result: RetPf) -> bool:
            return result is RetPf.FIXED

    bench = Bench(Variant("r7", "R7: a spurious IO fault is failed", (SpuriousIsFailure,)))
    bench.touch()
    assert not bench.hwpt.io_fault(1024, write=True)
    assert "io-fault-answer" in bench.codes()


def test_a_callback_after_destroy_is_seen() -> None:
    bench = Bench()
    bench.touch()
    bench.hwpt.live.store(False)
    bench.delete()
    assert "callback-after-unregister" in bench.codes()


def test_a_long_write_hold_is_seen_and_a_short_one_is_not() -> None:
    assert "long-write-hold" not in Bench().codes()
    bench = Bench(limits=Limits(write_hold_s=Seconds(1e-9)))
    assert "long-write-hold" in bench.codes()


def test_a_write_after_release_is_seen_when_the_frame_is_used_again() -> None:
    reporter = Reporter(sink=None)
    vm = VirtualMachine(VmConfig(frames=2), reporter=reporter)
    attach_all(vm, Limits())
    first, second = vm.host.mmap(1), vm.host.mmap(1)
    vm.host.assign(first, 5)
    pfn = vm.host.fault_in(first, 0)
    vm.host.munmap(first)
    vm.host.word[pfn] = 5 + 1
    vm.host.fault_in(second, 0)
    assert {report.code for report in reporter.reports} == {"write-after-release"}


def test_every_oracle_says_what_it_watches() -> None:
    for oracle in ORACLES:
        assert oracle.rules
        assert oracle.title


def entered_after_the_nested_root_went(*variants: Variant) -> Bench:
    """A vCPU enters the guest on the exported root, which stays valid, after its nested guest's
    root has become obsolete."""
    bench = Bench(*variants)
    bench.vcpu.set_guest_mode(True)
    bench.vcpu.run(Script((1024, True)), 1)
    bench.vcpu.set_guest_mode(False)
    bench.delete()
    bench.vcpu.run(Script((0, False)), 1)
    return bench


def test_an_obsolete_root_that_is_kept_for_later_is_seen_at_entry() -> None:
    bench = entered_after_the_nested_root_went(MUTANTS["obsolete-previous-root-kept"])
    assert [root.invalid.value for root in bench.vcpu.prev_roots] == [True]
    assert bench.codes() == {"obsolete-root-kept"}


def test_a_valid_root_may_be_kept_for_later() -> None:
    bench = entered_after_the_nested_root_went()
    assert bench.vcpu.prev_roots == []
    bench.vcpu.set_guest_mode(True)
    bench.vcpu.run(Script((0, False)), 1)
    assert [root.invalid.value for root in bench.vcpu.prev_roots] == [False]
    assert bench.codes() == set()


def test_a_vm_that_is_gone_before_its_tdp_fd_is_seen_when_it_is_used() -> None:
    bench = Bench(MUTANTS["tdp-fd-without-vm-reference"])
    bench.vm.put()
    assert bench.vm.destroyed.value
    assert bench.codes() == {"leak-roots", "leak-page-table-memory"}
    bench.hwpt.io_fault(0, write=True)
    bench.hwpt.destroy()
    bench.fd.put()
    subjects = {
        report.subject for report in bench.reporter.reports if report.code == "vm-used-after-free"
    }
    assert subjects == {"IO page fault", "mmu_lock"}


def yielded_while_its_root_went(*, held: bool) -> Bench:
    """A walk of a root yields, and meanwhile its last reference goes - unless the walk holds one of
    its own."""
    bench = Bench()
    vm, kvm = bench.vm, bench.vm.kvm
    kvm.mmu_lock.write_lock()
    root = vm.roots.allocate_root(RootRole(1))
    kvm.rcu.read_lock()  # keeps the root from being freed: its next use would be another report
    kvm.rcu.read_lock()
    it = TdpIter(kvm, root, 1, 0, 1 << 20)
    while it.next_last_level_gfn == it.yielded_gfn:
        it.next()
    if held:
        vm.roots.get_root(root)
    looks = iter([True])

    def contended() -> bool:
        if not next(looks, False):
            return False
        vm.roots.invalidate(root)
        vm.roots.put_root(root, shared=False)
        vm.roots.put_root(root, shared=False)
        return True

    kvm.mmu_lock.needbreak = contended  # type: ignore[method-assign]
    assert vm.yielding.iter_cond_resched(it, False, False)
    kvm.rcu.read_unlock()
    kvm.rcu.read_unlock()
    if held:
        vm.roots.put_root(root, shared=False)
    kvm.mmu_lock.write_unlock()
    return bench


def test_a_walk_that_goes_on_in_a_root_that_is_gone_is_seen() -> None:
    assert yielded_while_its_root_went(held=False).codes() == {"walk-of-dead-root"}


def test_a_walk_that_holds_its_root_may_go_on() -> None:
    assert yielded_while_its_root_went(held=True).codes() == set()
