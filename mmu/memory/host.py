"""Host memory: frames with a ground truth that every access by a vCPU or a device is checked against.

Each frame carries a *stamp*: the tag (address space and gfn) that may use it now, set by whoever owns the memory and
never by the MMU. An access through a stale or wrong translation meets the wrong stamp, whoever makes it. Each frame
also has one data *word* with the tag its last writer believed in (plus one; 0 is untouched), so that a write through
a stale translation is found even when only its victim notices. Frames are reused oldest first, so a freed frame stays
recognisable for long.

What is wrong goes to the probe (`bad_translation`): without an observer nobody hears of it.
"""

from __future__ import annotations

import errno
from typing import Final

from mmu.errors import KvmError
from mmu.probe import Probe
from mmu.runtime import Cell, Queue, Runtime, Table
from mmu.sync import Sync

FREED: Final = -1
MOVING: Final = -2
AS_SHIFT: Final = 52


def tag_of(as_id: int, gfn: int) -> int:
    """The stamp of a frame that backs `gfn` in address space `as_id`."""
    return (as_id << AS_SHIFT) | gfn


class Region:
    """A piece of the VMM's own address space (a VMA): `ptes` maps page index to frame, 0 where none is yet.

    `base` is the tag of page 0 as the VMM has told KVM; `moving_to` a second base that is legal while a memslot is
    being moved; None outside a move. A region backs one memslot at a time: two would disagree on whose it is.
    """

    __slots__ = ("base", "moving_to", "pages", "ptes", "writable")

    def __init__(self, runtime: Runtime, pages: int, writable: bool) -> None:
        self.pages = pages
        self.writable = writable
        self.ptes: Table = runtime.table(pages)
        self.base: Cell[int] = runtime.cell("region.base", 0)
        self.moving_to: Cell[int | None] = runtime.cell("region.moving_to", None)


class HostMemory:
    """All frames of the host, and the VMM's mappings of them."""

    def __init__(self, runtime: Runtime, sync: Sync, probe: Probe, frames: int) -> None:
        self._runtime = runtime
        self._sync = sync
        self._probe = probe
        self.mmap_lock = sync.mutex("mmap_lock")
        self.frames = frames
        self.stamp = runtime.table(frames)
        self.word = runtime.table(frames)
        self._page_index = runtime.table(frames)
        self._regions: dict[int, Region] = {}
        self._free: Queue[int] = runtime.queue()
        for pfn in range(frames):
            self.stamp[pfn] = FREED
            if pfn:  # frame 0 stays unused: a page-table entry that lost its frame points there
                self._free.put(pfn)

    def free_frames(self) -> int:
        """How many frames nobody owns."""
        return len(self._free)

    def mmap(self, pages: int, *, writable: bool = True) -> Region:
        """A fresh mapping of `pages` pages, without frames until somebody touches them."""
        return Region(self._runtime, pages, writable)

    def munmap(self, region: Region) -> int:
        """Release the region's frames at once; returns how many. Any later access to them is a finding."""
        released = 0
        with self.mmap_lock:
            for index in range(region.pages):
                pfn = region.ptes.xchg(index, 0)
                if pfn:
                    self.stamp.store(pfn, FREED)
                    self.word.store(pfn, 0)
                    self._free.put(pfn)
                    released += 1
        return released

    def assign(self, region: Region, base: int) -> None:
        """The VMM is about to give the region to KVM at tag `base`: stamp what is there, and what comes later."""
        with self.mmap_lock:
            old = region.base.value
            region.base.value = base
            for index, pfn in self._mapped(region):
                self.word.cmpxchg(pfn, _written(old + index), 0)
                self.stamp.store(pfn, base + index)

    def begin_move(self, region: Region, base: int) -> None:
        """From now until `end_move` the pages may be used at the old tags and at those from `base`."""
        with self.mmap_lock:
            region.moving_to.value = base
            for _, pfn in self._mapped(region):
                self.stamp.store(pfn, MOVING)

    def end_move(self, region: Region) -> None:
        """The memslot call has returned: only the new tags are right now."""
        with self.mmap_lock:
            old, new = region.base.value, region.moving_to.value
            assert new is not None
            region.base.value = new
            for index, pfn in self._mapped(region):
                self.word.cmpxchg(pfn, _written(old + index), 0)
                self.stamp.store(pfn, new + index)
            region.moving_to.value = None

    def abort_move(self, region: Region) -> None:
        """The memslot call was refused: only the old tags are right, as before `begin_move`."""
        with self.mmap_lock:
            for index, pfn in self._mapped(region):
                self.stamp.store(pfn, region.base.value + index)
            region.moving_to.value = None

    def fault_in(self, region: Region, index: int) -> int:
        """get_user_pages(): the frame behind a page of the region, allocated on first touch. May sleep."""
        pfn = region.ptes[index]
        if pfn:
            return pfn
        self._sync.might_sleep("get_user_pages")
        with self.mmap_lock:
            pfn = region.ptes[index]
            if not pfn:
                pfn = self._allocate(region, index)
        return pfn

    def access(self, pfn: int, tag: int, write: bool) -> bool:
        """One load or store by a vCPU or device that translated `tag` to `pfn`; whether the translation is right."""
        stamp = self.stamp[pfn]
        if stamp != tag and not (stamp == MOVING and self._moving(pfn, tag)):
            return False
        if write:
            self.word.store(pfn, tag + 1)
            return True
        seen = self.word[pfn]
        return seen in (tag + 1, 0) or stamp == MOVING or self.stamp[pfn] == MOVING

    def _mapped(self, region: Region) -> list[tuple[int, int]]:
        return [(index, pfn) for index, pfn in enumerate(region.ptes) if pfn]

    def _allocate(self, region: Region, index: int) -> int:
        pfn = self._free.take()
        if pfn is None:
            raise KvmError(errno.ENOMEM, f"all {self.frames} host frames are in use: give the VM more memory")
        if self.word[pfn] and self._probe.bad_translation is not None:
            self._probe.bad_translation(None, self.word[pfn] - 1, pfn, True, 0)
        self.word.store(pfn, 0)
        self._page_index.store(pfn, index)
        moving = region.moving_to.value is not None
        self.stamp.store(pfn, MOVING if moving else region.base.value + index)
        self._regions[pfn] = region
        region.ptes.store(index, pfn)
        return pfn

    def _moving(self, pfn: int, tag: int) -> bool:
        region = self._regions.get(pfn)
        if region is None:
            return False
        index = self._page_index[pfn]
        other = region.moving_to.value
        return tag == region.base.value + index or (other is not None and tag == other + index)


def _written(tag: int) -> int:
    """The data word of a frame that was last written as `tag`."""
    return tag + 1
