"""Page faults against what makes them stale: MMU notifiers and invalidated roots."""

from __future__ import annotations

from mmu.kvm import Invalidation
from mmu.machine.vcpu import Vcpu
from mmu.memory.host import Region
from mmu.tdp.fault import Fault, FaultHandler, RetPf
from mmu.variant import Variant
from stress.selftest.litmus.base import (
    Family,
    LitmusBench,
    Tasks,
    acceptable,
    forbidden,
    interesting,
)
from stress.selftest.litmus.tinyvm import TinyVm

FAMILY = Family("faults", "page faults and what makes them stale")


def _what_is_mapped(tiny: TinyVm, region: Region, vcpu: Vcpu) -> str:
    """Whether the root maps for gfn 0 what the host maps."""
    assert vcpu.root is not None
    mapped = tiny.mapped(vcpu.root, 0)
    return (
        "nothing mapped"
        if mapped == "none"
        else "right page"
        if mapped == f"frame {region.ptes[0]}"
        else "old page"
    )


def _migration(bench: LitmusBench, *, too_late: bool = False) -> Tasks:
    """A fault, and a page that the host moves to another frame."""
    tiny = bench.vm(have_exported_tdp=False)
    region = tiny.slot()
    vcpu = tiny.vcpu()
    tiny.vm.host.fault_in(region, 0)
    notifier, host = tiny.vm.notifier, tiny.vm.host

    def fault() -> str:
        return tiny.fault(vcpu, 0).name

    def migration() -> None:
        notifier.invalidate_range_start(region, 0, 1)
        if not too_late:
            host.migrate(region, 0, 1)
        notifier.invalidate_range_end(region, 0, 1)
        if too_late:
            host.migrate(region, 0, 1)

    return Tasks(fault, migration, after=lambda: _what_is_mapped(tiny, region, vcpu))


_MIGRATION_GRADES = {
    "FIXED, nothing mapped": acceptable("mapped before the invalidation, which has zapped it"),
    "FIXED, right page": acceptable("mapped after the invalidation"),
    "RETRY, nothing mapped": acceptable(
        "the fault began before the invalidation was over, so it tries again"
    ),
    "FIXED, old page": forbidden("a page that the host has taken back is mapped behind the zap"),
}


@FAMILY.program(
    "notifier-against-fault",
    title="the host moves a page while a vCPU faults on it",
    rule=(
        "a fault takes the sequence count before it looks up the page, and compares it under "
        "mmu_lock"
    ),
    source="is_page_fault_stale(), mmu_invalidate_retry_hva(); reference 2.8, 2.10",
    grades=_MIGRATION_GRADES,
)
def notifier_against_fault(bench: LitmusBench) -> Tasks:
    """Range start, migration, range end, as they are."""
    return _migration(bench)


class LateSnapshot(FaultHandler):
    """The page first, the sequence count then."""

    def faultin_pfn(self, fault: Fault) -> RetPf:
        """Take the snapshot when the page is known."""
        result = super().faultin_pfn(fault)
        fault.mmu_seq = self._seq.value
        return result


@FAMILY.program(
    "snapshot-after-lookup",
    title="a fault that takes the sequence count after it has looked up the page",
    rule="the sequence count is read before the page is looked up, with a read barrier in between",
    source="kvm_faultin_pfn() smp_rmb(); reference 2.8",
    broken=True,
    variants=(
        Variant("late-snapshot", "the sequence count is read after the page", (LateSnapshot,)),
    ),
    grades=_MIGRATION_GRADES,
)
def snapshot_after_lookup(bench: LitmusBench) -> Tasks:
    """A whole invalidation fits between the two reads."""
    return _migration(bench)


@FAMILY.program(
    "page-taken-after-range-end",
    title="the host takes the page after it has told KVM that it is done",
    rule="a page is taken away between range start and range end, when no fault can map it",
    source="mmu_notifier_invalidate_range_start/end(); reference 2.10",
    broken=True,
    grades=_MIGRATION_GRADES,
)
def page_taken_after_range_end(bench: LitmusBench) -> Tasks:
    """A fault in the gap maps what is about to go."""
    return _migration(bench, too_late=True)


@FAMILY.program(
    "notifier-other-page",
    title="the host takes one page while a vCPU faults on its neighbour",
    rule=(
        "faults outside the range go on while an invalidation is in progress, and try again only "
        "if it ended meanwhile"
    ),
    source="mmu_invalidate_retry_hva(); B49 (4a42d848db95)",
    grades={
        "FIXED, mapped": acceptable("mapped before the invalidation, or beside it"),
        "FIXED, not mapped": acceptable("mapped after the invalidation"),
        "RETRY, not mapped": interesting(
            "the sequence count has no range: an end in between makes every fault try again"
        ),
        "RETRY, mapped": forbidden("nobody else could have mapped it"),
    },
)
def notifier_other_page(bench: LitmusBench) -> Tasks:
    """Why the range is kept at all."""
    tiny = bench.vm(have_exported_tdp=False)
    region = tiny.slot(npages=2)
    vcpu = tiny.vcpu()
    tiny.vm.host.fault_in(region, 1)
    root = vcpu.root
    assert root is not None

    def fault() -> str:
        return tiny.fault(vcpu, 1).name

    def invalidation() -> str:
        tiny.vm.notifier.invalidate_range_start(region, 0, 1)
        beside = tiny.mapped(root, 1)
        tiny.vm.notifier.invalidate_range_end(region, 0, 1)
        return "not mapped" if beside == "none" else "mapped"

    return Tasks(fault, invalidation)


