"""The vocabulary of `check`: one canonical name for each function that matters, whatever a
recording calls its probe.

A probe event may have any name; the function in its payload cannot lie. `canonical` maps
`kvm_tdp_mmu_put_root` to `put_root`, and a return probe on it to `put_root_ret`. Functions that
changed their name between kernels share one.
"""

from __future__ import annotations

import re
from typing import Final

from stress.trace.events import Event

FUNCTIONS: Final = {
    # roots
    "kvm_tdp_mmu_alloc_root": "alloc_root",
    "kvm_tdp_mmu_get_vcpu_root_hpa": "alloc_root",  # until 6.8; returns the root's address
    "tdp_mmu_next_root": "next_root",
    "kvm_tdp_mmu_put_root": "put_root",
    "kvm_tdp_mmu_invalidate_all_roots": "invalidate_all_roots",
    "kvm_tdp_mmu_invalidate_roots": "invalidate_all_roots",  # 6.13 and later
    "kvm_tdp_mmu_zap_invalidated_roots": "zap_invalidated_roots",
    "kvm_mmu_uninit_tdp_mmu": "uninit_tdp",
    "tdp_mmu_free_sp_rcu_callback": "free_sp_rcu",
    # zapping
    "kvm_mmu_zap_all_fast": "zap_all_fast",
    "kvm_tdp_mmu_zap_all": "zap_all",
    "tdp_mmu_zap_root": "zap_root",
    "__tdp_mmu_zap_root": "__zap_root",
    "tdp_mmu_zap_leafs": "zap_leafs",
    "kvm_tdp_mmu_zap_leafs": "zap_leafs_all",  # takes no root
    "kvm_tdp_mmu_unmap_gfn_range": "unmap_gfn_range",
    "kvm_arch_flush_shadow_all": "flush_shadow_all",
    "kvm_arch_flush_shadow_memslot": "flush_shadow_memslot",
    "wrprot_gfn_range": "wrprot_range",
    "kvm_tdp_mmu_wrprot_slot": "wrprot_slot",
    "kvm_tdp_mmu_clear_dirty_pt_masked": "clear_dirty_pt",
    "kvm_tdp_mmu_try_split_huge_pages": "split",
    "kvm_recover_nx_huge_pages": "recover_nx",
    # memslots
    "kvm_set_memslot": "set_memslot",
    "kvm_swap_active_memslots": "swap_memslots",
    "kvm_arch_memslots_updated": "memslots_updated",
    # faults
    "kvm_tdp_page_fault": "tdp_page_fault",
    "direct_page_fault": "tdp_page_fault",
    "fast_page_fault": "fast_pf",
    "is_page_fault_stale": "stale",
    "kvm_tdp_mmu_map": "map",
    # vCPUs
    "kvm_mmu_load": "mmu_load",
    "kvm_mmu_unload": "mmu_unload",
    "kvm_mmu_free_roots": "mmu_free_roots",
    "kvm_mmu_free_obsolete_roots": "free_obsolete",
    "svm_load_mmu_pgd": "load_pgd",
    "vmx_load_mmu_pgd": "load_pgd",
    "svm_flush_tlb_current": "flush_current",
    "vmx_flush_tlb_current": "flush_current",
    "vmx_flush_tlb_all": "flush_all",
    "svm_flush_tlb_all": "flush_all",
    "svm_flush_tlb_asid": "flush_asid",
    # requests and flushes
    "kvm_make_all_cpus_request": "make_all_req",
    "kvm_make_all_cpus_request_except": "make_all_req",
    "kvm_flush_remote_tlbs": "flush_remote",
    "kvm_flush_remote_tlbs_range": "flush_remote_range",
    "kvm_flush_remote_tlbs_with_address": "flush_remote_range",  # until 6.4
    "kvm_flush_remote_tlbs_memslot": "flush_remote_memslot",
    "kvm_arch_flush_remote_tlbs_memslot": "flush_remote_memslot",  # until 6.4
    # mmu notifiers and dirty logging
    "kvm_mmu_notifier_invalidate_range_start": "mn_start",
    "kvm_mmu_notifier_invalidate_range_end": "mn_end",
    "kvm_mmu_notifier_release": "mn_release",
    "kvm_get_dirty_log_protect": "get_dirty_log",
    "kvm_clear_dirty_log_protect": "clear_dirty_log",
    # life of the VM
    "kvm_arch_init_vm": "init_vm",
    "kvm_mmu_init_vm": "init_vm",
    "kvm_mmu_init_tdp_mmu": "init_vm",
    "kvm_destroy_vm": "destroy_vm",
    "kvm_arch_destroy_vm": "arch_destroy_vm",
}
"""Canonical names by function. Entries and returns of these open and close a frame of the task."""

