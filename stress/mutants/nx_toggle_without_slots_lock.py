"""The NX knob zaps everything without slots_lock."""

from mmu.parts import NxHugePages
from stress.mutants.case import Case, Mutant


class NoSlotsLock(NxHugePages):
    """It is no memslot update, after all."""

    def set_nx_huge_pages(self, on: bool) -> None:
        """Write the knob and zap."""
        kvm = self.kvm
        with kvm.kvm_lock:
            if kvm.nx_huge_pages.value != on:
                kvm.nx_huge_pages.value = on
                self.zapper.zap_all_fast()


VARIANT = Mutant(
    name="nx-toggle-without-slots-lock",
    title="the NX knob zaps everything without slots_lock",
    parts=(NoSlotsLock,),
    expects=("O5",),
    rule=(
        "kvm_mmu_zap_all_fast() needs slots_lock: it guards which roots are scheduled to be zapped"
    ),
    origin="reference 2.7, 2.14",
    story=(
        "administrator: zaps the scheduled roots under mmu_lock(read)",
        "memslot worker: at the same time does so, too: both find one root scheduled",
        "administrator, memslot worker: each puts the one gifted reference",
    ),
    confidence="V",
    tags=("locks", "nx", "roots"),
    controlled=Case("explore/nx-toggle-vs-fetch"),
    threads=Case("quick", ("actors.nx.enabled=true", "actors.nx.attributes_share=0.0")),
)
