"""The new generation of the memslots is current before MMIO SPTEs that match it are gone."""

from mmu.parts import Memslots, MemslotSet
from stress.mutants.case import Case, Mutant


class PublishThenZap(Memslots):
    """kvm_arch_memslots_updated() runs too late."""

    def advance_generation(self, new: MemslotSet, generation: int) -> None:
        """Store the generation, then let the architecture look at it."""
        new.generation.value = generation
        self.listener.memslots_updated(generation)


VARIANT = Mutant(
    name="mmio-generation-published-early",
    title="the new memslot generation is stored before the MMIO SPTEs of a wrap are zapped",
    parts=(PublishThenZap,),
    expects=("O13",),
    rule="what could match a new generation is gone before it becomes current",
    origin="B55 (152482580a1b)",
    story=(
        "vCPU: MMIO SPTE at gfn g, generation 0",
        "memslot worker: creates a slot at g; the generations go on until they wrap: stores 0",
        "vCPU: touches g: the SPTE is of generation 0 and is honoured",
        "memslot worker: zaps all MMIO SPTEs",
    ),
    confidence="V",
    tags=("mmio", "memslots"),
    controlled=Case(
        "explore/mmio-wraps",
        (
            'script.memslot-worker=["create 0", "flags 0"]',
            'script.setup=["create 1", "flags 1", "flags 1"]',
            "obligations.memslot_creates=1",
        ),
    ),
    threads=Case("BUSTED/mmio-cached-in-flux", ("budget.duration_s=20.0",)),
)
