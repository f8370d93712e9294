"""MMIO SPTEs are made while a memslot update is in progress."""

from mmu.parts import FaultHandler
from stress.mutants.case import Case, Mutant


class CacheInFlux(FaultHandler):
    """Looks at the generation's number only."""

    def is_in_flux(self, generation: int) -> bool:  # noqa: ARG002 - nobody looks at the flag
        """Never."""
        return False


VARIANT = Mutant(
    name="mmio-cached-in-flux",
    title=(
        "MMIO SPTEs made while memslots are in flux survive a wrap, or hide a leaf from later zaps"
    ),
    parts=(CacheInFlux,),
    expects=("O13", "O1"),
    rule="what is looked up while memslots are in flux may not be cached",
    origin=(
        "B55 (ddfd1730fd82, 152482580a1b), reference 4d; the hidden leaf was found by this harness"
    ),
    story=(
        "memslot worker: the generation is about to wrap: all MMIO SPTEs are zapped",
        "vCPU: no slot at gfn g: an MMIO SPTE of the last generation before the wrap",
        "memslot worker: stores the new generation; creates a slot at g; the generations go on "
        "until that one is current again",
        "vCPU: touches g: the old MMIO SPTE holds, the access is emulated",
    ),
    confidence="Vt",
    tags=("mmio", "memslots"),
    controlled=Case("explore/mmio-wraps"),
    threads=Case("BUSTED/mmio-cached-in-flux"),
)
