"""MMIO SPTEs are honoured while a memslot update is in progress."""

from mmu.parts import FaultHandler
from stress.mutants.case import Case, Mutant


class HonourInFlux(FaultHandler):
    """Looks at the generation's number only."""

    def is_current(self, made: int, generation: int) -> bool:
        """Whether the numbers agree."""
        return made == generation & self._gen_mask


VARIANT = Mutant(
    name="mmio-honoured-in-flux",
    title="an MMIO SPTE is honoured while a memslot update is in progress",
    parts=(HonourInFlux,),
    expects=("O13",),
    rule=(
        "while memslots are in flux the generation says nothing: the slots are new, its number is "
        "old"
    ),
    origin="B55 (ddfd1730fd82), the reader's side",
    story=(
        "vCPU: MMIO SPTE at gfn g",
        "memslot worker: publishes a slot at g, marked as in progress; waits for SRCU readers",
        "vCPU: touches g: the numbers agree, the access is emulated although the slot is there",
    ),
    confidence="Vt",
    tags=("mmio", "memslots"),
    controlled=Case("explore/create-vs-fault"),
    threads=Case("BUSTED/mmio-cached-in-flux"),
)
