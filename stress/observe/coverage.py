"""Which operation made which change of an SPTE, and which operation came after which on the same
page.

Every fault comes through here, so nothing is classified while the model runs: a change is counted
under a few bits of the old and the new value, in a table of the calling thread's own, and the bits
are given names when somebody reads.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import Final

from attrs import frozen

from mmu.memory.memslots import Change
from mmu.paging.spte import REMOVED_SPTE, SPTE_MMIO, SPTE_PS, SPTE_W, SpteLayout
from mmu.paging.table import ShadowPage
from mmu.probe import Instrument, override
from mmu.runtime import Runtime
from mmu.task import current

_PLACES: Final = 4096
"""Entries whose last operation is remembered; where two meet, the newer one is."""
PASSED_OVER: Final = 7
"""What every fault does, to map a page, is watched on every eighth page, and so are orders: that is
an eighth of the cost."""
_WHO: Final = 0xFFFF00
"""The thread's number in a mark."""

_FROZEN: Final = REMOVED_SPTE & SPTE_PS
"""What is left of a frozen entry: nothing else has this bit without being present."""

STATES: Final = ("empty", "frozen", "MMIO", "table", "leaf", "read-only leaf", "huge leaf", "other")
"""What an SPTE can be."""
OPERATIONS: Final[dict[str, str]] = {
    "vcpu": "vCPU fault",
    "iopf": "IO page fault",
    "memslot-worker": "memslot worker, other",
    "host": "host (MMU notifier)",
    "userfaultfd": "userfaultfd handler",
    "dirty-logger": "dirty logger",
    "nx-admin": "NX toggle",
    "nx-recovery": "NX recovery",
    "exporter": "export, un-export",
    "device": "device",
    "engine": "device",
    "exit": "end of the process",
    "setup": "set-up, end",
    "teardown": "set-up, end",
}
"""What a task does to SPTEs, by the task's name without its number; a memslot call is told apart by
its change."""
_CALLS: Final = {change: f"memslot {change.value}" for change in Change}


@frozen
class SpteChangeCount:
    """`operation` changed entries at `level` from `old` to `new` so many times; `shared` is under
    mmu_lock held for read."""

    operation: str
    level: int
    old: str
    new: str
    shared: bool
    count: int


@frozen
class SpteOrderCount:
    """So many times the next change of a page's last-level entry after one by `first` was one by
    `then`, on another thread."""

    first: str
    then: str
    count: int


@frozen
class Coverage:
    """Every cell and every order that was seen."""

    cells: tuple[SpteChangeCount, ...] = ()
    orders: tuple[SpteOrderCount, ...] = ()


_Key = tuple[int, int, int, bool]


class _ThreadCoverage:
    """What one thread did. `counts` belongs to the operation that it is in, `mark` is its number
    and the operation's."""

    __slots__ = ("by_operation", "counts", "mark", "orders", "usual", "who")

    def __init__(self, task: str, who: int) -> None:
        self.usual = operation_of(task)
        self.who = who
        self.by_operation: dict[str, dict[_Key, int]] = {}
        self.orders: dict[int, int] = {}
        self.counts: dict[_Key, int] = {}
        self.mark = 0


class SpteCoverage(Instrument):
    """An instrument. What other threads' tables say is read while they go on: the figures are
    those of some moment."""

    def __init__(self, runtime: Runtime, layout: SpteLayout) -> None:
        self._layout = layout
        self._mask = layout.present | SPTE_PS | SPTE_W | SPTE_MMIO
        self._lock = threading.Lock()
        self._parts: list[_ThreadCoverage] = []
        self._names: dict[str, int] = {}
        self._last = [-1] * _PLACES
        self._local = runtime.local(self._enlist)

    def _enlist(self) -> _ThreadCoverage:
        """A task changes an SPTE for the first time."""
        with self._lock:
            mine = _ThreadCoverage(current.task.name, len(self._parts) + 1 & 0xFFFF)
            self._parts.append(mine)
        self._enter(mine, mine.usual)
        return mine

    def _enter(self, mine: _ThreadCoverage, operation: str) -> None:
        """From now on this is what the thread does."""
        with self._lock:
            number = self._names.setdefault(operation, min(255, len(self._names) + 1))
        mine.counts = mine.by_operation.setdefault(operation, {})
        mine.mark = mine.who << 8 | number

    @override
    def spte_changed(
        self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool
    ) -> None:
        # Left out: seven of eight new mappings, and the freezing of entries that held nothing.
        if not old and ((level == 1 and gfn & PASSED_OVER) or new == REMOVED_SPTE):
            return
        mine = self._local.mine
        key = (level, old & self._mask, new & self._mask, shared)
        counts = mine.counts
        try:
            counts[key] += 1
        except KeyError:
            counts[key] = 1
        if not gfn & PASSED_OVER and level == 1:
            self._follow(gfn, mine)

    def _follow(self, gfn: int, mine: _ThreadCoverage) -> None:
        """Which operation of another thread changed this page before?"""
        places = self._last
        place = gfn >> 3 & _PLACES - 1
        before = places[place]
        places[place] = mark = gfn << 24 | mine.mark
        if (before ^ mark) & _WHO and before >> 24 == gfn:
            pair = (before & 255) << 8 | mark & 255
            mine.orders[pair] = mine.orders.get(pair, 0) + 1

    @override
    def memslot_begin(self, change: Change, slot: object) -> None:
        self._enter(self._local.mine, _CALLS[change])

    @override
    def memslot_end(self, change: Change, slot: object, parts: object) -> None:
        mine = self._local.mine
        self._enter(mine, mine.usual)

    def coverage(self) -> Coverage:
        """What was seen so far."""
        with self._lock:
            parts = list(self._parts)
            names = {number: name for name, number in self._names.items()}
        cells: Counter[tuple[str, int, str, str, bool]] = Counter()
        orders: Counter[tuple[str, str]] = Counter()
        for mine in parts:
            for operation, counts in mine.by_operation.copy().items():
                for (level, old, new, shared), count in counts.copy().items():
                    cells[
                        operation, level, self.state(old, level), self.state(new, level), shared
                    ] += count
            for pair, count in mine.orders.copy().items():
                orders[names[pair >> 8], names[pair & 255]] += count
        return Coverage(
            tuple(SpteChangeCount(*key, count) for key, count in sorted(cells.items())),
            tuple(SpteOrderCount(*key, count) for key, count in sorted(orders.items())),
        )

    def state(self, bits: int, level: int) -> str:
        """The state that an SPTE with these bits is in, of `STATES`."""
        if bits & SPTE_MMIO:
            return "MMIO"
        if bits == _FROZEN:
            return "frozen"
        if self._layout.is_table(bits, level):
            return "table"
        if not bits & self._layout.present:
            return "other" if bits else "empty"
        if level > 1:
            return "huge leaf"
        return "leaf" if bits & SPTE_W else "read-only leaf"


def operation_of(task: str) -> str:
    """What a task of this name does to SPTEs when it is in no call that says more."""
    kind = re.sub(r"\d+$", "", task)
    return OPERATIONS.get(kind, kind)
