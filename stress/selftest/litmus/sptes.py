"""SPTEs: faults beside faults, frozen entries, bits that hardware sets, and the dirty log."""

from __future__ import annotations

from mmu.machine.vcpu import Vcpu
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.paging.spte import SPTE_A, SPTE_D, SPTE_W
from mmu.tdp.fault import RetPf
from mmu.tdp.iter import TdpIter
from mmu.tdp.write import SpteWriter
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

FAMILY = Family("sptes", "SPTEs")


def _two_faults(bench: LitmusBench, *, linked: bool) -> Tasks:
    tiny = bench.vm()
    root = tiny.root()
    if linked:
        tiny.map_pfn(root, tiny.full_cache(), 1, 2)
    caches = tiny.full_cache(), tiny.full_cache()
    tables_before, leaves_before = tiny.kvm.stat.tdp_mmu_pages.value, tiny.kvm.stat.leaves()

    def one() -> str:
        return tiny.map_pfn(root, caches[0], 0, 1).name

    def other() -> str:
        return tiny.map_pfn(root, caches[1], 0, 1).name

    def after() -> str:
        tables, leaves = (
            tiny.kvm.stat.tdp_mmu_pages.value - tables_before,
            tiny.kvm.stat.leaves() - leaves_before,
        )
        return f"{tables} tables, {leaves} leaf"

    return Tasks(one, other, after=after)


@FAMILY.program(
    "two-faults-one-spte",
    title="two vCPUs fault on one page",
    rule=(
        "an SPTE is installed by compare-exchange: one fault maps, the other finds it mapped or "
        "tries again"
    ),
    source="tdp_mmu_map_handle_target_level(), reference 2.8",
    grades={
        "FIXED, SPURIOUS, 0 tables, 1 leaf": acceptable("the second came when it was mapped"),
        "SPURIOUS, FIXED, 0 tables, 1 leaf": acceptable("the second came when it was mapped"),
        "FIXED, RETRY, 0 tables, 1 leaf": acceptable(
            "the second was overtaken between look and compare-exchange"
        ),
        "RETRY, FIXED, 0 tables, 1 leaf": acceptable(
            "the first was overtaken between look and compare-exchange"
        ),
        "FIXED, FIXED, 0 tables, 2 leaf": forbidden(
            "both have mapped it: the page is counted twice"
        ),
    },
)
def two_faults_one_spte(bench: LitmusBench) -> Tasks:
    """The table is there already."""
    return _two_faults(bench, linked=True)


@FAMILY.program(
    "link-sp",
    title="two vCPUs fault on one page without a table",
    rule=(
        "a table is linked by compare-exchange; who loses frees his own, which nobody has seen, "
        "and tries again"
    ),
    source="tdp_mmu_link_sp(), kvm_tdp_mmu_map(), reference 2.8",
    grades={
        "FIXED, SPURIOUS, 1 tables, 1 leaf": acceptable("the second came when it was mapped"),
        "SPURIOUS, FIXED, 1 tables, 1 leaf": acceptable("the second came when it was mapped"),
        "FIXED, RETRY, 1 tables, 1 leaf": acceptable(
            "the second lost the race for the table or for the leaf"
        ),
        "RETRY, FIXED, 1 tables, 1 leaf": acceptable(
            "the first lost the race for the table or for the leaf"
        ),
        "FIXED, FIXED, 2 tables, 2 leaf": forbidden("one table has replaced the other"),
    },
)
def link_sp(bench: LitmusBench) -> Tasks:
    """Both bring a table."""
    return _two_faults(bench, linked=False)


class ZapWithoutFreezing(SpteWriter):
    """The zap before 5.12: the entry is cleared, flushed, and cleared again."""

    def zap_spte_atomic(self, it: TdpIter) -> bool:
        """No frozen value in between."""
        if not self.iter_set_spte_atomic(it, 0):
            return False
        self.tlb.flush_range("zap-atomic", it.gfn, 1)
        it.sp.spt.store(it.index, 0)
        return True


def _zap_against_fault(bench: LitmusBench) -> Tasks:
    tiny = bench.vm(have_exported_tdp=False)
    root, kvm = tiny.root(), tiny.kvm
    tiny.map_pfn(root, tiny.full_cache(), 0, 1)
    cache = tiny.full_cache()

    def zapper() -> None:
        kvm.mmu_lock.read_lock()
        kvm.rcu.read_lock()
        tiny.vm.writer.zap_spte_atomic(tiny.iter_at(root, 0))
        kvm.rcu.read_unlock()
        kvm.mmu_lock.read_unlock()

    def fault() -> str:
        return tiny.map_pfn(root, cache, 0, 1).name

    return Tasks(zapper, fault, after=lambda: tiny.mapped(root, 0))


