"""The one window into the model: named events that observers may attach to.

A hook that nobody wants is `None`, and the model pays one test for it. Events carry the kernel's
tracepoint name where one exists. The idea is trio's `Instrument`: an observer is any object that
has methods named after hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, cast

Hook = Callable[..., Any] | None

HOOKS: dict[str, str] = {
    "spte_changed": (
        "(sp, gfn, level, old, new, shared) kvm_tdp_mmu_spte_changed: after the write, in "
        "handle_changed_spte"
    ),
    "spte_zapped": (
        "(sp, gfn, level, old, new, shared) the part of kvm_tdp_mmu_spte_changed in which `old` "
        "was present"
    ),
    "root_allocated": "(root) a new root is on the list",
    "root_invalidated": "(root) role.invalid was set",
    "roots_kicked": (
        "(roots) every running vCPU has acknowledged FREE_OBSOLETE_ROOTS for these roots"
    ),
    "root_zapped": "(root) a scheduled root was zapped, its gifted reference is about to be put",
    "root_freed": "(root) the last reference went",
    "zap_all_fast": "(old_valid_gen) kvm_mmu_zap_all_fast: on entry, before the generation flips",
    "exported_zapped": (
        "(root, leaves) one exported root's leaf zap ended, still under mmu_lock(write)"
    ),
    "shadow_pages_zapped": "(pages) kvm_zap_obsolete_pages has zapped obsolete shadow pages",
    "obsolete_zap_broken": "() kvm_zap_obsolete_pages has dropped mmu_lock and taken it again",
    "zap_yielded": (
        "(root, since, goal) a walk dropped mmu_lock and took it again: where it started or "
        "yielded last, and where it goes on"
    ),
    "prepare_zap_page": "(sp, shared) kvm_mmu_prepare_zap_page: a table was unlinked",
    "frozen_met": "(gfn) a fault met a REMOVED (frozen) SPTE",
    "fault_stale": "(vcpu_or_none, gfn, why) a fault has to be retried",
    "fault_done": "(vcpu, result, ns) a vCPU fault was handled",
    "flush_begin": "(reason, gfn, pages) remote flush requested; pages < 0 means all",
    "flush_end": "(reason, gfn, pages, ns) all running vCPUs and importers are done",
    "importers_notified": "(exported, gfn, pages, ns) every importer of one exported TDP was told",
    "mmu_write_locked": "() mmu_lock was just taken for write",
    "mmu_write_unlocking": "() mmu_lock, held for write, is about to be released",
    "guest_enter": "(vcpu) a vCPU is in guest mode and has seen no pending request",
    "guest_exit": "(vcpu) a vCPU has left guest mode",
    "memslot_begin": "(change, slot) a memslot call took slots_lock",
    "memslot_gone": (
        "(slot) DELETE or MOVE: the old range must be unmapped now; slots_lock is still held"
    ),
    "memslot_end": (
        "(change, slot, parts) a memslot call returns, but for one that failed; parts maps phase "
        "to nanoseconds"
    ),
    "io_fault_begin": "(device, gfn, write) an IO page fault was taken from the queue",
    "io_fault_answered": (
        "(gfn, write, ok, mappable) decided, slots_lock still held; mappable as the slots say now"
    ),
    "io_fault_end": "(device, gfn, write, ok, ns) the page response was sent",
    "bad_translation": (
        "(who, gfn, pfn, write, spte) an access reached memory that is not the gfn's"
    ),
    "grace_period": "(ns, callbacks) one RCU grace period ended and its callbacks ran",
    "importer_called": "(importer, gfn, pages) an importer's invalidate callback is about to run",
    "walk_section": (
        "(steps, ns, can_yield) a zap went so many entries, and so long inside RCU, without "
        "yielding; whether it might have"
    ),
    "root_loaded": "(vcpu, ns) a vCPU has found or made its root (kvm_mmu_load)",
    "io_fault_held": "(ns) an IO page fault is decided; it has held slots_lock for so long",
    "io_fault_retried": "(gfn) an IO page fault has to be tried again",
    "fast_page_fault": "(gfn, old, new) fast_page_fault: an SPTE was fixed without mmu_lock",
    "huge_page_split": (
        "(gfn, level) kvm_mmu_split_huge_page: a huge leaf was replaced by a table of smaller ones"
    ),
    "mmio_honoured": (
        "(vcpu, gfn, spte, slots) an MMIO SPTE was found current: the access is emulated; `slots` "
        "is the set it was judged by"
    ),
    "mmio_wrapped": "(generation) the generation that MMIO SPTEs keep is about to wrap",
    "nx_toggle_begin": "(on) the NX huge page knob is about to be written",
    "nx_toggle_end": "(on) everything that was mapped under the old policy is gone",
    "range_started": (
        "(region, first, last, ns) invalidate_range_start returned: nothing may map these pages "
        "until the end"
    ),
    "importer_switched": (
        "(importer, acknowledged, ns) republish: an importer walks the new root, or was cut off"
    ),
    "republished": (
        "(old, fresh) republish: the old root is invalid, every importer is on the fresh one"
    ),
    "huge_mapped": "(sp, gfn, level, spte) a huge leaf was installed",
    "zap_leafs_done": (
        "(root, start, end, yielded) a leaf zap of [start, end) ended, mmu_lock still held; "
        "whether it yielded"
    ),
    "dirty_log_started": (
        "(slot) dirty logging of a slot is on, and everything it needs was protected and flushed"
    ),
    "dirty_log_read": (
        "(slot, pages) the dirty log was read and what was in it is protected again; slots_lock is "
        "held"
    ),
    "cmpxchg_lost": "(gfn) a compare-exchange of an SPTE was refused: somebody else was first",
    "grace_period_waited": (
        "(domain) a grace period has waited for a reader that was inside before it, and has now "
        "left"
    ),
    "root_pinned": (
        "(root, alive) a reference on a listed root was asked for; false if its last one was gone"
    ),
    "dma_begin": (
        "(device, gfn) a device is about to translate and access a gfn, as one transaction of its "
        "hardware"
    ),
    "dma_end": "(device) the transaction is over",
    "point": "(name) a preemption point (P1..P20 of the reference, and P8b) was reached",
}
"""Every hook with its arguments and meaning."""

ErrorSink = Callable[[str, BaseException], None]


class Probe:
    """Dispatch table of hooks; `attach` fills it in before the VM runs."""

    spte_changed: Hook
    spte_zapped: Hook
    root_allocated: Hook
    root_invalidated: Hook
    roots_kicked: Hook
    root_zapped: Hook
    root_freed: Hook
    zap_all_fast: Hook
    exported_zapped: Hook
    shadow_pages_zapped: Hook
    obsolete_zap_broken: Hook
    zap_yielded: Hook
    prepare_zap_page: Hook
    frozen_met: Hook
    fault_stale: Hook
    fault_done: Hook
    flush_begin: Hook
    flush_end: Hook
    importers_notified: Hook
    mmu_write_locked: Hook
    mmu_write_unlocking: Hook
    guest_enter: Hook
    guest_exit: Hook
    memslot_begin: Hook
    memslot_gone: Hook
    memslot_end: Hook
    io_fault_begin: Hook
    io_fault_answered: Hook
    io_fault_end: Hook
    bad_translation: Hook
    grace_period: Hook
    importer_called: Hook
    walk_section: Hook
    root_loaded: Hook
    io_fault_held: Hook
    io_fault_retried: Hook
    fast_page_fault: Hook
    huge_page_split: Hook
    mmio_honoured: Hook
    mmio_wrapped: Hook
    nx_toggle_begin: Hook
    nx_toggle_end: Hook
    range_started: Hook
    importer_switched: Hook
    republished: Hook
    huge_mapped: Hook
    zap_leafs_done: Hook
    dirty_log_started: Hook
    dirty_log_read: Hook
    cmpxchg_lost: Hook
    grace_period_waited: Hook
    root_pinned: Hook
    dma_begin: Hook
    dma_end: Hook
    point: Hook

    __slots__ = (*HOOKS, "_on_error", "_wanted")

    def __init__(self, on_error: ErrorSink | None = None) -> None:
        """`on_error(hook, exception)` is told when an observer raises; without it the exception
        propagates."""
        self._on_error = on_error
        self._wanted: dict[str, tuple[Callable[..., Any], ...]] = {}
        for name in HOOKS:
            setattr(self, name, None)

    def attach(self, *observers: object) -> None:
        """Connect every method of `observers` that is named after a hook. Call it before threads
        run."""
        changed: dict[str, None] = {}
        for observer in observers:
            for name in _hooks_of(
                cast(Any, type(observer)),
                frozenset(vars(observer)) if hasattr(observer, "__dict__") else frozenset(),
            ):
                method = getattr(observer, name)
                if callable(method):
                    self._wanted[name] = (*self._wanted.get(name, ()), method)
                    changed[name] = None
        for name in changed:
            setattr(self, name, self._dispatcher(name, self._wanted[name]))

    def _dispatcher(
        self, name: str, methods: tuple[Callable[..., Any], ...]
    ) -> Callable[..., None]:
        if self._on_error is not None:
            return partial(_tell_guarded, self._on_error, name, methods)
        return methods[0] if len(methods) == 1 else partial(_tell, methods)


@lru_cache(maxsize=256)
def _hooks_of(kind: Any, own: frozenset[str]) -> tuple[str, ...]:
    """The hooks that a class, or an object of it by its `own` attributes, has methods for."""
    return tuple(name for name in HOOKS if name in own or hasattr(kind, name))


def _tell(methods: tuple[Callable[..., Any], ...], *args: Any) -> None:
    for method in methods:
        method(*args)


def _tell_guarded(
    on_error: ErrorSink, name: str, methods: tuple[Callable[..., Any], ...], *args: Any
) -> None:
    try:
        for method in methods:
            method(*args)
    except Exception as error:
        on_error(name, error)
