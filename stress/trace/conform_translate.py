"""From lines of a recording to happenings: one small method for each event that is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from stress.trace import events, layouts
from stress.trace.conform_values import (
    FROZEN,
    NONE,
    OVER,
    PUBLISHED,
    REQUESTED,
    SEQ_TAKEN,
    SYNC,
    Happening,
    kernel_entry,
)
from stress.trace.events import Event, FieldError
from stress.trace.layouts import KernelLayout, Vendor
from stress.trace.names import EventNames

RESULTS: Final[dict[str, tuple[str, ...]]] = {
    "6.1": ("CONTINUE", "RETRY", "EMULATE", "INVALID", "FIXED", "SPURIOUS"),
    "6.12": ("CONTINUE", "RETRY", "EMULATE", "WRITE_PROTECTED", "INVALID", "FIXED", "SPURIOUS"),
    "7.2": ("CONTINUE", "RETRY", "EMULATE", "WRITE_PROTECTED", "INVALID", "FIXED", "SPURIOUS"),
}
"""RET_PF_* by number; WRITE_PROTECTED came with 6.12 (mmu_internal.h)."""

INVALID_ROLE: Final = {"6.1": 1 << 11, "6.12": 1 << 11, "7.2": 1 << 12}
"""role.invalid in the role word (kvm_host.h, union kvm_mmu_page_role)."""

REQUEST_NAMES: Final = {
    0: "TLB_FLUSH",
    26 + 8: "TLB_FLUSH_CURRENT",
    31 + 8: "MMU_FREE_OBSOLETE_ROOTS",
}
"""The TDP MMU's requests, by KVM_REQUEST_MASK; all others are none of its business."""

FUNCTIONS: Final = {
    "kvm_mmu_invalidate_end": "inv_end",
    "kvm_tdp_mmu_try_split_huge_pages": "split",
    "kvm_tdp_mmu_wrprot_slot": "wrprot_slot",
    "kvm_tdp_mmu_clear_dirty_pt_masked": "clear_dirty_pt",
    "kvm_service_local_tlb_flush_requests": "svc_tlb",
}
"""Probed functions that only `conform` looks at, by the name that it uses; for all others see
`stress.trace.names`."""

SYNCHRONISING: Final = {
    "kvm_faultin_pfn()": SEQ_TAKEN,
    "kvm_mmu_faultin_pfn()": SEQ_TAKEN,
    "synchronize_srcu_expedited()": PUBLISHED,
}
"""Function entries that tell which point of the model the kernel has just passed, or is about
to."""


class ConformNames(EventNames):
    """The names of `check`, and what only `conform` looks at. A probe is named by its function,
    whatever it was called."""

    def _learn(self, name: str, text: str, probe: bool) -> str:
        if probe:
            where, _, function = text[1:].partition(")")[0].partition(" <- ")
            symbol = (function or where).split("+")[0].split(" ")[0]
            if symbol in FUNCTIONS:
                return FUNCTIONS[symbol] + ("_ret" if function else "")
        return super()._learn(name, text, probe)


_WRITE, _FETCH, _RSVD = 1 << 1, 1 << 4, 1 << 3


