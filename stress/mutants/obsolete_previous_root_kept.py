"""The check of a vCPU's previous roots looks at the current one instead."""

from mmu.parts import Vcpu
from stress.mutants.case import Case, Mutant


class ChecksCurrentRoot(Vcpu):
    """The typo of 527d5cd7eece."""

    def free_obsolete_roots(self) -> None:
        """Previous roots go if the current one is obsolete."""
        obsolete = []
        if self.root is not None and self.root.invalid.value:
            obsolete = [self.root, *self.prev_roots]
            self.root, self.prev_roots = None, []
        self._drop(obsolete)


VARIANT = Mutant(
    name="obsolete-previous-root-kept",
    title="a vCPU keeps an obsolete root in its cache if its current root is valid",
    parts=(ChecksCurrentRoot,),
    expects=("O12",),
    rule="a vCPU that is told so drops every obsolete root, the previous ones too",
    origin=(
        "B26 (cf4a8693d97a, fixes 527d5cd7eece); an exported root stays valid, which is how the "
        "two come to differ"
    ),
    story=(
        "vCPU: runs on the exported root, keeps the nested guest's among its previous ones",
        "memslot worker: invalidates the nested guest's root and tells every vCPU; the exported "
        "root stays valid",
        "vCPU: finds its current root valid, and keeps the obsolete one",
    ),
    confidence="V",
    tags=("roots",),
    controlled=Case("explore/nested-root-vs-exported"),
    threads=Case("quick", ("actors.vcpu.nested_share=0.3",)),
)
