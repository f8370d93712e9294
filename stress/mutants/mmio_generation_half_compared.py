"""Only the lower part of an MMIO SPTE's generation is compared."""

from mmu.parts import GEN_UPDATE_IN_PROGRESS, FaultHandler
from stress.mutants.case import Case, Mutant


class LowBitsOnly(FaultHandler):
    """The upper field of the generation is read from the wrong place, so it always agrees."""

    def is_current(self, made: int, generation: int) -> bool:
        """Compare half of the bits."""
        low = self._gen_mask >> 1
        return not generation & GEN_UPDATE_IN_PROGRESS and made & low == generation & low


VARIANT = Mutant(
    name="mmio-generation-half-compared",
    title="only the lower part of an MMIO SPTE's generation is compared",
    parts=(LowBitsOnly,),
    expects=("O13",),
    rule="an MMIO SPTE holds under its own generation only",
    origin="B55 (34c0f6f2695a)",
    story=(
        "vCPU: MMIO SPTE at gfn g",
        "memslot worker: creates a slot at g; the new generation differs in its upper bits only",
        "vCPU: touches g: the old SPTE seems current, and the access is emulated",
    ),
    confidence="Vt",
    tags=("mmio",),
    controlled=Case(
        "explore/create-vs-fault",
        (
            "memory.churn_slots=2",
            'script.setup=["create 1", "vcpu0: read 0x4"]',
            'script.vcpu0=["read 0x4"]',
        ),
    ),
    threads=Case("BUSTED/mmio-cached-in-flux", ("disturbances.delay_share=0.02",)),
)