class Translator:
    """Knows one kernel's numbers."""

    def __init__(self, kernel: KernelLayout, vendor: Vendor) -> None:
        self._kernel = kernel
        self._vendor = vendor
        self._results = RESULTS[kernel.name]
        self._level: dict[int, int] = {}
        self.freeze = (NONE, FROZEN)
        """The two entries of a change from empty to frozen."""
        self._known: dict[str, Callable[[Event], Happening | None]] = {
            "kvm_tdp_mmu_spte_changed": self._spte_changed,
            "kvm_mmu_prepare_zap_page": self._zap_page,
            "kvm_mmu_get_page": self._new_root,
            "kvm_mmu_spte_requested": self._requested,
            "fast_page_fault": self._fast,
            "check_mmio_spte": self._check_mmio,
            "kvm_tdp_mmu_zap_collapsible_sptes()": lambda event: Happening(
                "collapse", (), event.line
            ),
            "kvm_tdp_mmu_recover_huge_pages()": lambda event: Happening("collapse", (), event.line),
        }
        self._requesting: dict[int, bool] = {}

    def happening(self, event: Event) -> Happening | None:
        """What the line says was done; None when it says nothing that is compared."""
        if event.name in SYNCHRONISING:
            return Happening(SYNC, (SYNCHRONISING[event.name],), event.line)
        known = self._known.get(event.name)
        if known is not None:
            return known(event)
        made = getattr(self, f"_on_{event.name.strip('_')}", None)
        if made is None:
            return None
        payload = event.fields()
        if not isinstance(payload, events.ProbeEvent):
            return None  # a tracepoint, or a function, of the same name as a probe
        values = made(payload.args, event)
        return None if values is None else Happening(values[0], tuple(values[1:]), event.line)

    def fault(self, event: Event) -> dict[str, Any]:
        """kvm_page_fault: where, and what was tried (SVM's error code; VMX's exit
        qualification)."""
        payload = event.fields()
        error = payload.error
        given: dict[str, Any] = {
            "gfn": payload.address >> 12,
            "vcpu": payload.vcpu,
            "write": bool(error & _WRITE),
        }
        if self._vendor is layouts.AMD:
            given.update(
                present=bool(error & 1), fetch=bool(error & _FETCH), reserved=bool(error & _RSVD)
            )
        else:
            given.update(present=bool(error & 0x38), fetch=bool(error & 4), reserved=False)
        return given

    # Tracepoints.

    def _spte_changed(self, event: Event) -> Happening:
        change = event.fields()
        if change.level not in layouts.LEVELS:
            raise FieldError(f"there is no level {change.level}")
        old = kernel_entry(change.old, change.level, self._kernel, self._vendor)
        new = kernel_entry(change.new, change.level, self._kernel, self._vendor)
        return Happening("spte", (change.as_id, change.gfn, change.level, old, new), event.line)

    def _zap_page(self, event: Event) -> Happening:
        page = event.fields()
        return Happening("zap_page", (page.gfn, page.level), event.line)

    def _new_root(self, event: Event) -> Happening | None:
        page = event.fields()
        return (
            Happening("new_root", (page.level,), event.line)
            if page.created and page.level >= 4
            else None
        )

    def _requested(self, event: Event) -> None:
        self._level[event.pid] = event.fields().level

    def _fast(self, event: Event) -> Happening:
        fault = event.fields()
        old, new = (
            kernel_entry(spte, 1, self._kernel, self._vendor) for spte in (fault.old, fault.new)
        )
        how = "fixed" if fault.fixed else "spurious" if fault.spurious else "none"
        return Happening(
            "fast",
            (fault.address >> 12, how, old if fault.fixed else None, new if fault.fixed else None),
            event.line,
        )

    def _check_mmio(self, event: Event) -> Happening:
        check = event.fields()
        entry = kernel_entry(check.spte, 1, self._kernel, self._vendor)
        return Happening(
            "mmio_check", (entry.frame, check.spte_gen, check.kvm_gen, check.valid), event.line
        )

    # Probes; each returns the kind and its values.

    def _root(self, args: dict[str, Any]) -> int | None:
        """A root's address; 0 for none, None if it was not recorded."""
        address = args.get("root")
        if isinstance(address, str):
            raise FieldError("root= is no number")
        return address

    def _invalid(self, args: dict[str, Any]) -> bool | None:
        role = args.get("role")
        return None if role is None else bool(role & INVALID_ROLE[self._kernel.name])

    def _on_put_root(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "put", self._root(args), args.get("ref"), self._invalid(args)

    def _on_next_root_ret(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "walk", self._root(args)

    def _on_zap_root(self, args: dict[str, Any], event: Event) -> tuple[Any, ...]:
        if event.name == "__zap_root":
            return "zap_pass", self._root(args), args.get("zap_level"), bool(args.get("shared"))
        return (
            "zap_root",
            self._root(args),
            args.get("ref"),
            self._invalid(args),
            bool(args.get("shared")),
        )

    def _on_invalidate_all_roots(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "invalidate", args.get("gen"), args.get("inv_seq"), args.get("inv_prog")

    def _on_zap_all_fast(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return (
            "zap_all_fast",
            args.get("gen"),
            args.get("tdp_pages"),
            args.get("inv_seq"),
            args.get("inv_prog"),
        )

    def _on_zap_invalidated_roots(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "zap_invalidated", args.get("gen"), args.get("tdp_pages")

    def _on_make_all_req_ret(self, _args: dict[str, Any], event: Event) -> tuple[Any, ...] | None:
        return (SYNC, REQUESTED) if self._requesting.pop(event.pid, False) else None

    def _on_make_all_req(self, args: dict[str, Any], event: Event) -> tuple[Any, ...] | None:
        name = REQUEST_NAMES.get(args.get("req", -1) & 0xFF)
        self._requesting[event.pid] = name is not None
        return None if name is None else ("request", name)

    def _on_flush_remote(self, _args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return ("flush",)

    def _on_free_obsolete(self, _args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "served", "MMU_FREE_OBSOLETE_ROOTS"

    def _on_flush_all(self, _args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "served", "TLB_FLUSH"

    def _on_swap_memslots(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "swap", args.get("as_id")

    def _on_memslots_updated(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "generation", args.get("gen")

    def _on_flush_shadow_memslot(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "shadow", args.get("id"), args.get("gfn"), args.get("n")

    def _on_unmap_gfn_range(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "unmap", args.get("start"), args.get("end"), args.get("slot"), _flag(args, "flush")

    def _on_unmap_gfn_range_ret(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "unmapped", _flag(args, "flush")

    def _on_zap_leafs(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return (
            "zap_leafs",
            self._root(args),
            args.get("start"),
            args.get("end"),
            _flag(args, "flush"),
        )

    def _on_zap_leafs_ret(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "leafs_zapped", _flag(args, "flush")

    def _on_inv_end(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "invalidated", args.get("seq"), args.get("prog")

    def _on_mn_end_ret(self, _args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return SYNC, OVER

    _on_swap_memslots_ret = _on_mn_end_ret

    def _on_split(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "split", args.get("start"), args.get("end"), _flag(args, "shared")

    def _on_wrprot_slot(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "wrprot_slot", args.get("id"), args.get("min_level")

    def _on_wrprot_range(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "wrprot", self._root(args), args.get("start"), args.get("end"), args.get("min_level")

    def _on_wrprot_slot_ret(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "wrprot_done", _flag(args, "changed")

    def _on_clear_dirty_pt(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "protect", args.get("gfn"), args.get("mask"), _flag(args, "wrprot")

    def _on_stale(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "stale", args.get("gfn"), args.get("fault_seq"), args.get("seq"), args.get("prog")

    def _on_stale_ret(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "is_stale", _flag(args, "ret")

    def _on_map(self, args: dict[str, Any], event: Event) -> tuple[Any, ...]:
        self._level.pop(event.pid, None)
        return "map", args.get("gfn"), _flag(args, "write")

    def _on_map_ret(self, args: dict[str, Any], event: Event) -> tuple[Any, ...]:
        return "mapped", self._result(args), self._level.pop(event.pid, None)

    def _on_tdp_page_fault_ret(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "fault_done", self._result(args)

    def _on_zap_all(self, _args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return ("zap_all",)

    def _on_uninit_tdp(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "uninit", args.get("tdp_pages")

    def _on_mmu_unload(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "unload", self._physical(args), args.get("vcpu")

    def _on_load_pgd(self, args: dict[str, Any], _: Event) -> tuple[Any, ...]:
        return "loaded", self._physical(args), args.get("vcpu")

    def _physical(self, args: dict[str, Any]) -> int | None:
        """A root's physical address; 0 for INVALID_PAGE, None if it was not recorded."""
        root = self._root(args)
        return 0 if root == (1 << 64) - 1 else root

    def _result(self, args: dict[str, Any]) -> str | None:
        """RET_PF_*, or an error: all negative ones are INVALID to the model."""
        number = args.get("ret")
        if not isinstance(number, int):
            return None
        if number < 0:
            return "INVALID"
        return self._results[number] if number < len(self._results) else f"RET_PF {number}"


def _flag(args: dict[str, Any], name: str) -> bool | None:
    value = args.get(name)
    return None if value is None else bool(value)