class EndTurnedRound(Invalidation):
    """kvm_mmu_invalidate_end() with its two halves exchanged."""

    def end(self) -> None:
        """Not in progress any more, and only then another sequence."""
        self.in_progress.fetch_add(-1)
        self.seq.add(1)


def _unsafe_check(bench: LitmusBench, kind: type[Invalidation]) -> Tasks:
    """A fault that looks for an invalidation without mmu_lock, once it knows that one has begun."""
    kvm = bench.vm().kvm
    invalidation = kind(kvm)
    pte, begun = bench.cell("host PTE", "old page"), bench.cell("begun", False)

    def fault() -> str:
        seq = invalidation.seq.value
        page = pte.value
        if not begun.value:
            return "not begun"
        if invalidation.in_range(0) or invalidation.seq.value != seq:
            return "retry"
        return f"goes on with {page}"

    def notifier() -> None:
        kvm.mmu_lock.write_lock()
        invalidation.begin(0, 1)
        kvm.mmu_lock.write_unlock()
        begun.value = True
        pte.value = "new page"
        kvm.mmu_lock.write_lock()
        invalidation.end()
        kvm.mmu_lock.write_unlock()

    return Tasks(fault, notifier)


_UNSAFE_GRADES = {
    "not begun": acceptable("the check comes before the invalidation: mmu_lock decides later"),
    "retry": acceptable("in progress, or over since the snapshot"),
    "goes on with new page": acceptable("the fault began when the invalidation was over"),
    "goes on with old page": forbidden(
        "begun and not noticed: the check has slipped through between the two halves of the end"
    ),
}


@FAMILY.program(
    "invalidate-end-order",
    title="the sequence goes up, then the invalidation is over",
    rule=(
        "kvm_mmu_invalidate_end() raises the sequence before it lowers in_progress, so that no "
        "check passes between the two"
    ),
    source=(
        "kvm_mmu_invalidate_end() smp_wmb(); mmu_invalidate_retry_gfn_unsafe(), d02c357e5bfa; "
        "reference 2.10"
    ),
    grades=_UNSAFE_GRADES,
)
def invalidate_end_order(bench: LitmusBench) -> Tasks:
    """The check without mmu_lock that 6.8 makes first."""
    return _unsafe_check(bench, Invalidation)


@FAMILY.program(
    "invalidate-end-turned-round",
    title="the invalidation is over, then the sequence goes up",
    rule="the sequence goes up before in_progress goes down",
    source="kvm_mmu_invalidate_end() smp_wmb(); reference 2.10",
    broken=True,
    grades=_UNSAFE_GRADES,
)
def invalidate_end_turned_round(bench: LitmusBench) -> Tasks:
    """There is a moment when nothing is in progress and nothing has changed."""
    return _unsafe_check(bench, EndTurnedRound)


@FAMILY.program(
    "invalid-root-against-fault",
    title="a fault on a root that is being invalidated and zapped",
    rule="after mmu_lock is taken, a fault whose root was invalidated is repeated",
    source="is_page_fault_stale(); B36 (a955cad84cda), reference 2.7, 2.8",
    grades={
        "FIXED, empty": acceptable("mapped before the invalidation, zapped after it"),
        "RETRY, empty": acceptable("the root was invalid by then"),
        "FIXED, leaks": forbidden("mapped behind the zapper: nobody will ever zap it"),
        "map-in-obsolete-root": forbidden("the fault has not asked"),
    },
)
def invalid_root_against_fault(bench: LitmusBench) -> Tasks:
    """Invalidate under the write lock, zap under the read lock, with a fault anywhere."""
    tiny = bench.vm(have_exported_tdp=False)
    tiny.slot()
    tiny.vm.host.fault_in(tiny.slot_object().region, 0)
    vcpu, kvm = tiny.vcpu(), tiny.kvm
    root = vcpu.root
    assert root is not None

    def fault() -> str:
        return tiny.fault(vcpu, 0).name

    def zapper() -> None:
        kvm.mmu_lock.write_lock()
        tiny.vm.roots.invalidate_all_roots()
        kvm.mmu_lock.write_unlock()
        tiny.vm.zapper.zap_invalidated_roots()

    return Tasks(fault, zapper, after=lambda: "leaks" if any(root.spt) else "empty")
