"""The exported zap yields although its root is not pinned."""

from mmu.parts import RootPage, Zapper
from stress.mutants.case import Case, Mutant


class YieldUnpinned(Zapper):
    """can_yield=true inside a list walk that holds no reference."""

    def zap_exported_root(self, root: RootPage) -> None:
        """Zap with yielding."""
        if self.zap_leafs(root, 0, self.kvm.geometry.max_gfn + 1, can_yield=True, flush=False):
            self.flush_exported()


VARIANT = Mutant(
    name="yield-in-exported-zap",
    title="the exported zap yields without pinning the root",
    parts=(YieldUnpinned,),
    expects=("O3",),
    rule=(
        "a walk of tdp_mmu_roots without references may not leave its RCU section, so its body "
        "must not yield"
    ),
    origin="B17 (7533377215b6); reference 2.3",
    story=(
        "memslot worker: stands on root R of an RCU list walk that pins nothing, and leaves RCU "
        "and mmu_lock inside the zap",
        "another task: may put, unlink and have freed any root that nobody has pinned",
        "memslot worker: goes on in R, and follows its link",
    ),
    confidence="V",
    tags=("seed", "yield"),
    controlled=Case("explore/delete-vs-dma"),
    threads=Case("BUSTED/yield-in-exported-zap"),
)
