"""The NX recovery worker looks up every page's slot in the normal address space."""

from mmu.parts import Memslot, ShadowPage
from mmu.posted.r11_nx_recovery_warns import SlotExpected
from stress.mutants.case import Case, Mutant


class NormalSlotsOnly(SlotExpected):
    """gfn_to_memslot() instead of the memslots of the page's own role; a slot is expected, as
    upstream does."""

    def memslot_of(self, sp: ShadowPage) -> Memslot | None:
        """The slot of address space 0."""
        return self.memslots.gfn_to_memslot(0, sp.gfn)


VARIANT = Mutant(
    name="nx-recovery-in-wrong-address-space",
    title="the NX recovery worker looks an SMM page up among the normal memslots",
    parts=(NormalSlotsOnly,),
    expects=("O9",),
    rule="a page's memslot is that of its own address space",
    origin="B30 (817fa998362d)",
    story=(
        "vCPU: in SMM, executes from a huge page where the normal address space has no memory",
        "dirty logger: some slot logs, so the recovery worker needs the page's slot",
        "recovery worker: looks for it in address space 0, and finds none",
    ),
    confidence="Vt",
    tags=("nx", "memslots"),
    controlled=Case("explore/nx-recovery-in-smm"),
    threads=Case(
        "rfc-v1/R11-nx-recovery-warns",
        (
            "obligations={}",
            "actors.memslot_worker.enabled=false",
            "actors.vcpu.smm_share=0.5",
            "memory.smm_pages=512",
        ),
    ),
)
