"""A TDP FD's release takes importer_lock before exported_tdplist_lock."""

from mmu.parts import ExportedTdp, ExportedTdps
from stress.mutants.case import Case, Mutant


class OtherOrder(ExportedTdps):
    """Keeps the importers still while the object leaves the list."""

    def remove(self, exported: ExportedTdp) -> None:
        """With importer_lock held."""
        with exported.importer_lock:
            super().remove(exported)


VARIANT = Mutant(
    name="importer-lock-before-list-lock",
    title="importer_lock is taken before exported_tdplist_lock",
    parts=(OtherOrder,),
    expects=("O5",),
    rule="exported_tdplist_lock comes before importer_lock",
    origin="reference 2.1 rule 7, 1.8",
    story=(
        "memslot worker: a flush: holds exported_tdplist_lock, waits for importer_lock",
        "closer of the TDP FD: holds importer_lock, waits for exported_tdplist_lock",
    ),
    confidence="V",
    tags=("locks", "export"),
    controlled=Case("explore/unexport-vs-io-fault"),
    threads=Case("quick"),
)
