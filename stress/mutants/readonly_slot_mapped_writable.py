"""A leaf is as writable as the host's mapping, whatever the slot says."""

from mmu.parts import Fault, FaultHandler, Memslot
from stress.mutants.case import Case, Mutant


class FlagForgotten(FaultHandler):
    """The slot's READONLY flag is ignored."""

    def is_host_writable(self, fault: Fault, slot: Memslot) -> bool:  # noqa: ARG002 - every page alike
        """Return what the host's mapping allows."""
        return slot.region.writable


VARIANT = Mutant(
    name="readonly-slot-mapped-writable",
    title="a read fault in a read-only slot installs a writable leaf",
    parts=(FlagForgotten,),
    expects=("O6", "INV"),
    rule="no leaf of a KVM_MEM_READONLY slot is writable",
    origin="__gfn_to_pfn_memslot() memslot_is_readonly(), reference 2.9, invariant I7",
    story=(
        "vCPU: reads from read-only memory: a writable leaf",
        "vCPU: writes to it without an exit",
    ),
    confidence="A",
    tags=("slots",),
    controlled=Case("explore/rom-vs-write"),
    threads=Case("quick", ("memory.readonly_pages=32",)),
)
