"""The NX knob takes slots_lock before kvm_lock."""

from mmu.parts import NxHugePages
from stress.mutants.case import Case, Mutant


class OtherOrder(NxHugePages):
    """Keeps the memslots still before it looks at the knob."""

    def set_nx_huge_pages(self, on: bool) -> None:
        """kvm_lock inside slots_lock."""
        kvm = self.kvm
        with kvm.slots_lock, kvm.kvm_lock:
            if kvm.nx_huge_pages.value != on:
                kvm.nx_huge_pages.value = on
                self.zapper.zap_all_fast()


VARIANT = Mutant(
    name="slots-lock-before-kvm-lock",
    title="the NX knob takes slots_lock before kvm_lock",
    parts=(OtherOrder,),
    expects=("O5",),
    rule=(
        "kvm_lock comes before slots_lock: who walks the list of VMs takes each VM's slots_lock on "
        "the way"
    ),
    origin="Documentation/virt/kvm/locking.rst on kvm_lock; reference 2.1 rule 1",
    story=(
        "administrator: holds this VM's slots_lock, waits for kvm_lock",
        "another administrator, who walks all VMs: holds kvm_lock, waits for this VM's slots_lock",
    ),
    confidence="V",
    tags=("locks", "nx"),
    controlled=Case("explore/nx-toggle-vs-fetch"),
    threads=Case("quick", ("actors.nx.enabled=true", "actors.nx.attributes_share=0.0")),
)