_FROZEN_GRADES = {
    "SPURIOUS, none": acceptable(
        "the fault came before the zap, which has taken the leaf away since"
    ),
    "RETRY, none": acceptable("the fault met the frozen entry"),
    "FIXED, frame 1": acceptable("the fault came after the zap"),
    "FIXED, none": forbidden(
        "the leaf of a fault was cleared by somebody who did not know it: it is counted, and gone"
    ),
}


@FAMILY.program(
    "frozen-spte",
    title="an atomic zap against a fault",
    rule="while an entry is frozen nobody else changes it; faults try again",
    source="tdp_mmu_zap_spte_atomic(), reference 2.6; B06 (08f07c800e9d), B41 (f5d16bb9be68)",
    grades=_FROZEN_GRADES,
)
def frozen_spte(bench: LitmusBench) -> Tasks:
    """Freeze, flush, clear - beside a fault, both under mmu_lock for read."""
    return _zap_against_fault(bench)


@FAMILY.program(
    "zap-without-freezing",
    title="an atomic zap that clears the entry before its flush",
    rule="while an entry is being zapped and flushed it must be frozen",
    source="B06 (08f07c800e9d)",
    broken=True,
    variants=(
        Variant(
            "zap-without-freezing", "the entry is cleared before the flush", (ZapWithoutFreezing,)
        ),
    ),
    grades=_FROZEN_GRADES,
)
def zap_without_freezing(bench: LitmusBench) -> Tasks:
    """The fault gets in between the two stores."""
    return _zap_against_fault(bench)


@FAMILY.program(
    "removed-table-against-fault",
    title="the removal of a table under the read lock against a fault in it",
    rule=(
        "every entry of a removed table is frozen, and what is found there on the way is accounted "
        "for"
    ),
    source="handle_removed_pt(shared), reference 2.6",
    grades={
        "FIXED, 0 leaves": acceptable("mapped before the removal reached it"),
        "FIXED, 1 leaves": acceptable("mapped in a table of its own, after the removal"),
        "RETRY, 0 leaves": acceptable("the fault met the frozen entry, or lost the race for it"),
    },
)
def removed_table_against_fault(bench: LitmusBench) -> Tasks:
    """zap_invalidated_roots() works like this beside faults."""
    tiny = bench.vm()
    root, kvm = tiny.root(), tiny.kvm
    tiny.map_pfn(root, tiny.full_cache(), 1, 2)
    cache = tiny.full_cache()

    def zapper() -> None:
        kvm.mmu_lock.read_lock()
        kvm.rcu.read_lock()
        it = tiny.iter_at(root, 0, 2)
        tiny.vm.writer.iter_set_spte_atomic(it, 0)
        kvm.rcu.read_unlock()
        kvm.mmu_lock.read_unlock()

    def fault() -> str:
        return tiny.map_pfn(root, cache, 0, 1).name

    return Tasks(zapper, fault, after=lambda: f"{kvm.stat.leaves()} leaves")


# Bits that hardware sets.


class PlainStore(SpteWriter):
    """The exclusive setter before 5.18: it trusts the value that it has read."""

    def has_volatile_bits(self, spte: int, level: int) -> bool:  # noqa: ARG002 - nobody asks
        """Never."""
        return False


def _clean_leaf(tiny: TinyVm, vcpu: Vcpu, gfn: int) -> None:
    """Map a page writable, neither accessed nor dirty."""
    tiny.map(vcpu, gfn, write=True)
    assert vcpu.root is not None
    sp = tiny.table_of(vcpu.root, gfn)
    sp.spt.store(gfn, sp.spt[gfn] & ~(SPTE_A | SPTE_D))


