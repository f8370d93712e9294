"""Close calls: near misses, which a correct design survives and a broken one would not have
survived.

"Within k steps" needs a clock that all threads share. A shared counter of events would order
threads that the model does not order, and so hide what it is to find; the runtime's clock costs
nothing that others could notice. Under control it counts scheduler steps, a microsecond each; on
real threads a step is as long as such a thing takes there. What was read of another thread is a
hint: a call that was close for the length of a few instructions may be missed, never made up.
"""

from __future__ import annotations

from collections.abc import Collection

from mmu.export.device import Device
from mmu.export.iommu import KvmHwpt
from mmu.machine.vm import VirtualMachine
from mmu.memory.memslots import Change
from mmu.memory.requests import IN_GUEST_MODE
from mmu.memory.tlb import WHOLE
from mmu.paging.table import RootPage
from mmu.probe import Instrument, override
from mmu.runtime import Runtime
from stress.observe.counts import Counts

STEPS: int = 32
"""Under control: how many scheduler steps, of all tasks together, are close."""
THREADS_US: int = 100
"""On real threads: how many microseconds are; a checked fault takes about ten."""


CLOSE_CALLS: dict[str, str] = {
    "frees_after_reader": (
        "table pages freed right after a reader had left whom their grace period waited for"
    ),
    "uses_before_flush": (
        "translations that a device was using, or had just used, when they were invalidated"
    ),
    "exported_zaps_mid_walk": "exported zaps that caught a device between its walk and its access",
    "flushes_in_guest": "flushes that caught a vCPU in the guest with translations in its TLB",
    "cmpxchgs_lost": "compare-exchanges of SPTEs that somebody else won",
    "roots_pinned_last": "zapped roots pinned when one other reference was left",
    "dying_roots_met": "roots met on the list after their last reference had gone",
    "notified_last": "importers told right before the memory could be released",
}
"""Every kind of close call by its counter."""
WITHIN = ("uses_before_flush", "frees_after_reader", "notified_last")
"""Those that a window of time makes close; the others are close by what was under way."""


class _Device:
    """What one device did last: written by who holds its hardware, read by others as a hint."""

    __slots__ = ("busy", "last", "root")

    def __init__(self, device: Device) -> None:
        self.root = device.root
        self.busy = False
        self.last = (-1, 0)
        """The gfn of its last transaction, and when that ended."""


class _Lately:
    """When a task's grace period last saw a reader leave, and when it last told importers; 0: not
    lately."""

    __slots__ = ("left_at", "told_at")

    def __init__(self) -> None:
        self.left_at = 0
        self.told_at = 0


class CloseCalls(Instrument):
    """An instrument that counts close calls, and the waits that protect from them. `window_ns`
    is how near is close."""

    def __init__(
        self, runtime: Runtime, vm: VirtualMachine, counts: Counts, window_ns: int
    ) -> None:
        self._now = runtime.now
        self._vm = vm
        self._counts = counts
        self._window_ns = window_ns
        self._devices: dict[Device, _Device] = {}
        self._local = runtime.local(_Lately)

    # Devices.

    @override
    def dma_begin(self, device: Device, gfn: int) -> None:
        known = self._devices.get(device) or self._devices.setdefault(device, _Device(device))
        known.last = (gfn, 0)
        known.busy = True

    @override
    def dma_end(self, device: Device) -> None:
        known = self._devices[device]
        known.last = (known.last[0], self._now())
        known.busy = False

    @override
    def flush_begin(self, reason: str, gfn: int, pages: int) -> None:
        # Until this flush is over, what was removed may still be in use.
        if any(device.busy and device.root.value is not None for device in self._known()):
            self._counts["flushes_mid_dma"].add(1)
            if reason == "exported-zap":
                self._counts["exported_zaps_mid_walk"].add(1)
        if any(
            vcpu.state.mode.value == IN_GUEST_MODE and vcpu.tlb.entries for vcpu in self._vm.vcpus()
        ):
            self._counts["flushes_in_guest"].add(1)

    @override
    def importer_called(self, importer: object, gfn: int, pages: int) -> None:
        known = self._devices.get(importer.device) if isinstance(importer, KvmHwpt) else None
        if known is None:
            return
        used, at = known.last
        if (pages == WHOLE or gfn <= used < gfn + pages) and (known.busy or self._is_close(at)):
            self._counts["uses_before_flush"].add(1)

    # Importers.

    @override
    def memslot_begin(self, change: object, slot: object) -> None:
        # A notification before this call does not count.
        self._local.mine.told_at = 0

    @override
    def importers_notified(self, exported: object, gfn: int, pages: int, ns: int) -> None:
        self._local.mine.told_at = self._now()

    @override
    def memslot_end(self, change: Change, slot: object, parts: object) -> None:
        # The memory behind a slot that is gone may be released from here on.
        if change in (Change.DELETE, Change.MOVE):
            self._note_last_moment()

    @override
    def range_started(self, region: object, first: int, last: int, ns: int) -> None:
        # The host may take the pages from here on.
        self._note_last_moment()

    def _note_last_moment(self) -> None:
        lately = self._local.mine
        if self._is_close(lately.told_at):
            self._counts["notified_last"].add(1)
        lately.told_at = 0

    # RCU.

    @override
    def grace_period_waited(self, domain: str) -> None:
        if domain == "rcu":
            self._counts["rcu_waits_with_reader"].add(1)
            self._local.mine.left_at = self._now()
        else:
            self._counts["srcu_waits_with_reader"].add(1)

    @override
    def grace_period(self, ns: int, callbacks: int) -> None:
        lately = self._local.mine
        if self._is_close(lately.left_at):
            self._counts["frees_after_reader"].add(callbacks)
        lately.left_at = 0

    # Roots.

    @override
    def root_pinned(self, root: RootPage, alive: bool) -> None:
        if not alive:
            self._counts["dying_roots_met"].add(1)
        elif root.zapped.value and root.refcount.read() == 2:  # the one just taken, and one other
            self._counts["roots_pinned_last"].add(1)

    def _known(self) -> Collection[_Device]:
        return tuple(self._devices.values()) if self._devices else ()

    def _is_close(self, at: int) -> bool:
        return at > 0 and self._now() - at <= self._window_ns
