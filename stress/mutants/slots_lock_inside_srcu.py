"""An IO page fault takes slots_lock inside an SRCU read section."""

from mmu.parts import ExportedTdp, Exporter
from stress.mutants.case import Case, Mutant


class SrcuAroundAll(Exporter):
    """Protects the slots twice."""

    def fault(self, exported: ExportedTdp, gfn: int, write: bool) -> bool:
        """The whole fault is one read section."""
        token = self.kvm.srcu.read_lock()
        try:
            return super().fault(exported, gfn, write)
        finally:
            self.kvm.srcu.read_unlock(token)


VARIANT = Mutant(
    name="slots-lock-inside-srcu",
    title="an IO page fault takes slots_lock inside an SRCU read section",
    parts=(SrcuAroundAll,),
    expects=("O5", "O10"),
    rule=(
        "slots_lock is held while SRCU readers are waited for, so no reader may wait for slots_lock"
    ),
    origin="Documentation/virt/kvm/locking.rst on kvm->srcu; reference 2.1 rule 2",
    story=(
        "iopf worker: enters SRCU, waits for slots_lock",
        "memslot worker: holds slots_lock, waits for SRCU readers",
    ),
    confidence="V",
    tags=("locks", "export", "memslots"),
    controlled=Case("explore/io-fault-vs-delete"),
    threads=Case("quick"),
)
