"""The window into the model: the events that instruments may listen to.

Events carry the kernel's tracepoint name where one exists. Hooks are declared and dispatched as in
`mmu.sync.probe`, which has those of locks and RCU. An instrument is a subclass of `Instrument`:

    class Zaps(Instrument):
        @override
        def zap_all_fast(self, old_valid_gen: int) -> None:
            print("fast zap")

    probe = Probe()
    probe.attach(Zaps())
    vm = VirtualMachine(probe=probe)

In every hook, `gfn` is a guest frame number, `pages` counts 4 KiB pages, `level` is that of a page
table entry (1: 4 KiB), `ns` are nanoseconds on the runtime's clock, and an SPTE is its 64-bit word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from mmu.sync.probe import (
    ErrorSink,
    Listener,
    SyncHooks,
    SyncInstrument,
    SyncProbe,
    declared_in,
    hook,
    hooks_of,
    override,
)

if TYPE_CHECKING:
    from mmu.export.device import Device
    from mmu.export.importer import ExportedTdp, ImporterOps
    from mmu.export.iommu import PageRequest
    from mmu.machine.vcpu import Vcpu
    from mmu.memory.host import Region
    from mmu.memory.memslots import Change, Memslot, MemslotSet
    from mmu.paging.table import RootPage, ShadowPage
    from mmu.tdp.fault import RetPf
    from mmu.tdp.zap import Importer

__all__ = ["HOOKS", "ErrorSink", "Instrument", "Listener", "Listeners", "Probe", "override"]


class Hooks(SyncHooks):
    """Every hook of the model."""

    __slots__ = ()

    # SPTEs and tables.

    @hook
    def spte_changed(
        self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool
    ) -> None:
        """kvm_tdp_mmu_spte_changed: an SPTE of table `sp` was written, in handle_changed_spte().

        `shared` says that mmu_lock is held for read only.
        """

    @hook
    def spte_zapped(
        self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool
    ) -> None:
        """kvm_tdp_mmu_spte_changed, for an `old` that was present and a `new` that is not a table.

        Arguments as of `spte_changed`.
        """

    @hook
    def prepare_zap_page(self, sp: ShadowPage, shared: bool) -> None:
        """kvm_mmu_prepare_zap_page: table `sp` was unlinked, under mmu_lock held for read if
        `shared`."""

    @hook
    def huge_mapped(self, sp: ShadowPage, gfn: int, level: int, spte: int) -> None:
        """A huge leaf, `spte`, was installed in table `sp`."""

    @hook
    def huge_page_split(self, gfn: int, level: int) -> None:
        """kvm_mmu_split_huge_page: a huge leaf at `level` was replaced by a table of smaller
        ones."""

    @hook
    def cmpxchg_lost(self, gfn: int) -> None:
        """A compare-exchange of an SPTE was refused: another thread was first."""

    # Roots.

    @hook
    def root_allocated(self, root: RootPage) -> None:
        """A new root is on the list."""

    @hook
    def root_pinned(self, root: RootPage, alive: bool) -> None:
        """A reference on a listed root was asked for; `alive` is false if its last one was gone."""

    @hook
    def root_invalidated(self, root: RootPage) -> None:
        """role.invalid was set."""

    @hook
    def roots_kicked(self, roots: list[RootPage]) -> None:
        """Every running vCPU has acknowledged FREE_OBSOLETE_ROOTS for `roots`."""

    @hook
    def root_zapped(self, root: RootPage) -> None:
        """A scheduled root was zapped, and its gifted reference is about to be put."""

    @hook
    def root_freed(self, root: RootPage) -> None:
        """The last reference of a root went."""

    @hook
    def root_loaded(self, vcpu: Vcpu, ns: int) -> None:
        """kvm_mmu_load: a vCPU has found or made its root, in `ns`."""

    # Zaps.

    @hook
    def zap_all_fast(self, old_valid_gen: int) -> None:
        """kvm_mmu_zap_all_fast: a fast zap begins; `old_valid_gen` is the generation before it
        flips."""

    @hook
    def exported_zapped(self, root: RootPage, leaves: int) -> None:
        """One exported root lost `leaves` leaves; mmu_lock is still held for write."""

    @hook
    def shadow_pages_zapped(self, pages: int) -> None:
        """kvm_zap_obsolete_pages has zapped `pages` obsolete shadow pages."""

    @hook
    def obsolete_zap_broken(self) -> None:
        """kvm_zap_obsolete_pages has dropped mmu_lock and taken it again."""

    @hook
    def zap_leafs_done(self, root: RootPage, start: int, end: int, yielded: bool) -> None:
        """A leaf zap of the gfns [start, end) ended; mmu_lock is still held.

        `yielded` says that the zap dropped mmu_lock in between.
        """

    @hook
    def zap_yielded(self, root: RootPage, since: int, goal: int) -> None:
        """A walk dropped mmu_lock and took it again.

        `since` is the gfn where it started or yielded last, `goal` the gfn where it continues.
        """

    @hook
    def walk_section(self, steps: int, ns: int, can_yield: bool) -> None:
        """A zap visited `steps` entries, in `ns` inside one RCU section, without yielding.

        `can_yield` says that it was allowed to.
        """

    # Faults and accesses.

    @hook
    def fault_done(self, vcpu: Vcpu, result: RetPf, ns: int) -> None:
        """A vCPU fault was handled, in `ns`."""

    @hook
    def fault_stale(self, vcpu: Vcpu | None, gfn: int, why: str) -> None:
        """A fault has to be retried.

        `vcpu` is None for an IO page fault; `why` is "root" or "notifier".
        """

    @hook
    def frozen_met(self, gfn: int) -> None:
        """A fault met a REMOVED (frozen) SPTE."""

    @hook
    def fast_page_fault(self, gfn: int, old: int, new: int) -> None:
        """fast_page_fault: an SPTE was changed from `old` to `new` without mmu_lock."""

    @hook
    def mmio_honoured(self, vcpu: Vcpu, gfn: int, spte: int, slots: MemslotSet) -> None:
        """An MMIO SPTE was found current, so the access is emulated; `slots` is the set it was
        compared with."""

    @hook
    def mmio_wrapped(self, generation: int) -> None:
        """The generation that MMIO SPTEs keep is about to wrap, with the memslots at
        `generation`."""

    @hook
    def bad_translation(self, who: str | None, gfn: int, pfn: int, write: bool, spte: int) -> None:
        """An access reached a frame that does not belong to the gfn.

        `who` names the vCPU or the device, `spte` is what the page table says now. `who` is None
        for a write to a free frame, found when that is used again; `gfn` is then the writer's tag.
        """

    @hook
    def guest_enter(self, vcpu: Vcpu) -> None:
        """A vCPU is in guest mode and has seen no pending request."""

    @hook
    def guest_exit(self, vcpu: Vcpu) -> None:
        """A vCPU has left guest mode."""

    # Flushes, the host, the knob.

    @hook
    def flush_begin(self, reason: str, gfn: int, pages: int) -> None:
        """A remote flush was requested; `pages` < 0 means everything."""

    @hook
    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        """A remote flush is complete for all running vCPUs and importers, after `ns`."""

    @hook
    def range_started(self, region: Region, first: int, last: int, ns: int) -> None:
        """invalidate_range_start returned after `ns`: nothing may map the pages [first, last) of
        `region` until the end."""

    @hook
    def nx_toggle_begin(self, on: bool) -> None:
        """The NX huge page knob is about to be written."""

    @hook
    def nx_toggle_end(self, on: bool) -> None:
        """Everything that was mapped under the old setting of the NX huge page knob is gone."""

    # Memslots.

    @hook
    def memslot_begin(self, change: Change, slot: Memslot) -> None:
        """A memslot call took slots_lock; `slot` is the new slot, or the one to delete."""

    @hook
    def memslot_gone(self, slot: Memslot) -> None:
        """A DELETE or MOVE must have unmapped the old range by now; slots_lock is still held."""

    @hook
    def memslot_end(self, change: Change, slot: Memslot, parts: dict[str, int]) -> None:
        """A memslot call returns successfully; `parts` maps phases to nanoseconds."""

    @hook
    def dirty_log_started(self, slot: Memslot) -> None:
        """Dirty logging of a slot is on, and everything it needs is protected and flushed."""

    @hook
    def dirty_log_read(self, slot: Memslot, pages: set[int]) -> None:
        """The dirty log was read, and what was in it is protected again; slots_lock is held.

        `pages` are indexes into the slot.
        """

    # Exported TDPs, importers, devices.

    @hook
    def importers_notified(self, exported: ExportedTdp, gfn: int, pages: int, ns: int) -> None:
        """Every importer of one exported TDP was notified of an invalidation, in `ns`."""

    @hook
    def importer_called(self, importer: ImporterOps, gfn: int, pages: int) -> None:
        """An importer's invalidate callback is about to run."""

    @hook
    def importer_switched(self, importer: Importer, acknowledged: bool, ns: int) -> None:
        """Republish: an importer walks the new root, or was cut off if not `acknowledged`, after
        `ns`."""

    @hook
    def republished(self, old: RootPage, fresh: RootPage) -> None:
        """Republish: `old` is invalid, and every importer walks `fresh`."""

    @hook
    def io_fault_begin(self, device: Device, gfn: int, write: bool) -> None:
        """An IO page fault was taken from the queue."""

    @hook
    def io_fault_answered(self, gfn: int, write: bool, ok: bool, mappable: bool) -> None:
        """An IO page fault is decided; slots_lock is still held.

        `mappable` says whether the slots allow the access now.
        """

    @hook
    def io_fault_held(self, ns: int) -> None:
        """An IO page fault is decided, and has held slots_lock for `ns`."""

    @hook
    def io_fault_retried(self, gfn: int) -> None:
        """An IO page fault has to be tried again."""

    @hook
    def io_fault_end(self, device: Device, gfn: int, write: bool, ok: bool, ns: int) -> None:
        """The response to an IO page fault was sent, after `ns`."""

    @hook
    def page_response(self, request: PageRequest, ok: bool) -> None:
        """A page request group is about to be answered SUCCESS or FAILURE."""

    @hook
    def device_blocked(self, device: Device) -> None:
        """A device was detached from its root: no access of it reaches memory through that root any
        more. No root can be attached meanwhile."""

    @hook
    def dma_begin(self, device: Device, gfn: int) -> None:
        """A device is about to translate and access a gfn, in one transaction of its hardware."""

    @hook
    def dma_end(self, device: Device) -> None:
        """The transaction of a device is over."""

    # Preemption points.

    @hook
    def point(self, name: str) -> None:
        """A preemption point, P1 to P20 of the reference or P8b, was reached."""


class Instrument(Hooks, SyncInstrument):
    """Base of everything that observes the model; see `SyncInstrument` for the rules."""


class Listeners(Instrument):
    """An instrument made of functions, for hooks that are known only by name.

    Their arguments are not type-checked; a subclass of `Instrument` is better where the hooks are
    known.
    """

    def __init__(self, functions: Mapping[str, Listener]) -> None:
        """Call each of `functions` at the hook of its name. Raises `TypeError` for other names."""
        unknown = functions.keys() - HOOKS
        if unknown:
            raise TypeError(f"not a hook: {', '.join(sorted(unknown))}")
        self._functions = functions

    @override
    def listeners(self) -> Mapping[str, Listener]:
        return self._functions


class Probe(Hooks, SyncProbe):
    """The model's end of the window."""

    __slots__ = declared_in(Hooks)


HOOKS: Final = tuple(hooks_of(Hooks))
"""The name of every hook."""