def _dirty_bit(bench: LitmusBench) -> Tasks:
    tiny = bench.vm()
    tiny.slot()
    vcpu, kvm = tiny.vcpu(), tiny.kvm
    _clean_leaf(tiny, vcpu, 0)
    root = vcpu.root
    assert root is not None
    leaf = tiny.spte(root, 0)

    def hardware() -> str:
        return "written" if vcpu.walk(0, write=True) & SPTE_W else "faulted"

    def zapper() -> None:
        kvm.mmu_lock.write_lock()
        kvm.rcu.read_lock()
        sp = tiny.table_of(root, 0)
        tiny.vm.writer.set_spte(sp, 0, 0, sp.spt[0], 0)
        kvm.rcu.read_unlock()
        kvm.mmu_lock.write_unlock()

    def after() -> str:
        return "dirty" if kvm.pfn_dirtied[leaf >> 12 & 0xFF] else "clean"

    return Tasks(hardware, zapper, after=after)


_DIRTY_GRADES = {
    "written, dirty": acceptable("hardware has set D, and the zapper has seen it"),
    "faulted, clean": acceptable("the leaf was gone, or went while hardware was setting D"),
    "written, clean": forbidden(
        "hardware has set D and nobody knows: the page is dropped without being written back"
    ),
}


@FAMILY.program(
    "dirty-bit-xchg",
    title="a hardware walker sets D while the leaf is zapped",
    rule=(
        "a leaf with volatile bits is replaced by exchange, which returns the bits that hardware "
        "has set meanwhile"
    ),
    source="tdp_mmu_set_spte(), reference 2.6; B56 (ba3a6120a4e7), oracle O8",
    grades=_DIRTY_GRADES,
)
def dirty_bit_xchg(bench: LitmusBench) -> Tasks:
    """The exclusive setter is exclusive among software only."""
    return _dirty_bit(bench)


@FAMILY.program(
    "dirty-bit-plain-store",
    title="a hardware walker sets D while the leaf is zapped by a plain store",
    rule="a leaf with volatile bits may not be replaced by a plain store",
    source="B56 (ba3a6120a4e7)",
    broken=True,
    variants=(Variant("plain-store", "the exclusive setter stores plainly", (PlainStore,)),),
    grades=_DIRTY_GRADES,
)
def dirty_bit_plain_store(bench: LitmusBench) -> Tasks:
    """The D bit is lost."""
    return _dirty_bit(bench)


def _clear_accessed(bench: LitmusBench) -> Tasks:
    """Two walkers and a clearing of bits that must not bring anything back."""
    tiny = bench.vm()
    tiny.slot()
    vcpu, kvm = tiny.vcpu(), tiny.kvm
    tiny.map(vcpu, 0, write=True)
    root = vcpu.root
    assert root is not None
    sp = tiny.table_of(root, 0)
    sp.spt.store(0, sp.spt[0] & ~SPTE_D)

    def hardware() -> str:
        return "written" if vcpu.walk(0, write=True) & SPTE_W else "faulted"

    def protector() -> None:
        kvm.mmu_lock.write_lock()
        kvm.rcu.read_lock()
        tiny.vm.writer.clear_spte_bits(tiny.iter_at(root, 0), SPTE_W)
        kvm.rcu.read_unlock()
        kvm.mmu_lock.write_unlock()

    def after() -> str:
        spte = tiny.spte(root, 0)
        return (
            f"{'writable' if spte & SPTE_W else 'protected'}, "
            f"{'dirty' if spte & SPTE_D else 'clean'}"
        )

    return Tasks(hardware, protector, after=after)


_CLEAR_GRADES = {
    "written, protected, dirty": acceptable("D was set first and survives the clearing of W"),
    "faulted, protected, clean": acceptable("W went first, or while hardware was setting D"),
    "written, protected, clean": forbidden("the D bit was overwritten"),
    "written, writable, dirty": forbidden("hardware has brought W back"),
}


@FAMILY.program(
    "write-protect-and",
    title="a hardware walker sets D while W is taken away",
    rule="bits of a leaf with volatile bits are cleared by an atomic AND",
    source="tdp_mmu_clear_spte_bits(), reference 2.6; B57, B58",
    grades=_CLEAR_GRADES,
)
def write_protect_and(bench: LitmusBench) -> Tasks:
    """The AND touches W only."""
    return _clear_accessed(bench)


@FAMILY.program(
    "write-protect-store",
    title="a hardware walker sets D while W is taken away by a plain store",
    rule="bits of a leaf with volatile bits may not be cleared by load and store",
    source="B56 (ba3a6120a4e7), B57",
    broken=True,
    variants=(Variant("plain-store", "bits are cleared by load and store", (PlainStore,)),),
    grades=_CLEAR_GRADES,
)
def write_protect_store(bench: LitmusBench) -> Tasks:
    """The store carries the D bit of before."""
    return _clear_accessed(bench)