PROBE_NAMES: Final = {
    "get_vcpu_root": "alloc_root",
    "invalidate_roots": "invalidate_all_roots",
    "load_ept": "load_pgd",
    "svm_load_pgd": "load_pgd",
    "svm_flush_current": "flush_current",
    "svm_flush_asid": "flush_asid",
    "svm_flush_all": "flush_all",
    **{canonical: canonical for canonical in FUNCTIONS.values()},
}
"""Probes of `stress trace record` and of the kernel lab that are not named canonically."""

TRACEPOINTS: Final = frozenset(
    {
        "kvm_tdp_mmu_spte_changed",
        "kvm_mmu_set_spte",
        "kvm_mmu_get_page",
        "kvm_mmu_prepare_zap_page",
        "kvm_mmu_zap_all_fast",
        "kvm_mmu_split_huge_page",
        "fast_page_fault",
        "mark_mmio_spte",
        "check_mmio_spte",
        "handle_mmio_page_fault",
        "kvm_entry",
        "kvm_exit",
        "kvm_page_fault",
        "kvm_userspace_exit",
        "kvm_unmap_hva_range",
        "tracing_mark_write",
    }
)
"""Tracepoints that `check` looks at; of the others it only counts the lines."""


_CANONICAL: Final = frozenset(FUNCTIONS.values())
_OWN_NAME: Final = re.compile(
    r"(?:[pr]_(?=.*_\d+$))?(.+?)(?:_gen)?(?:_alt)?(?:_ret|__return|__entry|__exit|(?<=[a-z])_\d{1,4})?$"
)
"""The name of a probe event without what tracefs (`p_FUNCTION_0`, `FUNCTION__exit`) and scripts
(`put_root_alt`, `put_root_ret`) add to it."""


def _base_of(name: str) -> str:
    found = _OWN_NAME.match(name)
    return found[1] if found else name


class EventNames(dict[tuple[str, bool], str]):
    """Canonical names by (event name, is it a probe event); learned as the events come."""

    def of(self, event: Event) -> str:
        """The canonical name: of a function entry with `()`, of an unknown event its own."""
        name, text = event.name, event.text
        probe = text.startswith("(")
        known = self.get((name, probe))
        if known is None:
            known = self._learn(name, text, probe)
            if len(self) < 10_000:
                self[name, probe] = known
        return known

    def _learn(self, name: str, text: str, probe: bool) -> str:
        if name.endswith("()"):
            canonical = FUNCTIONS.get(name[:-2])
            return f"{canonical}()" if canonical else name
        if not probe:
            return f"?{name}" if name.removesuffix("_ret") in _CANONICAL else name
        where, _, function = text[1:].partition(")")[0].partition(" <- ")
        symbol = (function or where).split("+")[0].split(" ")[0]
        canonical = FUNCTIONS.get(symbol)
        if canonical is None and symbol not in FUNCTIONS:
            # trace-cmd and perf print addresses: the event's own name is all there is
            base = _base_of(name)
            canonical = FUNCTIONS.get(base) or PROBE_NAMES.get(base)
        if canonical is None:
            return f"?{name}" if name in TRACEPOINTS else name
        return f"{canonical}_ret" if function else canonical
