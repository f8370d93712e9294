"""A slot that is moved gets an empty dirty bitmap."""

from mmu.parts import Memslot, Memslots
from stress.mutants.case import Case, Mutant


class FreshBitmap(Memslots):
    """Allocates a bitmap whenever the flag is set."""

    def prepare_memory_region(self, old: Memslot | None, new: Memslot | None) -> None:  # noqa: ARG002 - the slot before is not looked at
        """Prepare the slot as if it were created."""
        super().prepare_memory_region(None, new)


VARIANT = Mutant(
    name="bitmap-lost-by-move",
    title="a slot that is moved while it logs gets an empty dirty bitmap",
    parts=(FreshBitmap,),
    expects=("O8",),
    rule="the dirty bitmap of a slot is carried over while the slot logs, wherever it is moved",
    origin="kvm_prepare_memory_region(), reference 2.9, 2.11",
    story=(
        "vCPU: writes to a page of a slot that logs",
        "memslot worker: moves the slot: a new bitmap",
        "memslot worker: reads the log twice: the page is in neither",
    ),
    confidence="A",
    tags=("dirty", "slots"),
    controlled=Case("explore/log-vs-move"),
    threads=Case(
        "quick",
        (
            "actors.memslot_worker.log_weight=4.0",
            "actors.memslot_worker.flags_weight=2.0",
            "actors.memslot_worker.delete_weight=1.0",
        ),
    ),
)