# The dirty log.


def _dirty_log(bench: LitmusBench, *, protect_first: bool) -> Tasks:
    tiny = bench.vm(pml=False)
    tiny.slot(flags=KVM_MEM_LOG_DIRTY_PAGES)
    vcpu, kvm = tiny.vcpu(), tiny.kvm
    tiny.map(vcpu, 0, write=True)
    root, slot = vcpu.root, tiny.slot_object()
    bitmap = slot.dirty_bitmap
    assert root is not None
    assert bitmap is not None
    sp = tiny.table_of(root, 0)
    sp.spt.store(0, sp.spt[0] & ~SPTE_W)

    def writer() -> str:
        return tiny.fault(vcpu, 0, write=True, present=True).name

    def protect() -> None:
        kvm.mmu_lock.write_lock()
        tiny.vm.dirty.clear_dirty_pt_masked(root, slot, {0})
        kvm.mmu_lock.write_unlock()

    def reader() -> str:
        if protect_first:
            protect()
        taken = bitmap.xchg(0, 0)
        if not protect_first:
            protect()
        return "taken" if taken else "not there"

    def after() -> str:
        return (
            f"{'writable' if tiny.spte(root, 0) & SPTE_W else 'protected'}, "
            f"{'logged' if bitmap[0] else 'not logged'}"
        )

    return Tasks(writer, reader, after=after)


_LOG_GRADES = {
    "FIXED, taken, writable, logged": acceptable(
        "the write came after the log was read, and is in the next one"
    ),
    "FIXED, taken, protected, not logged": acceptable("the write came before and is in this log"),
    "FIXED, taken, protected, logged": interesting(
        "the write is in the next log as well, although the page is protected"
    ),
    "FIXED, taken, writable, not logged": forbidden(
        "the page can be written and no log will ever say so"
    ),
    "SPURIOUS, taken, writable, logged": forbidden("nobody has made it writable"),
}


@FAMILY.program(
    "dirty-log-bit",
    title="a fast page fault gives back W while the log is read",
    rule="the log's bit is taken before the page is protected, and set after it became writable",
    source="kvm_get_dirty_log_protect(), fast_pf_fix_direct_spte(); reference 2.11, oracle O8",
    grades=_LOG_GRADES,
)
def dirty_log_bit(bench: LitmusBench) -> Tasks:
    """Snapshot and clear, then protect."""
    return _dirty_log(bench, protect_first=False)


@FAMILY.program(
    "dirty-log-protect-first",
    title="the log's bit is taken after the page was protected",
    rule="the log's bit is taken before the page is protected",
    source="kvm_get_dirty_log_protect(); reference 2.11",
    broken=True,
    grades=_LOG_GRADES,
)
def dirty_log_protect_first(bench: LitmusBench) -> Tasks:
    """A write in between is taken with the old bit, and the page stays writable."""
    return _dirty_log(bench, protect_first=True)


@FAMILY.program(
    "two-fast-faults",
    title="two fast page faults on one protected page",
    rule="a fast page fault is a compare-exchange on the exact old value; who loses finds it done",
    source="fast_page_fault(), reference 2.8",
    grades={
        "FIXED, SPURIOUS": acceptable("the second found it writable"),
        "SPURIOUS, FIXED": acceptable("the first found it writable"),
        "FIXED, FIXED": forbidden("both have changed it"),
        "RETRY, FIXED": forbidden("four attempts and nobody in the way"),
    },
)
def two_fast_faults(bench: LitmusBench) -> Tasks:
    """Without mmu_lock."""
    tiny = bench.vm()
    tiny.slot()
    vcpus = tiny.vcpu(), tiny.vcpu()
    tiny.map(vcpus[0], 0, write=True)
    root = vcpus[0].root
    assert root is not None
    sp = tiny.table_of(root, 0)
    sp.spt.store(0, sp.spt[0] & ~SPTE_W)

    def fault(vcpu: Vcpu) -> str:
        result = tiny.fault(vcpu, 0, write=True, present=True)
        assert result is not RetPf.CONTINUE
        return result.name

    def one() -> str:
        return fault(vcpus[0])

    def other() -> str:
        return fault(vcpus[1])

    return Tasks(one, other)
