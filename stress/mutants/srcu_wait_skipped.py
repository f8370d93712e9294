"""A memslot update that does not wait for SRCU."""

from mmu.parts import Memslots
from stress.mutants.case import Case, Mutant


class NoSrcuWait(Memslots):
    """Publishes the new slots and goes on at once."""

    def synchronize_srcu(self) -> None:
        """Nothing."""


VARIANT = Mutant(
    name="srcu-wait-skipped",
    title="the memslot update does not wait for SRCU readers",
    parts=(NoSrcuWait,),
    expects=("O6", "O2"),
    rule=(
        "after the swap nobody may use the old slots: an exported root has no other protection "
        "against a late fault"
    ),
    origin="reference 2.9; shape of B69 (4bcdd831d9d0)",
    story=(
        "vCPU: looks up slot S, finds the frame, waits for mmu_lock",
        "memslot worker: publishes S as INVALID, zaps, returns",
        "vCPU: maps S's frame in the exported root, which is still valid",
    ),
    confidence="V",
    tags=("memslots", "rcu"),
    controlled=Case("explore/fault-vs-delete"),
    threads=Case("BUSTED/srcu-wait-skipped"),
)
