"""Whoever looks for a root finds invalid ones, too."""

from mmu.parts import RootPage, RootRole, Roots
from stress.mutants.case import Case, Mutant


class AnyRoot(Roots):
    """Compares everything of a role but `invalid`."""

    def find_root(self, role: RootRole) -> RootPage | None:
        """The first root of the role that is not dying, obsolete or not."""
        for root in self.snapshot():
            if root.role == role and self.get_root(root):
                return root
        return None


VARIANT = Mutant(
    name="invalid-root-found",
    title="a vCPU takes a reference on a root that is invalid already",
    parts=(AnyRoot,),
    expects=("O12",),
    rule=(
        "nobody takes up a root that has been invalidated: whoever zaps it counts on those who "
        "hold it already"
    ),
    origin="B19 (614f6970aa70): readers may not acquire references to invalid roots",
    story=(
        "memslot worker: invalidates root R, is about to zap it",
        "vCPU: drops R as it was told, looks for a root of its role, finds R on the list",
        "vCPU: runs the guest on R",
    ),
    confidence="V",
    tags=("roots",),
    controlled=Case("explore/obsolete-root"),
    threads=Case("vcpus-only"),
)
