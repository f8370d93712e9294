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


class Timeline:
    """A probe observer that keeps the newest slices of every thread."""

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

    def fault_done(self, vcpu: object, result: Any, ns: int) -> None:
        """A vCPU fault."""
        self._slice("fault", ns, result)

    def root_loaded(self, vcpu: object, ns: int) -> None:
        """A vCPU loads a root."""
        self._slice("root load", ns)

    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        """A remote flush."""
        self._slice("flush", ns, (reason, gfn, pages))

    def importers_notified(self, exported: object, gfn: int, pages: int, ns: int) -> None:
        """Importers are told."""
        self._slice("notify importers", ns, ("", gfn, pages))

    def importer_switched(self, importer: object, acknowledged: bool, ns: int) -> None:
        """An importer walks another root."""
        self._slice("switch importer", ns, "acknowledged" if acknowledged else "refused")

    def io_fault_held(self, ns: int) -> None:
        """slots_lock, held by an IO page fault."""
        self._slice("slots_lock", ns)

    def io_fault_end(self, device: object, gfn: int, write: bool, ok: bool, ns: int) -> None:
        """An IO page fault."""
        self._slice("IO page fault", ns, f"gfn {gfn:#x}: {'SUCCESS' if ok else 'FAILURE'}")

    def walk_section(self, steps: int, ns: int, can_yield: bool) -> None:
        """A zap inside one RCU read section."""
        self._slice("RCU read section (zap)", ns, f"{steps} SPTEs")

    def grace_period(self, ns: int, callbacks: int) -> None:
        """One grace period."""
        self._slice("grace period", ns, f"{callbacks} callbacks")

    def range_started(self, region: object, first: int, last: int, ns: int) -> None:
        """An MMU notifier's range start."""
        self._slice("notifier range start", ns, f"{last - first} pages")

    # Slices with two events.

    def mmu_write_locked(self) -> None:
        """mmu_lock taken for write."""
        self._begin("mmu_lock (write)")

    def mmu_write_unlocking(self) -> None:
        """And given back."""
        self._end("mmu_lock (write)")

    def guest_enter(self, vcpu: object) -> None:
        """A vCPU is in the guest. Every fault leaves it and enters it again, so this does without
        `_begin`."""
        self._local.mine.in_guest_at = self._now()

    def guest_exit(self, vcpu: object) -> None:
        """And out of it."""
        mine = self._local.mine
        began, now = mine.in_guest_at, self._now()
        if began:
            mine.in_guest_at = 0
            mine.made += 1
            mine.append(("guest mode", now, now - began, ""))

    def dma_begin(self, device: object, gfn: int) -> None:
        """A device's transaction."""
        self._begin("DMA")

    def dma_end(self, device: object) -> None:
        """And its end."""
        self._end("DMA")

    def memslot_begin(self, change: Change, slot: Memslot) -> None:
        """A memslot call, which holds slots_lock."""
        self._begin("memslot")

    def memslot_end(self, change: Change, slot: Memslot, parts: object) -> None:
        """And its end."""
        self._end("memslot", f"{change.value} {slot.describe()}")

    def nx_toggle_begin(self, on: bool) -> None:
        """The NX knob."""
        self._begin("NX toggle")

    def nx_toggle_end(self, on: bool) -> None:
        """And in force."""
        self._end("NX toggle", "on" if on else "off")

    def zap_all_fast(self, gen: int) -> None:
        """A fast zap begins with its roots."""
        self._begin("invalidate roots")

    def roots_kicked(self, roots: object) -> None:
        """They are invalid, and no vCPU uses them; then come the exported ones."""
        self._end("invalidate roots")
        self._begin("zap exported leaves")

    def exported_zapped(self, root: RootPage, leaves: int) -> None:
        """One exported root is empty."""
        self._end("zap exported leaves", f"{leaves} leaves of root {root.address:#x}")

    # Instants.

    def root_allocated(self, root: RootPage) -> None:
        """A root."""
        self._slice("root allocated", -1, root.address)

    def root_invalidated(self, root: RootPage) -> None:
        """Is invalid."""
        self._slice("root invalidated", -1, root.address)

    def root_zapped(self, root: RootPage) -> None:
        """Is zapped."""
        self._slice("root zapped", -1, root.address)

    def root_freed(self, root: RootPage) -> None:
        """Is gone."""
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
