"""Gauges: what a VM holds, sampled now and then; peaks and latest values are figures of the run
(M8, M12)."""

from __future__ import annotations

from collections.abc import Callable

from mmu.invariants import State
from mmu.machine.vm import VirtualMachine
from mmu.probe import Instrument, override

GAUGES = {
    "table_pages": "page-table pages linked below roots",
    "roots": "TDP MMU roots alive",
    "rcu_backlog": "RCU callbacks that wait for a grace period",
    "mapped_leaves": "leaves of all sizes",
    "nx_lpage_splits": "tables that only the NX mitigation keeps",
    "empty_tables": "last-level tables without a single leaf, seen at rest (R16)",
}
"""Every gauge with its meaning."""


class Gauges(Instrument):
    """An instrument as well, because only events can tell how many roots there are; `sample` is
    called by one thread."""

    def __init__(self, vm: VirtualMachine) -> None:
        self._vm = vm
        kvm = vm.kvm
        self._roots = kvm.runtime.counter("gauges.roots")
        self._read: dict[str, Callable[[], int]] = {
            "table_pages": lambda: kvm.stat.tdp_mmu_pages.value,
            "roots": lambda: self._roots.value,
            "rcu_backlog": kvm.rcu.pending,
            "mapped_leaves": kvm.stat.leaves,
            "nx_lpage_splits": lambda: kvm.stat.nx_lpage_splits.value,
        }
        self.last = dict.fromkeys(GAUGES, 0)
        self.peak = dict.fromkeys(GAUGES, 0)

    @override
    def root_allocated(self, root: object) -> None:
        self._roots.fetch_add(1)

    @override
    def root_freed(self, root: object) -> None:
        self._roots.fetch_add(-1)

    def sample(self) -> None:
        """Look at everything that is cheap to look at."""
        for name, read in self._read.items():
            self._note(name, read())

    def at_rest(self) -> None:
        """Everybody stands still: count the tables that a leaf-only zap has left behind."""
        self.sample()
        last_level = (
            child
            for tree in State(self._vm).trees
            for child, _, _ in tree.tables
            if child.level == 1
        )
        self._note("empty_tables", sum(1 for table in last_level if not any(table.spt)))

    def _note(self, name: str, value: int) -> None:
        self.last[name] = value
        self.peak[name] = max(self.peak[name], value)
