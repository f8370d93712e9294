"""R1: the check for an existing export and the insertion into the list are two critical
sections."""

from mmu.export.importer import ExportedTdp, ExportedTdps
from mmu.export.tdp_fd import Exporter
from mmu.numbers.defects import titled
from mmu.variant import Variant


class CheckThenInsert(ExportedTdps):
    """The list lock is dropped between the check and the insertion."""

    def claim(self, exported: ExportedTdp) -> None:
        """Nobody who looks next can tell."""

    def insert_early(self, exported: ExportedTdp) -> None:
        """Not yet."""

    def publish(self, exported: ExportedTdp) -> None:
        """Insert at the end of creation."""
        with self.exported_tdplist_lock:
            self.insert(exported)


class ListFirst(Exporter):
    """Release in the posted order: off the list, importers gone, then un-export."""

    def release(self, exported: ExportedTdp) -> None:
        """From the first step on, the same address space can be exported again."""
        self.exported_tdps.remove(exported)
        with exported.bind_lock:
            exported.unregister_all()
            self.put_exported_tdp(exported)
        exported.released.value = True
        self.put_vm()


VARIANT = Variant(
    name="r1-double-export",
    title=titled("R1"),
    parts=(CheckThenInsert, ListFirst),
    expects=("O12", "O10"),
    rule="an address space is exported once: checking for it and taking it must be one step",
    origin="reference 1.11 R1, kvm_create_tdp_fd() (patch 04)",
    story=(
        "T1, T2: both find no export of address space 0",
        "T1, T2: both mark the same root exported: one flag, two exporters",
        "T1: closes; exported=false; the next fast zap makes the root invalid under T2's importer",
    ),
)
