"""An IO page fault looks up its memslot outside SRCU."""

from mmu.parts import ExportedTdp, Exporter
from stress.mutants.case import Case, Mutant


class Unprotected(Exporter):
    """Relies on the slot staying where it is."""

    def prefault(self, exported: ExportedTdp, gfn: int) -> None:
        """Look the slot up, and bring the page in, without a read section."""
        slot = self.memslots.gfn_to_memslot(exported.as_id, gfn)
        if slot is not None and not slot.invalid and not slot.region.dead.value:
            self.faults.host.fault_in(slot.region, gfn - slot.origin)


VARIANT = Mutant(
    name="slots-read-outside-srcu",
    title="an IO page fault looks its memslot up outside SRCU",
    parts=(Unprotected,),
    expects=("O3", "O2"),
    rule="memslots are looked at inside an SRCU read section, or with slots_lock held",
    origin="shape of B69 (4bcdd831d9d0): memslots read without SRCU, there by an ioctl",
    story=(
        "iopf worker: reads the active memslots, finds S",
        "memslot worker: deletes S; nobody is inside SRCU, so it frees S",
        "iopf worker: reads S",
    ),
    confidence="V",
    tags=("memslots", "rcu", "export"),
    controlled=Case("explore/io-fault-vs-delete"),
    threads=Case("quick"),
)
