"""The flight recorder: each thread's last events, merged when a report wants to show what led to
it."""

from __future__ import annotations

import threading
from collections import deque
from typing import TypeVar

from attrs import evolve

from mmu.memory.memslots import Change, Memslot
from mmu.memory.tlb import WHOLE
from mmu.paging.spte import REMOVED_SPTE, SpteLayout, describe
from mmu.paging.table import RootPage, ShadowPage
from mmu.probe import Instrument, override
from mmu.report import Report, section
from mmu.runtime import Runtime
from mmu.task import current

KEPT = 2048
"""Events kept a thread; older ones are dropped."""
SHOWN = 14

Event = tuple[int, int, int, int, int] | tuple[int, int, str]
"""An SPTE change (time in ns, gfn, level, old, new), or a note (time in ns, gfn or -1, text).

Nothing is formatted before somebody reads it, and a new mapping (old is 0) does not even look at
the clock: it carries the time of the latest other event of any thread, and is shown as later than
that. This is the one hook that every fault calls.
"""


T = TypeVar("T")


class Recorder(Instrument):
    """An instrument that keeps the newest events of every thread."""

    def __init__(self, runtime: Runtime, layout: SpteLayout) -> None:
        self._now = runtime.now
        self._layout = layout
        self._clock = self._now()
        self._lock = threading.Lock()
        self._rings: list[tuple[str, deque[Event]]] = []
        self._ring = runtime.local(self._enlist)

    def _enlist(self) -> deque[Event]:
        """A task records for the first time."""
        events: deque[Event] = deque(maxlen=KEPT)
        with self._lock:
            self._rings.append((str(current.task), events))
        return events

    # Hooks.

    @override
    def spte_changed(
        self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool
    ) -> None:
        # The freezing of an entry that held nothing is left out: a table has 512 of them.
        if old:
            self._clock = self._now()
            self._ring.mine.append((self._clock, gfn, level, old, new))
        elif new != REMOVED_SPTE:
            self._ring.mine.append((self._clock, gfn, level, 0, new))

    @override
    def zap_all_fast(self, old_valid_gen: int) -> None:
        self._note("kvm_mmu_zap_all_fast", -1, f"mmu_valid_gen {old_valid_gen}")

    @override
    def root_allocated(self, root: RootPage) -> None:
        self._note("root_allocated", -1, root.describe())

    @override
    def root_invalidated(self, root: RootPage) -> None:
        self._note("root_invalidated", -1, root.describe())

    @override
    def root_zapped(self, root: RootPage) -> None:
        self._note("root_zapped", -1, root.describe())

    @override
    def root_freed(self, root: RootPage) -> None:
        self._note("root_freed", -1, root.describe())

    @override
    def exported_zapped(self, root: RootPage, leaves: int) -> None:
        self._note("exported_zap", -1, f"{leaves} leaves of {root.describe()}")

    @override
    def flush_begin(self, reason: str, gfn: int, pages: int) -> None:
        self._note(
            "flush_begin",
            -1,
            f"{reason}, {'everything' if pages == WHOLE else f'{pages} pages from {gfn:#x}'}",
        )

    @override
    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        self._note("flush_end", -1, reason)

    @override
    def importers_notified(self, exported: object, gfn: int, pages: int, ns: int) -> None:
        self._note(
            "importers_notified",
            -1,
            "everything" if pages == WHOLE else f"{pages} pages from {gfn:#x}",
        )

    @override
    def memslot_begin(self, change: Change, slot: Memslot) -> None:
        self._note("memslot_begin", -1, f"{change.value} {slot.describe()}")

    @override
    def memslot_end(self, change: Change, slot: Memslot, parts: object) -> None:
        self._note("memslot_end", -1, f"{change.value} {slot.describe()}")

    @override
    def io_fault_end(self, device: object, gfn: int, write: bool, ok: bool, ns: int) -> None:
        self._note("io_fault", gfn, "SUCCESS" if ok else "FAILURE")

    def _note(self, kind: str, gfn: int, text: str) -> None:
        self._clock = self._now()
        self._ring.mine.append((self._clock, gfn, f"{kind} {text}"))

    # Reading.

    def last(self, gfn: int | None, count: int = SHOWN) -> list[str]:
        """The newest events of all threads: half of them about `gfn`, the rest about the VM as a
        whole; oldest first."""
        with self._lock:
            rings = [(task, copy_of(ring)) for task, ring in self._rings]
        found = [(event, task) for task, ring in rings for event in ring]
        local = (
            sorted((item for item in found if item[0][1] == gfn), key=_when)
            if gfn is not None
            else []
        )
        others = sorted((item for item in found if item[0][1] == -1), key=_when)
        merged = sorted(
            local[-count // 2 :] + others[-(count - min(len(local), count // 2)) :], key=_when
        )
        if not merged:
            return []
        end = merged[-1][0][0]
        return [
            f"{_later(event)}{(event[0] - end) / 1e6:9.3f} ms  {task:<18} {self._text(event)}"
            for event, task in merged
        ]

    def enrich(self, report: Report) -> Report:
        """Add the last events to a report."""
        lines = self.last(report.gfn)
        about = "" if report.gfn is None else f" on gfn {report.gfn:#x}"
        title = f"last events{about} (> marks a new mapping, made at that time or a little later)"
        return (
            evolve(report, sections=(*report.sections, section(title, lines))) if lines else report
        )

    def _text(self, event: Event) -> str:
        if len(event) == 3:
            return event[2] if event[1] < 0 else f"gfn {event[1]:#x} {event[2]}"
        _, gfn, level, old, new = event
        return (
            f"spte_changed gfn {gfn:#x} level {level} {describe(old, self._layout, level)} -> "
            f"{describe(new, self._layout, level)}"
        )


def copy_of(ring: deque[T]) -> list[T]:
    """A ring's entries while its thread goes on adding: on a free-threaded build a copy can be
    disturbed, so try again."""
    for _ in range(100):
        try:
            return list(ring)
        except RuntimeError:
            continue
    return []


def _when(item: tuple[Event, str]) -> tuple[int, bool]:
    """Sorts by time; what is only known to be later comes after what happened at that time."""
    return item[0][0], _later(item[0]) == ">"


def _later(event: Event) -> str:
    return ">" if len(event) == 5 and not event[3] else " "
