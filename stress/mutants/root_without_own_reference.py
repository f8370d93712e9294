"""A new root has the reference of the vCPU that asked for it, and none of the TDP MMU's own."""

from mmu.parts import RootPage, RootRole, Roots
from stress.mutants.case import Case, Mutant


class CountOfOne(Roots):
    """refcount_set(&root->tdp_mmu_root_count, 1)."""

    def allocate_root(self, role: RootRole) -> RootPage:
        """Only the caller holds it."""
        root = super().allocate_root(role)
        root.refcount.put()
        return root


VARIANT = Mutant(
    name="root-without-own-reference",
    title="the TDP MMU keeps no reference of its own on a root",
    parts=(CountOfOne,),
    expects=("O4", "O11"),
    rule=(
        "a root that is valid or not yet zapped has one reference of the TDP MMU's own, so that it "
        "outlives its users"
    ),
    origin="B23 (edbdb43fc96b)",
    story=(
        "vCPU: unloads its root, which nobody else uses: its last reference goes",
        "vCPU: the root is still valid and full: freed, or built again from nothing by the next "
        "that needs it",
    ),
    confidence="V",
    tags=("roots",),
    controlled=Case("explore/obsolete-root"),
    threads=Case("quick"),
)
