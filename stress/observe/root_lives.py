"""The lives of roots: when each was made, invalidated, zapped and freed, and when an exported one
lost its leaves."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from attrs import define, field, frozen

from mmu.paging.table import RootPage
from mmu.probe import Instrument, override

KEPT = 256
"""Roots kept, the newest; the rest is counted."""
EMPTIED = 64
"""Leaf zaps kept a root, the newest."""


@frozen
class RootLife:
    """One root; times are seconds into the run, None for what has not happened. `emptied_s` are
    leaf zaps that it survived."""

    address: int
    role: str
    exported: bool
    allocated_s: float
    invalidated_s: float | None
    zapped_s: float | None
    freed_s: float | None
    emptied_s: tuple[float, ...]


@frozen
class RootLives:
    """The newest roots, in the order in which they were made, and how many older ones are left
    out."""

    lives: tuple[RootLife, ...] = ()
    left_out: int = 0
    until_s: float = 0.0


@define
class _Life:
    address: int
    role: str
    allocated: float
    exported: bool = False
    invalidated: float | None = None
    zapped: float | None = None
    freed: float | None = None
    emptied: deque[float] = field(factory=lambda: deque(maxlen=EMPTIED))


class Lives(Instrument):
    """An instrument of events that are rare. The lock is the observer's own, and no model code
    runs under it."""

    def __init__(self, elapsed: Callable[[], float]) -> None:
        """`elapsed` tells the seconds into the run."""
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._lives: dict[int, _Life] = {}
        self._left_out = 0

    @override
    def root_allocated(self, root: RootPage) -> None:
        with self._lock:
            self._lives[root.address] = _Life(root.address, str(root.role), self._elapsed())
            while len(self._lives) > KEPT:
                del self._lives[next(iter(self._lives))]
                self._left_out += 1

    @override
    def root_invalidated(self, root: RootPage) -> None:
        life = self._known(root)
        if life is not None:
            life.invalidated = self._elapsed()

    @override
    def root_zapped(self, root: RootPage) -> None:
        life = self._known(root)
        if life is not None:
            life.zapped = self._elapsed()

    @override
    def root_freed(self, root: RootPage) -> None:
        life = self._known(root)
        if life is not None:
            life.freed = self._elapsed()

    @override
    def exported_zapped(self, root: RootPage, leaves: int) -> None:
        life = self._known(root)
        if life is not None:
            life.exported = True
            life.emptied.append(self._elapsed())

    def lives(self) -> RootLives:
        """What is known now."""
        with self._lock:
            return RootLives(
                tuple(map(_stored, self._lives.values())), self._left_out, round(self._elapsed(), 4)
            )

    def _known(self, root: RootPage) -> _Life | None:
        """The life of a root that is still kept. No two roots of a VM have the same address."""
        with self._lock:
            return self._lives.get(root.address)


def _stored(life: _Life) -> RootLife:
    def rounded(at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s, 4)

    return RootLife(
        address=life.address,
        role=life.role,
        exported=life.exported,
        allocated_s=round(life.allocated, 4),
        invalidated_s=rounded(life.invalidated),
        zapped_s=rounded(life.zapped),
        freed_s=rounded(life.freed),
        emptied_s=tuple(round(at_s, 4) for at_s in tuple(life.emptied)),
    )
