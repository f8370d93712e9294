"""An IO page fault relies on SRCU instead of slots_lock."""

from mmu.parts import ExportedTdp, Exporter
from stress.mutants.case import Case, Mutant


class SrcuOnly(Exporter):
    """A fault like a vCPU's."""

    def fault_once(self, exported: ExportedTdp, gfn: int, write: bool) -> bool | None:
        """Without slots_lock."""
        token = self.kvm.srcu.read_lock()
        ok = self.fault_locked(exported, gfn, write)
        self.kvm.srcu.read_unlock(token)
        return ok


VARIANT = Mutant(
    name="io-fault-without-slots-lock",
    title="an IO page fault is handled without slots_lock",
    parts=(SrcuOnly,),
    expects=("O5", "O10"),
    rule=(
        "kvm_mmu_fault_exported_tdp() needs slots_lock: it tries again until it is decided, which "
        "a memslot update would wait for"
    ),
    origin="reference 1.7, 2.9, 2.14",
    story=(
        "memslot worker: publishes the slot as INVALID, waits for SRCU readers",
        "iopf worker: inside SRCU, is told to retry as long as the slot is INVALID",
    ),
    confidence="V",
    tags=("locks", "export", "memslots"),
    controlled=Case("explore/io-fault-vs-delete"),
    threads=Case("quick"),
)
