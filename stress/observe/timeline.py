"""The timeline: what every thread was doing when, as slices and instants, the newest of each
thread.

A slice is recorded when it ends, as one tuple in a ring of the thread's own; nothing is formatted
before somebody reads it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from attrs import frozen

from mmu.memory.memslots import Change, Memslot
from mmu.memory.tlb import WHOLE
from mmu.paging.table import RootPage
from mmu.probe import Instrument, override
from mmu.runtime import Runtime
from mmu.task import current
from stress.observe.recorder import copy_of

KEPT = 2048
"""Slices and instants kept a thread; older ones are counted."""
STORED = 40_000
"""Of all threads together, so many are stored: the newest."""

KINDS: dict[str, str] = {
    "mmu_lock (write)": "lock",
    "slots_lock": "lock",
    "RCU read section (zap)": "rcu",
    "grace period": "rcu",
    "guest mode": "guest",
    "DMA": "guest",
    "fault": "fault",
    "IO page fault": "fault",
    "root load": "fault",
    "memslot": "call",
    "notifier range start": "call",
    "NX toggle": "call",
    "invalidate roots": "zap",
    "zap exported leaves": "zap",
    "flush": "flush",
    "notify importers": "flush",
    "switch importer": "flush",
    "root allocated": "root",
    "root invalidated": "root",
    "root zapped": "root",
    "root freed": "root",
}
"""Every kind of slice and instant, with its category."""

_Entry = tuple[str, int, int, Any]
"""Kind, end in ns, length in ns (-1 for an instant), and what it was about."""


@frozen
class Mark:
    """A slice, or an instant, which has no `us`. Times are microseconds since the run began."""

    kind: str
    at_us: float
    us: float | None
    about: str


@frozen
class Track:
    """What one thread did, oldest first; `left_out` is how much of it is not kept."""

    task: str
    marks: tuple[Mark, ...]
    left_out: int = 0


class _ThreadTimeline:
    """What one thread records: its ring, how much went into it, what it has begun."""

    __slots__ = ("append", "began", "in_guest_at", "made", "ring", "task")

    def __init__(self, task: str) -> None:
        self.task = task
        self.ring: deque[_Entry] = deque(maxlen=KEPT)
        self.append = self.ring.append
        self.made = 0
        self.began: dict[str, int] = {}
        self.in_guest_at = 0


class Timeline(Instrument):
    """An instrument that keeps the newest slices of every thread."""

    def __init__(self, runtime: Runtime, origin: int | None = None) -> None:
        """Times are counted from `origin` on, nanoseconds on the runtime's clock, or from now."""
        self._now = runtime.now
        self._origin = runtime.now() if origin is None else origin
        self._lock = threading.Lock()
        self._parts: list[_ThreadTimeline] = []
        self._local = runtime.local(self._enlist)

    def _enlist(self) -> _ThreadTimeline:
        """A task records for the first time."""
        mine = _ThreadTimeline(str(current.task))
        with self._lock:
            self._parts.append(mine)
        return mine

    def _begin(self, kind: str) -> None:
        self._local.mine.began[kind] = self._now()

    def _end(self, kind: str, about: Any = "") -> None:
        """A slice of `kind` ends that this thread has begun; one whose beginning was not seen is
        nothing."""
        began = self._local.mine.began.pop(kind, None)
        if began is not None:
            self._slice(kind, self._now() - began, about)

    def _slice(self, kind: str, ns: int, about: Any = "") -> None:
        mine = self._local.mine
        mine.made += 1
        mine.append((kind, self._now(), ns, about))

    # Slices whose length the event tells.

    @override
    def fault_done(self, vcpu: object, result: Any, ns: int) -> None:
        self._slice("fault", ns, result)

    @override
    def root_loaded(self, vcpu: object, ns: int) -> None:
        self._slice("root load", ns)

    @override
    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        self._slice("flush", ns, (reason, gfn, pages))

    @override
    def importers_notified(self, exported: object, gfn: int, pages: int, ns: int) -> None:
        self._slice("notify importers", ns, ("", gfn, pages))

    @override
    def importer_switched(self, importer: object, acknowledged: bool, ns: int) -> None:
        self._slice("switch importer", ns, "acknowledged" if acknowledged else "refused")

    @override
    def io_fault_held(self, ns: int) -> None:
        self._slice("slots_lock", ns)

    @override
    def io_fault_end(self, device: object, gfn: int, write: bool, ok: bool, ns: int) -> None:
        self._slice("IO page fault", ns, f"gfn {gfn:#x}: {'SUCCESS' if ok else 'FAILURE'}")

    @override
    def walk_section(self, steps: int, ns: int, can_yield: bool) -> None:
        self._slice("RCU read section (zap)", ns, f"{steps} SPTEs")

    @override
    def grace_period(self, ns: int, callbacks: int) -> None:
        self._slice("grace period", ns, f"{callbacks} callbacks")

    @override
    def range_started(self, region: object, first: int, last: int, ns: int) -> None:
        self._slice("notifier range start", ns, f"{last - first} pages")

    # Slices with two events.

    @override
    def mmu_write_locked(self) -> None:
        self._begin("mmu_lock (write)")

    @override
    def mmu_write_unlocking(self) -> None:
        self._end("mmu_lock (write)")

    @override
    def guest_enter(self, vcpu: object) -> None:
        # Every fault leaves the guest and enters it again, so this does without `_begin`.
        self._local.mine.in_guest_at = self._now()

    @override
    def guest_exit(self, vcpu: object) -> None:
        mine = self._local.mine
        began, now = mine.in_guest_at, self._now()
        if began:
            mine.in_guest_at = 0
            mine.made += 1
            mine.append(("guest mode", now, now - began, ""))

    @override
    def dma_begin(self, device: object, gfn: int) -> None:
        self._begin("DMA")

    @override
    def dma_end(self, device: object) -> None:
        self._end("DMA")

    @override
    def memslot_begin(self, change: Change, slot: Memslot) -> None:
        self._begin("memslot")

    @override
    def memslot_end(self, change: Change, slot: Memslot, parts: object) -> None:
        self._end("memslot", f"{change.value} {slot.describe()}")

    @override
    def nx_toggle_begin(self, on: bool) -> None:
        self._begin("NX toggle")

    @override
    def nx_toggle_end(self, on: bool) -> None:
        self._end("NX toggle", "on" if on else "off")

    @override
    def zap_all_fast(self, old_valid_gen: int) -> None:
        self._begin("invalidate roots")

    @override
    def roots_kicked(self, roots: object) -> None:
        self._end("invalidate roots")
        self._begin("zap exported leaves")

    @override
    def exported_zapped(self, root: RootPage, leaves: int) -> None:
        self._end("zap exported leaves", f"{leaves} leaves of root {root.address:#x}")

    # Instants.

    @override
    def root_allocated(self, root: RootPage) -> None:
        self._slice("root allocated", -1, root.address)

    @override
    def root_invalidated(self, root: RootPage) -> None:
        self._slice("root invalidated", -1, root.address)

    @override
    def root_zapped(self, root: RootPage) -> None:
        self._slice("root zapped", -1, root.address)

    @override
    def root_freed(self, root: RootPage) -> None:
        self._slice("root freed", -1, root.address)

    # Reading.

    def tracks(self) -> tuple[Track, ...]:
        """The newest marks of every thread, at most `STORED` of them together."""
        with self._lock:
            rings = [(mine.task, copy_of(mine.ring), mine.made) for mine in self._parts]
        ends = sorted((entry[1] for _, ring, _ in rings for entry in ring), reverse=True)
        oldest = ends[STORED] if len(ends) > STORED else -1
        return tuple(
            self._track(task, [entry for entry in ring if entry[1] > oldest], made)
            for task, ring, made in rings
            if ring
        )

    def _track(self, task: str, entries: list[_Entry], made: int) -> Track:
        return Track(
            task,
            tuple(sorted(self._marks(entries), key=lambda mark: (mark.at_us, -(mark.us or 0)))),
            max(0, made - len(entries)),
        )

    def _marks(self, entries: list[_Entry]) -> Iterator[Mark]:
        for kind, end, ns, about in entries:
            length = max(0, ns)
            at_us = (end - length - self._origin) / 1e3
            yield Mark(
                kind, round(at_us, 3), None if ns < 0 else round(length / 1e3, 3), _text(about)
            )


def _text(about: Any) -> str:
    """What a slice was about, in words."""
    if isinstance(about, tuple):
        reason, gfn, pages = about
        return (
            f"{reason}, {'everything' if pages == WHOLE else f'{pages} pages from gfn {gfn:#x}'}"
        ).removeprefix(", ")
    named = getattr(about, "name", None)
    if named is None and isinstance(about, int):
        return f"root {about:#x}"
    return str(about if named is None else named)
