"""A vCPU that goes away drops the root it runs on, and forgets those that it keeps for later."""

from mmu.parts import Vcpu
from stress.mutants.case import Case, Mutant


class CurrentOnly(Vcpu):
    """kvm_mmu_unload() for one of its MMUs only."""

    def unload(self) -> None:
        """The previous roots are forgotten, with their references."""
        self.prev_roots = []
        super().unload()


VARIANT = Mutant(
    name="previous-roots-leaked-at-unload",
    title="a vCPU's previous roots keep their references when it unloads",
    parts=(CurrentOnly,),
    expects=("O11", "O4"),
    rule="a vCPU that unloads its MMU drops every root that it holds",
    origin="B25 (f7e570780efc)",
    story=(
        "vCPU: has run a nested guest: holds two roots",
        "vCPU: is destroyed, or enters SMM: drops the one it runs on",
        "VM: is destroyed; the other root is still referenced, and is never freed",
    ),
    confidence="Vt",
    tags=("roots", "teardown"),
    controlled=Case("explore/nested-roots-vs-delete"),
    threads=Case("quick", ("actors.vcpu.nested_share=0.3",)),
)
