"""What happened in a recording, counted: calls, roots, SPTE changes, requests, flushes, faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from stress.trace.events import Event, SpteChanged
from stress.trace.layouts import is_frozen, is_leaf, is_table

ROWS: Final = {
    "deletes": "slots deleted",
    "moves": "slot moves asked for",
    "new_root": "roots made",
    "alloc_root": "roots asked for by a vCPU",
    "reused": "... and a walk found one",
    "put_last": "roots that had their last put",
    "free_sp": "table pages freed by RCU",
    "zap_all_fast": "fast zaps of everything",
    "leaf_zap": "leaves zapped",
    "leaf_set": "leaves set by faults",
    "table_link": "tables linked",
    "table_zap": "tables unlinked",
    "frozen": "entries frozen",
    "flush_remote": "remote TLB flushes",
    "req_free_obs": "requests to drop obsolete roots",
    "kicked": "requests that found a vCPU in the guest",
    "ack_kick": "kicks acknowledged",
    "pf": "page faults",
    "pf_retry": "... that retried",
    "stale": "... that found their root or page stale",
    "fast_fixed": "... fixed without mmu_lock",
    "mmio": "MMIO SPTEs set",
    "mn_start": "mmu notifier invalidations",
    "flush_asid": "local TLB flushes (AMD)",
    "entries": "entries to the guest",
}
"""Each figure with its meaning, in the order of the table."""

_AS_THEY_ARE: Final = {
    "alloc_root": "alloc_root",
    "free_sp_rcu": "free_sp",
    "zap_all_fast": "zap_all_fast",
    "flush_remote": "flush_remote",
    "ack_kick": "ack_kick",
    "kvm_page_fault": "pf",
    "mark_mmio_spte": "mmio",
    "mn_start": "mn_start",
    "flush_asid": "flush_asid",
    "kvm_entry": "entries",
    "kvm_mmu_set_spte": "leaf_set",
}
_WHERE: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "kvm_mmu_get_page": ("new_root", lambda page: page.created and page.level > 3),
    "put_root": ("put_last", lambda probe: probe.args.get("ref") == 1),
    "tracing_mark_write": (
        "moves_marked",
        lambda marker: marker.text.startswith("MK begin slot_move "),
    ),
    "make_all_req": ("req_free_obs", lambda probe: probe.args.get("req", 0) == 0x327),
    "stale_ret": ("stale", lambda probe: probe.args.get("ret") == 1),
    "tdp_page_fault_ret": ("pf_retry", lambda probe: probe.args.get("ret") == 1),
    "fast_page_fault": ("fast_fixed", lambda fault: fault.fixed),
    "make_all_req_ret": ("kicked", lambda probe: probe.args.get("called") == 1),
}
BY_NAME: Final = frozenset(_AS_THEY_ARE) - {"alloc_root"}
"""Events that are counted whatever they say, by canonical name."""
COUNTED: Final = frozenset(
    {*_AS_THEY_ARE, *_WHERE, "next_root_ret", "set_memslot", "kvm_tdp_mmu_spte_changed"}
)
"""Events that count, by canonical name."""


class Summary:
    """Counts by the names of `ROWS`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._searching: set[int] = set()

    def count(self, figure: str, times: int) -> None:
        """Count some more of a figure."""
        self._counts[figure] += times

    def see(self, name: str, event: Event, fields: Any) -> None:
        """Count one event."""
        counts = self._counts
        if name == "kvm_tdp_mmu_spte_changed":
            self._change(fields)
        elif name in _AS_THEY_ARE:
            counts[_AS_THEY_ARE[name]] += 1
            if name == "alloc_root":
                self._searching.add(event.pid)
        elif name in _WHERE:
            figure, holds = _WHERE[name]
            counts[figure] += holds(fields) if not event.function else 0
        elif name == "next_root_ret":
            if event.pid in self._searching and fields.args.get("root"):
                self._searching.discard(event.pid)
                counts["reused"] += fields.caller == "kvm_tdp_mmu_alloc_root"
        elif name == "set_memslot":
            counts["deletes"] += fields.args.get("change") == 1
            counts["moves"] += fields.args.get("change") == 2

    def _change(self, change: SpteChanged) -> None:
        level, old, new = change.level, change.old, change.new
        was, now = is_leaf(old, level), is_leaf(new, level)
        self._counts["leaf_zap"] += was and not now
        self._counts["table_zap"] += is_table(old, level) and not is_table(new, level)
        self._counts["table_link"] += is_table(new, level) and not is_table(old, level)
        self._counts["frozen"] += is_frozen(new)

    def as_dict(self) -> dict[str, int]:
        """The figures that are not 0, in the order of the table."""
        counts = self._counts
        counts["moves"] = max(counts["moves"], counts["moves_marked"])
        return {name: counts[name] for name in ROWS if counts[name]}
