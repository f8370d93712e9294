"""O16: IO faults are answered truthfully, and no callback runs for an importer that is gone."""

from __future__ import annotations

from mmu.export.iommu import KvmHwpt
from mmu.probe import override
from stress.observe.oracles.base import Oracle


class ImporterOracle(Oracle):
    """Compares answers with the slots, under slots_lock, and watches callbacks."""

    rules = ("O16",)
    title = "IO faults are answered as the slots say; no callback after unregister"

    @override
    def io_fault_answered(self, gfn: int, write: bool, ok: bool, mappable: bool) -> None:
        # SUCCESS exactly when the gfn can be mapped with the rights asked for (I19).
        self.judged["O16"].add(1)
        if ok == mappable:
            return
        answer = "SUCCESS" if ok else "FAILURE"
        truth = "can" if mappable else "cannot"
        self.kvm.warn(
            "O16",
            "io-fault-answer",
            f"BUG: IO page fault at gfn {gfn:#x} answered {answer}, although the gfn {truth} be "
            f"{'written' if write else 'read'}",
            "an IO fault is answered SUCCESS if and only if the gfn can be mapped with the rights "
            "asked for",
            "kvm_mmu_fault_exported_tdp(), R7, invariant I19",
            subject=answer,
            gfn=gfn,
        )

    @override
    def importer_called(self, importer: object, gfn: int, pages: int) -> None:
        self.judged["O16"].add(1)
        if isinstance(importer, KvmHwpt) and not importer.live.value:
            self.kvm.warn(
                "O16",
                "callback-after-unregister",
                "BUG: invalidate callback of an importer that has been destroyed",
                "once unregister_importer() has returned, no callback of that importer runs",
                "reference 1.4, R14, invariant I18",
            )
