"""O16: IO faults are answered truthfully, no callback runs for an importer that is gone, and a
device that was blocked has forgotten everything. O2: no page request outlives its domain."""

from __future__ import annotations

from mmu.export.device import Device
from mmu.export.iommu import KvmHwpt, PageRequest
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
    callbacks, detached devices and the domains that page requests came from."""

    rules = ("O16", "O2")
    title = (
        "IO faults are answered as the slots say, before their domain is freed; no callback after "
        "unregister; a blocked device has no translations"
    )

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
    def page_response(self, request: PageRequest, ok: bool) -> None:
        self._judge_domain(request)
        faults = request.faults
        answers = self._answers.mine
        good, answers.faults, answers.good = answers.good, 0, 0
        self.judged["O16"].add(1)
        if ok == (good == len(faults)):
            return
        self.kvm.warn(
            "O16",
            "group-answer",
            f"BUG: {request.domain.device.name}'s page request group of {len(faults)} is answered "
            f"{'SUCCESS' if ok else 'FAILURE'}, and {good} of its faults could be served",
            "a page request group is answered SUCCESS if and only if every fault in it was served",
            "iommufd_kvmtdp_handle_iopf(); reference 1.7",
        )

    def _judge_domain(self, request: PageRequest) -> None:
        self.judged["O2"].add(1)
        if request.domain.live.value:
            return
        self.kvm.warn(
            "O2",
            "response-through-freed-domain",
            f"BUG: use-after-free: {request.domain.device.name} is answered through a domain that "
            "has been freed",
            "a domain is freed when every page request that came from it has been answered",
            "iopf_queue_flush_dev(), intel_drain_pasid_prq(), c43e1ccdebf2; R24",
            subject="hwpt",
        )

    @override
    def device_blocked(self, device: Device) -> None:
        self.judged["O16"].add(1)
        left = [name for name, cache in device.caches() if cache.entries or cache.tables]
        if device.root.value is None and not left:
            return
        why = f"{' and '.join(left)} still translate" if left else "still walks its root"
        self.kvm.warn(
            "O16",
            "blocked-device-translates",
            f"BUG: {device.name} was detached: {why}",
            "a device that was detached reaches no memory: its context entry is cleared and its "
            "caches are flushed before the detach returns",
            "domain_context_clear_one(), device_block_translation(); reference 1.8, 1.11 R18",
            subject="caches" if left else "root",
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
