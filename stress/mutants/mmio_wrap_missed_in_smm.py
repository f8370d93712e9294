"""A wrap of the memslot generation is noticed in the normal address space only."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant


class NormalSpaceOnly(Zapper):
    """Asks whether the generation is 0, which an odd one never is."""

    def memslots_updated(self, generation: int) -> None:
        """Do not look at the generations of address space 1."""
        if generation & 1 == 0:
            super().memslots_updated(generation)


VARIANT = Mutant(
    name="mmio-wrap-missed-in-smm",
    title="a wrap of the SMM memslots' generation goes unnoticed",
    parts=(NormalSpaceOnly,),
    expects=("O13",),
    rule="each address space's generation wraps, and old MMIO SPTEs have to be gone by then",
    origin=(
        'B55: "KVM: x86/mmu: Detect MMIO generation wrap in any address space" (5.1), of one '
        "series with 152482580a1b"
    ),
    story=(
        "vCPU in SMM: MMIO SPTE at gfn g, generation 1",
        "memslot worker: creates a slot at g in the SMM address space; its generations go on to 1 "
        "again",
        "vCPU in SMM: touches g: the old SPTE seems current",
    ),
    confidence="Vt",
    tags=("mmio", "memslots", "smm"),
    controlled=Case("explore/smm-mmio-wraps"),
    threads=Case(
        "BUSTED/mmio-cached-in-flux",
        (
            "memory.smm_pages=8",
            "memory.smm_churn_pages=8",
            "memory.churn_slots=0",
            "actors.vcpu.smm_share=0.5",
            "disturbances.delay_share=0.02",
        ),
    ),
)
