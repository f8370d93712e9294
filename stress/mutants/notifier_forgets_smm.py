"""A notifier looks for memslots in the normal address space only."""

from mmu.parts import Memslot, MmuNotifier, Region
from stress.mutants.case import Case, Mutant


class NormalSpace(MmuNotifier):
    """Ignores the slots of SMM."""

    def slots(self, region: Region, first: int, last: int) -> list[Memslot]:
        """Return the slots of address space 0 only."""
        return [slot for slot in super().slots(region, first, last) if slot.as_id == 0]


VARIANT = Mutant(
    name="notifier-forgets-smm",
    title="a notifier looks for memslots in the normal address space only",
    parts=(NormalSpace,),
    expects=("O6", "INV"),
    rule="host memory is unmapped from the memslots of every address space",
    origin="kvm_handle_hva_range() KVM_ADDRESS_SPACE_NUM, reference 2.10",
    story=(
        "host: takes a page that is in both address spaces: one leaf is zapped",
        "host: the frame is free",
        "vCPU, in SMM: uses it",
    ),
    confidence="A",
    tags=("notifier", "smm"),
    controlled=Case("explore/smm-alias-vs-discard"),
    threads=Case(
        "quick",
        (
            "memory.smm_alias=true",
            "actors.host.threads=1",
            "actors.vcpu.smm_share=0.3",
            "actors.vcpu.churn_share=0.1",
        ),
    ),
)
