"""O1 and O6 by use: an access that reached memory which is not the gfn's."""

from __future__ import annotations

from mmu.kvm import ADDRESS_SPACES
from mmu.memory.host import FREED, SEVERAL, tag_of
from mmu.paging.spte import SPTE_MMIO, describe, pfn_of
from mmu.probe import override
from stress.observe.oracles.base import Oracle

SPACES = range(ADDRESS_SPACES)


class TranslationOracle(Oracle):
    """Judges every wrong access by a vCPU or a device: does the page table still say so (O6), or
    only a cache (O1)?"""

    rules = ("O1", "O6")
    title = "every access by a vCPU or device reaches the frame that the host gave to that gfn"

    @override
    def bad_translation(self, who: str | None, gfn: int, pfn: int, write: bool, spte: int) -> None:
        # An access that reached the right frame is counted by the task that made it.
        if who is None:
            self._late_write(gfn, pfn)
            return
        state = self._state(pfn)
        mapped = self.kvm.layout.is_present(spte) and pfn_of(spte) == pfn
        verb = "write" if write else "read"
        evidence = (
            "translation",
            [
                f"{who} used gfn {gfn:#x} -> frame {pfn:#x} for a {verb}",
                f"frame {pfn:#x} {state}",
                f"SPTE now: {describe(spte, self.kvm.layout)}",
            ],
        )
        reached = f"{who} reached frame {pfn:#x} at gfn {gfn:#x}"
        if spte & SPTE_MMIO and pfn_of(spte) == pfn:
            verdict = (
                "O6",
                "mmio-spte-walked",
                f"BUG: {who} took the MMIO SPTE of gfn {gfn:#x} for a leaf and reached frame "
                f"{pfn:#x}",
                "what is non-present to KVM must be non-present to every hardware that walks the "
                "table",
                "R18 importer interprets raw bits; reference 1.11, VT-d looks at R and W "
                "separately",
            )
        elif write and any(self.vm.host.is_at(pfn, tag_of(as_id, gfn)) for as_id in SPACES):
            verdict = (
                "O6",
                "read-only-written",
                f"BUG: {who} wrote to frame {pfn:#x} at gfn {gfn:#x}, whose slot is read-only",
                "a leaf of a read-only slot is not writable: a guest's write exits, a device's "
                "fails",
                "KVM_MEM_READONLY; __gfn_to_hva_many(), invariant I7",
            )
        elif mapped:
            verdict = (
                "O6",
                "stale-map",
                f"BUG: stale mapping: {reached}, and the page table still maps it",
                "after the operation that had to remove a mapping has returned, no present leaf "
                "may map the old memory",
                "reference O6, invariant I8; kvm_mmu_zap_all_fast()",
            )
        else:
            verdict = (
                "O1",
                "stale-tlb",
                f"BUG: stale translation: {reached} through its "
                f"{'IOTLB' if _kind(who) == 'device' else 'TLB'}",
                "a translation must not be used after the flush that had to remove it",
                "reference O1, invariant I9; kvm_flush_remote_tlbs()",
            )
        self.kvm.warn(*verdict, subject=_kind(who), extra=(evidence,), gfn=gfn)

    def _state(self, pfn: int) -> str:
        stamp = self.vm.host.stamp[pfn] if pfn < self.vm.host.frames else FREED
        if stamp == FREED:
            return "has been released"
        if stamp == SEVERAL:
            return "is read-only, or belongs to several gfns"
        return f"belongs to gfn {stamp & 0xFFFFFFFFFF:#x}"

    def _late_write(self, tag: int, pfn: int) -> None:
        gfn = tag & 0xFFFFFFFFFF
        self.kvm.warn(
            "O1",
            "write-after-release",
            f"BUG: frame {pfn:#x} was written after its release, by somebody who took it for gfn "
            f"{gfn:#x}",
            "a translation must not be used after the flush that had to remove it",
            "reference O1; page poisoning",
            subject="frame",
            gfn=gfn,
        )


def _kind(who: str) -> str:
    return who.rstrip("0123456789")
