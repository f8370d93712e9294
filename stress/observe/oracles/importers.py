"""O16: IO faults are answered truthfully, and no callback runs for an importer that is gone."""

from __future__ import annotations

from mmu.export.device import Device
from mmu.export.iommu import KvmHwpt
from mmu.machine.vm import VirtualMachine
from mmu.probe import override
from stress.observe.oracles.base import Oracle
from stress.scenario.types import Limits


class _Answers:
    """How many faults of the page request group that a task handles were answered so far, and how
    many of them with success."""

    __slots__ = ("faults", "good")

    def __init__(self) -> None:
        self.faults = 0
        self.good = 0


class ImporterOracle(Oracle):
    """Compares answers with the slots, under slots_lock, and with those of the group, and watches
    callbacks."""

    rules = ("O16",)
    title = "IO faults are answered as the slots say; no callback after unregister"

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._answers = self.kvm.runtime.local(_Answers)

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
    def io_fault_end(self, device: Device, gfn: int, write: bool, ok: bool, ns: int) -> None:
        answers = self._answers.mine
        answers.faults += 1
        answers.good += ok

    @override
    def page_response(self, device: Device, faults: list[tuple[int, bool]], ok: bool) -> None:
        answers = self._answers.mine
        good, answers.faults, answers.good = answers.good, 0, 0
        self.judged["O16"].add(1)
        if ok == (good == len(faults)):
            return
        self.kvm.warn(
            "O16",
            "group-answer",
            f"BUG: {device.name}'s page request group of {len(faults)} is answered "
            f"{'SUCCESS' if ok else 'FAILURE'}, and {good} of its faults could be served",
            "a page request group is answered SUCCESS if and only if every fault in it was served",
            "iommufd_kvmtdp_handle_iopf(); reference 1.7",
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
