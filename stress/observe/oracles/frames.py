"""O6 at removal: a leaf that goes still maps the frame of its gfn."""

from __future__ import annotations

from mmu.memory.host import tag_of
from mmu.paging.spte import PFN_SHIFT, describe, pfn_of
from mmu.paging.table import RootPage, ShadowPage
from mmu.probe import override
from stress.observe.oracles.base import Oracle


class FrameOracle(Oracle):
    """Looks up who owns the frame of every leaf that is removed, in any root: KVM tells the host of
    its accessed and dirty bits then, so the frame may not have been released before."""

    rules = ("O6",)
    title = "a leaf is removed before the host releases its frame"

    @override
    def spte_zapped(
        self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool
    ) -> None:
        root = sp.root
        if root is None or not self.kvm.layout.is_leaf(old, level):
            return
        host, pfn = self.vm.host, pfn_of(old)
        for offset in {0, self.kvm.geometry.pages(level) - 1}:
            tag = tag_of(root.role.as_id, gfn + offset)
            if pfn + offset < host.frames and not host.is_at(pfn + offset, tag):
                self._report(root, gfn + offset, level, old + (offset << PFN_SHIFT))
                return

    def _report(self, root: RootPage, gfn: int, level: int, spte: int) -> None:
        self.kvm.warn(
            "O6",
            "frame-released-first",
            f"BUG: the leaf for gfn {gfn:#x} of {root.describe()} is removed after its frame "
            f"{pfn_of(spte):#x} was released",
            "a leaf goes before the host releases or reuses the frame: its accessed and dirty bits "
            "are reported for that frame when it goes",
            "kvm_set_pfn_dirty() WARN_ON_ONCE(is_error_page()/page_count); reference 2.10, B18",
            subject=str(root.role),
            extra=(("SPTE", [describe(spte, self.kvm.layout, level)]),),
            gfn=gfn,
        )
