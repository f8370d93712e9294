"""Sites: which events with which results a run has reached, whatever engine ran it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmu.paging.spte import REMOVED_SPTE, SPTE_MMIO, SpteLayout
from mmu.probe import HOOKS, Listeners

_WHICH: dict[str, Callable[..., object]] = {
    "point": lambda name: name,
    "flush_begin": lambda reason, *_: reason,
    "flush_end": lambda reason, *_: reason,
    "fault_done": lambda _vcpu, result, _ns: result.name,
    "fault_stale": lambda vcpu, _gfn, why: f"{why}, {'vCPU' if vcpu is not None else 'device'}",
    "memslot_begin": lambda change, _slot: change.name,
    "memslot_end": lambda change, *_: change.name,
    "io_fault_end": lambda _device, _gfn, _write, ok, _ns: "ok" if ok else "failed",
    "io_fault_answered": lambda _gfn, _write, ok, _mappable: "ok" if ok else "failed",
    "prepare_zap_page": lambda _sp, shared: "shared" if shared else "exclusive",
    "importer_switched": lambda _importer, acknowledged, _ns: (
        "acknowledged" if acknowledged else "refused"
    ),
    "nx_toggle_end": lambda on: "on" if on else "off",
    "zap_leafs_done": lambda _root, _start, _end, yielded: "yielded" if yielded else "in one go",
}
"""What tells sites of one hook apart; without it the hook is one site."""


_TIMING = frozenset({"grace_period_waited"})
"""Hooks that tell how long something took, not where anybody is: a wait that was over when it began
is no other site."""


class Sites(Listeners):
    """An instrument that remembers what was reached; one set for any number of runs."""

    def __init__(self, layout: SpteLayout) -> None:
        self.reached: set[str] = set()
        self._layout = layout
        super().__init__({name: self._observer(name) for name in HOOKS if name not in _TIMING})

    def _observer(self, name: str) -> Callable[..., None]:
        which = _WHICH.get(name)
        add = self.reached.add
        if name in ("spte_changed", "spte_zapped"):
            return lambda _sp, _gfn, level, old, new, shared: add(
                f"{name}: level {level}, {self._state(old, level)} to {self._state(new, level)}, "
                f"{'shared' if shared else 'exclusive'}"
            )
        if which is None:
            return lambda *_: add(name)
        return lambda *evidence: add(f"{name}: {which(*evidence)}")

    def _state(self, spte: int, level: int) -> str:
        layout: Any = self._layout
        if spte == REMOVED_SPTE:
            return "frozen"
        if spte & SPTE_MMIO:
            return "MMIO"
        if layout.is_leaf(spte, level):
            return "leaf"
        return "table" if layout.is_table(spte, level) else "empty"
