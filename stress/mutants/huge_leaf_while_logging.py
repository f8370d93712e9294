"""Faults map huge pages while dirty pages are logged."""

from mmu.parts import Fault, FaultHandler, Memslot
from stress.mutants.case import Case, Mutant


class AnySize(FaultHandler):
    """The host's page decides alone."""

    def hugepage_adjust(self, fault: Fault, slot: Memslot) -> None:
        """As if the slot logged nothing."""
        silent = slot.copy(flags=slot.flags)
        silent.dirty_bitmap = None
        super().hugepage_adjust(fault, silent)


VARIANT = Mutant(
    name="huge-leaf-while-logging",
    title="faults map huge pages of a slot that logs dirty pages",
    parts=(AnySize,),
    expects=("O8",),
    rule="while dirty pages are logged memory is mapped by 4 KiB leaves",
    origin=(
        "reference 2.8, 2.11 kvm_mmu_hugepage_adjust(); shape of B54 (9129633d568e): a huge page "
        "comes back too early"
    ),
    story=(
        "dirty logger: logging on; the huge leaf is write-protected",
        "vCPU: writes page 1: the fault installs a writable huge leaf, page 1 is logged",
        "vCPU: writes page 2: nobody notices",
    ),
    confidence="A",
    tags=("dirty", "huge", "faults"),
    controlled=Case("explore/huge-page-log"),
    threads=Case(
        "explore/huge-page-log",
        (
            'script.dirty-logger=["log-on", "read-log", "read-log", "read-log", "log-off"]',
            'script.vcpu0=["write 0x0", "write 0x1", "write 0x2", "write 0x3"]',
        ),
    ),
)
