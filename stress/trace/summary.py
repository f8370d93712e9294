"""What happened in a recording, counted: calls, roots, SPTE changes, requests, flushes, faults."""

from __future__ import annotations

from collections import Counter
from typing import Final

from stress.trace.events import Event
from stress.trace.layouts import is_leaf, is_table

ROWS: Final = {
    "deletes": "slots deleted",
    "moves": "slots moved",
    "new_root": "roots made",
    "alloc_root": "roots asked for by a vCPU",
    "reused": "... and found",
    "put_last": "roots that had their last put",
    "free_sp": "table pages freed by RCU",
    "zap_all_fast": "fast zaps of everything",
    "leaf_zap": "leaves zapped",
    "leaf_set": "leaves set",
    "table_link": "tables linked",
    "table_zap": "tables unlinked",
    "frozen": "entries frozen",
    "flush_remote": "remote TLB flushes",
    "req_free_obs": "requests to drop obsolete roots",
    "kicked": "... that found a vCPU in the guest",
    "ack_kick": "kicks acknowledged",
    "pf": "page faults",
    "pf_retry": "... that retried",
    "stale": "... that found their root or page stale",
    "fast_fixed": "... fixed without mmu_lock",
    "mmio": "MMIO page faults",
    "mn_start": "mmu notifier invalidations",
    "flush_asid": "local TLB flushes (AMD)",
    "entries": "entries to the guest",
}
"""Each figure with its meaning, in the order of the table."""

_WANTED: Final = {
    "alloc_root": "alloc_root",
    "free_sp_rcu": "free_sp",
    "zap_all_fast": "zap_all_fast",
    "flush_remote": "flush_remote",
    "ack_kick": "ack_kick",
    "kvm_page_fault": "pf",
    "handle_mmio_page_fault": "mmio",
    "mn_start": "mn_start",
    "svm_flush_asid": "flush_asid",
    "kvm_entry": "entries",
}
"""Events that count as they are."""


class Summary:
    """Counts by the names of `ROWS`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def see(self, event: Event) -> None:
        """Count one event."""
        name, text, counts = event.name, event.text, self._counts
        if name == "kvm_tdp_mmu_spte_changed":
            self._change(text)
        elif name in _WANTED:
            counts[_WANTED[name]] += 1
        elif name == "kvm_mmu_get_page":
            counts["new_root"] += (" l4 " in text or " l5 " in text) and " new" in text
        elif name == "put_root":
            counts["put_last"] += " ref=1 " in text
        elif name == "set_memslot":
            counts["deletes"] += " change=1 " in text
            counts["moves"] += " change=2 " in text
        elif name == "make_all_req":
            counts["req_free_obs"] += text.endswith("req=0x327")
        elif name == "stale_ret":
            counts["stale"] += text.endswith("ret=1")
        elif name == "tdp_page_fault_ret":
            counts["pf_retry"] += text.endswith("ret=1")
        elif name == "fast_page_fault":
            counts["fast_fixed"] += " fixed 1" in text
        elif name == "make_all_req_ret":
            counts["kicked"] += "kvm_mmu_zap_all_fast+" in text and text.endswith("called=1")

    def _change(self, text: str) -> None:
        words = text.split()
        if len(words) != 11:
            return
        try:
            level, old, new = int(words[6]), int(words[8], 16), int(words[10], 16)
        except ValueError:
            return
        was, now = is_leaf(old, level), is_leaf(new, level)
        self._counts["leaf_zap"] += was and not now
        self._counts["leaf_set"] += now and not was
        self._counts["table_zap"] += is_table(old, level) and not is_table(new, level)
        self._counts["table_link"] += is_table(new, level) and not is_table(old, level)

    def as_dict(self) -> dict[str, int]:
        """The figures that are not 0, in the order of the table."""
        counts = self._counts
        counts["reused"] = max(0, counts["alloc_root"] - counts["new_root"]) if counts["alloc_root"] else 0
        return {name: counts[name] for name in ROWS if counts[name]}
