"""Host memory: frames with a ground truth that every access by a vCPU or a device is checked
against.

Each frame carries a *stamp*: the tag (address space and gfn) that may use it now, set by whoever
owns the memory and never by the MMU. An access through a stale or wrong translation meets the wrong
stamp, whoever makes it. Each frame also has one data *word* with the tag its last writer believed
in (plus one; 0 is untouched), so that a write through a stale translation is found even when only
its victim notices, and with the *epoch* in which it was written, which is the ground truth of dirty
logging. Frames are reused oldest first, so a freed frame stays recognisable for long.

What is wrong goes to the probe (`bad_translation`): without an observer nobody hears of it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, Final

from attrs import evolve, frozen

from mmu.errors import KvmError
from mmu.memory.frames import FrameAllocator
from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_4K, Geometry
from mmu.probe import Probe
from mmu.runtime import Cell, Queue, Runtime, Table
from mmu.sync import Sync

FREED: Final = -1
"""The stamp of a frame that no guest may use."""
SEVERAL: Final = -2
"""The stamp of a frame that is read-only or right at several tags: its region's homes decide."""
AS_SHIFT: Final = 52
EPOCH_SHIFT: Final = 54
_TAG_MASK: Final = (1 << EPOCH_SHIFT) - 1


def tag_of(as_id: int, gfn: int) -> int:
    """The stamp of a frame that backs `gfn` in address space `as_id`."""
    return (as_id << AS_SHIFT) | gfn


@frozen
class Home:
    """Where the VMM has told KVM that pages [first, first + pages) of a region are: page `first` at
    tag `base`."""

    first: int
    pages: int
    base: int
    writable: bool = True

    def tag(self, index: int) -> int:
        """The tag of a page of the region; FREED for one that is not here."""
        return self.base + index - self.first if self.covers(index) else FREED

    def covers(self, index: int) -> bool:
        """Whether a page of the region is here."""
        return self.first <= index < self.first + self.pages

    def overlaps(self, other: Home) -> bool:
        """Whether both have a page in the same address space."""
        return (
            self.base >> AS_SHIFT == other.base >> AS_SHIFT
            and self.first < other.first + other.pages
            and other.first < self.first + self.pages
        )


@frozen
class Move:
    """A memslot that is being moved: both homes are right until the move ends."""

    region: Region
    old: Home
    new: Home


class Region:
    """A piece of the VMM's own address space (a VMA), from host page number `hva` on.

    `ptes` maps page index to frame, 0 where none is yet; `levels` says how large the host's mapping
    of each page is. `homes` is where its pages are in guest memory: memslots may take parts of it,
    and one page may be in both address spaces. `dead` is set by munmap. `max_level` is the largest
    page that first touch may bring in; `userfaults`, where there is one, gets (region, index) of
    every page that is missing (userfaultfd), and whoever touched it waits for `resolve`.
    """

    __slots__ = (
        "dead",
        "homes",
        "hva",
        "levels",
        "max_level",
        "pages",
        "ptes",
        "userfaults",
        "writable",
    )

    def __init__(
        self,
        runtime: Runtime,
        hva: int,
        pages: int,
        writable: bool,
        max_level: int,
        userfaults: Queue[Any] | None,
    ) -> None:
        self.hva = hva
        self.pages = pages
        self.writable = writable
        self.max_level = max_level
        self.userfaults = userfaults
        self.ptes: Table = runtime.table(pages, "host PTE")
        self.levels: Table = runtime.table(pages, "host level")
        self.homes: Cell[tuple[Home, ...]] = runtime.cell("region.homes", ())
        self.dead: Cell[bool] = runtime.cell("region.dead", False)


class HostMemory:
    """All frames of the host, and the VMM's mappings of them. `mmap_lock` guards every change of a
    mapping.

    What takes frames away from under a mapping that KVM may know has to be done between an
    mmu_notifier's range start and range end; this class does the host's part only.
    """

    STANDS_FOR: Final = "mm/gup.c: get_user_pages(); mm/mmap.c: exit_mmap()"

    def __init__(
        self,
        runtime: Runtime,
        sync: Sync,
        probe: Probe,
        frames: int,
        geometry: Geometry | None = None,
        huge: tuple[int, int] = (0, 0),
    ) -> None:
        self._runtime = runtime
        self._sync = sync
        self._probe = probe
        self._geometry = geometry or Geometry()
        self.mmap_lock = sync.mutex("mmap_lock")
        self.frames = frames
        self.stamp = runtime.table(frames, "frame owner")
        self.word = runtime.table(frames, "frame data")
        self.epoch: Cell[int] = runtime.cell("host.epoch", 1)
        self._page_index = runtime.table(frames, "frame index")
        self._owners: dict[int, Region] = {}
        self._regions: dict[int, Region] = {}
        self._next_hva = runtime.counter("host.next_hva", self._geometry.pages(PG_LEVEL_1G))
        for pfn in range(frames):
            self.stamp[pfn] = FREED
        self._allocator = FrameAllocator(runtime, self._geometry, frames, huge)

    def free_frames(self) -> int:
        """How many frames nobody owns."""
        return self._allocator.free_frames()

    # The VMM's calls.

    def mmap(
        self,
        pages: int,
        *,
        writable: bool = True,
        max_level: int = PG_LEVEL_4K,
        offset: int = 0,
        userfaults: Queue[Any] | None = None,
    ) -> Region:
        """A fresh mapping of `pages` pages, without frames until somebody touches them.

        It starts `offset` pages after a boundary of the largest page size.
        """
        unit = self._geometry.pages(PG_LEVEL_1G)
        span = (pages + offset + unit - 1) // unit * unit
        region = Region(
            self._runtime,
            self._next_hva.fetch_add(span) + offset,
            pages,
            writable,
            max_level,
            userfaults,
        )
        with self.mmap_lock:
            self._regions[region.hva] = region
        return region

    def munmap(self, region: Region) -> int:
        """Release the region's frames at once; returns how many. Any later access to them is a
        finding."""
        with self.mmap_lock:
            region.dead.value = True
            self._regions.pop(region.hva, None)
            return self._drop(region, 0, region.pages)

    def exit_mmap(self) -> int:
        """exit_mmap(): the process is gone; release every mapping and return how many frames."""
        with self.mmap_lock:
            regions = list(self._regions.values())
        return sum(self.munmap(region) for region in regions)

    def assign(
        self,
        region: Region,
        base: int,
        first: int = 0,
        pages: int | None = None,
        *,
        writable: bool = True,
    ) -> Home:
        """The VMM is about to give `pages` pages from page `first` on (by default all) to KVM at
        tag `base`: stamp what is there, and what comes later. Homes of these pages in the same
        address space are taken back. Returns the home, for `withdraw`."""
        home = Home(first, region.pages - first if pages is None else pages, base, writable)
        with self.mmap_lock:
            old = tuple(other for other in region.homes.value if other.overlaps(home))
            self._retag(region, old, home)
            self._settle(region, (*self._homes_but(region, old), home))
        return home

    def withdraw(self, region: Region, home: Home) -> None:
        """Forget `home`: its memslot is deleted, and no guest may use its pages there."""
        with self.mmap_lock:
            self._settle(region, self._homes_but(region, (home,)))

    def begin_move(self, region: Region, base: int, home: Home | None = None) -> Move:
        """From now until `end_move` the pages of `home` (by default the region's only one) may be
        used at their old tags and at those from `base`."""
        old = home or region.homes.value[0]
        move = Move(region, old, evolve(old, base=base))
        with self.mmap_lock:
            self._settle(region, (*region.homes.value, move.new))
        return move

    def end_move(self, move: Move) -> Home:
        """The memslot call has returned: only the new tags are right now. Returns the new home."""
        with self.mmap_lock:
            self._retag(move.region, (move.old,), move.new)
            self._settle(move.region, self._homes_but(move.region, (move.old,)))
        return move.new

    def abort_move(self, move: Move) -> None:
        """The memslot call was refused: only the old tags are right, as before `begin_move`."""
        self.withdraw(move.region, move.new)

    # What KVM asks for.

    def fault_in(self, region: Region, index: int) -> int:
        """get_user_pages(): the frame behind a page of the region, allocated on first touch. May
        sleep."""
        pfn = region.ptes[index]
        if pfn:
            return pfn
        self._sync.might_sleep("get_user_pages")
        if region.userfaults is not None:
            region.userfaults.put((region, index))
            self._runtime.wait_until(
                "userfaultfd", lambda: bool(region.ptes[index]) or region.dead.value
            )
        with self.mmap_lock:
            pfn = region.ptes[index]
            if not pfn:
                pfn = self._populate(region, index)
        return pfn

    def resolve(self, region: Region, index: int) -> None:
        """UFFDIO_COPY: bring in a page that somebody waits for."""
        with self.mmap_lock:
            if not region.ptes[index] and not region.dead.value:
                self._populate(region, index)

    # What the host's memory management does, between range_start and range_end of pages [first,
    # last). A huge page of the host that sticks out of the range is left alone: whoever takes it
    # apart has to invalidate all of it.

    def discard(self, region: Region, first: int, last: int) -> int:
        """MADV_DONTNEED or reclaim: the frames are free, the next touch brings new ones; returns
        how many there were."""
        with self.mmap_lock:
            return sum(
                self._drop(region, index, index + 1)
                for index in self._changeable(region, first, last)
            )

    def migrate(self, region: Region, first: int, last: int) -> int:
        """Move pages to other frames with their contents; returns how many were moved."""
        moved = 0
        with self.mmap_lock:
            for index in self._changeable(region, first, last):
                old = region.ptes[index]
                new = self._allocator.take() if old else None
                if new is not None:
                    self._install(region, index, new, self.word[old])
                    self._release(old)
                    moved += 1
        return moved

    def split(self, region: Region, first: int, last: int) -> int:
        """Split huge pages into small ones, same frames; returns how many small pages they are."""
        with self.mmap_lock:
            huge = [index for index in range(first, last) if region.levels[index] > PG_LEVEL_4K]
            return sum(
                region.levels[index] == PG_LEVEL_4K
                for index in self._changeable(region, first, last)
                if index in huge
            )

    def collapse(self, region: Region, index: int, level: int) -> bool:
        """khugepaged: move a whole aligned run of small pages into one huge page; whether it could
        be done."""
        pages = self._geometry.pages(level)
        first = self._first_of(region, index, level)
        with self.mmap_lock:
            run = range(first, first + pages)
            if first < 0 or first + pages > region.pages or region.dead.value:
                return False
            if not all(region.ptes[page] and region.levels[page] == PG_LEVEL_4K for page in run):
                return False
            block = self._allocator.take_block(level)
            if block is None:
                return False
            replaced = [region.ptes[page] for page in run]
            for page, old in zip(run, replaced, strict=True):
                self._own(region, page, block + page - first, self.word[old])
            self._publish(region, run, block, level)
            for old in replaced:
                self._release(old)
            return True

    # What hardware does.

    def access(self, pfn: int, tag: int, write: bool) -> bool:
        """One load or store by a vCPU or device that translated `tag` to `pfn`; whether the
        translation is right."""
        epoch = self.epoch.value
        if pfn >= self.frames:
            return False
        stamp = self.stamp[pfn]
        if stamp != tag and not (stamp == SEVERAL and self.allows(pfn, tag, write=write)):
            return False
        if write:
            self.word.store(pfn, tag + 1 | epoch << EPOCH_SHIFT)
            return True
        seen = self.word[pfn] & _TAG_MASK
        return seen in (tag + 1, 0) or stamp == SEVERAL or self.stamp[pfn] == SEVERAL

    def is_at(self, pfn: int, tag: int) -> bool:
        """Whether the frame may be used at `tag` now, if only for reading."""
        if pfn >= self.frames:
            return False
        stamp = self.stamp[pfn]
        return stamp == tag or (stamp == SEVERAL and self.allows(pfn, tag, write=False))

    def allows(self, pfn: int, tag: int, *, write: bool) -> bool:
        """Whether the region that a frame belongs to is at `tag` with this page, and may be written
        there."""
        region = self._owners.get(pfn)
        if region is None:
            return False
        index = self._page_index[pfn]
        return any(
            home.tag(index) == tag and (home.writable or not write) for home in region.homes.value
        )

    def written_since(self, region: Region, epoch: int) -> Iterator[int]:
        """The tags at which the last write to each page of the region was made, of those in `epoch`
        or later: the ground truth of dirty logging."""
        for _, pfn in self._mapped(region):
            word = self.word[pfn]
            if word >> EPOCH_SHIFT >= epoch:
                yield (word & _TAG_MASK) - 1

    # Pieces; mmap_lock is held.

    def _mapped(self, region: Region) -> list[tuple[int, int]]:
        return [(index, pfn) for index, pfn in enumerate(region.ptes) if pfn]

    def _first_of(self, region: Region, index: int, level: int) -> int:
        """The first page index of the aligned huge page around `index`."""
        return ((region.hva + index) & -self._geometry.pages(level)) - region.hva

    def _populate(self, region: Region, index: int) -> int:
        """First touch: the largest page that fits, else a small one; returns the frame of
        `index`."""
        if region.dead.value:
            raise KvmError(
                errno.EFAULT, "the memory behind this slot was unmapped: delete the slot first"
            )
        for level in range(region.max_level, PG_LEVEL_4K, -1):
            first = self._first_of(region, index, level)
            last = first + self._geometry.pages(level)
            if first < 0 or last > region.pages or any(region.ptes[first:last]):
                continue
            block = self._allocator.take_block(level)
            if block is not None:
                for page in range(first, last):
                    self._own(region, page, block + page - first, 0)
                self._publish(region, range(first, last), block, level)
                return block + index - first
        pfn = self._allocator.take()
        if pfn is None:
            raise KvmError(
                errno.ENOMEM, f"all {self.frames} host frames are in use: give the VM more memory"
            )
        self._install(region, index, pfn, 0)
        return pfn

    def _install(self, region: Region, index: int, pfn: int, word: int) -> None:
        """Map one small page."""
        self._own(region, index, pfn, word)
        self._publish(region, range(index, index + 1), pfn, PG_LEVEL_4K)

    def _own(self, region: Region, index: int, pfn: int, word: int) -> None:
        """The frame belongs to a page of the region from now on."""
        if self.word[pfn] and self._probe.bad_translation is not None:
            self._probe.bad_translation(None, (self.word[pfn] & _TAG_MASK) - 1, pfn, True, 0)
        self.word.store(pfn, word)
        self._page_index.store(pfn, index)
        self.stamp.store(pfn, _stamp_of(region.homes.value, index))
        self._owners[pfn] = region

    def _publish(self, region: Region, pages: range, pfn: int, level: int) -> None:
        """Map frames from `pfn` on. Faults look at `ptes` without a lock, and then at the level of
        what they found there, so nothing of a huge page may be seen before all of it is right."""
        for page in pages:
            region.levels.store(page, level)
        for offset, page in enumerate(pages):
            region.ptes.store(page, pfn + offset)

    def _changeable(self, region: Region, first: int, last: int) -> list[int]:
        """The pages of [first, last) that may be changed one by one: huge pages inside the range
        are split for that."""
        changeable = []
        for index in range(first, last if not region.dead.value else first):
            level = region.levels[index]
            if level > PG_LEVEL_4K:
                start = self._first_of(region, index, level)
                if start < first or start + self._geometry.pages(level) > last:
                    continue
                self._demote(region, index)
            changeable.append(index)
        return changeable

    def _demote(self, region: Region, index: int) -> None:
        """The host's mapping of the huge page around `index` becomes one of small pages."""
        level = region.levels[index]
        first = self._first_of(region, index, level)
        for page in range(first, first + self._geometry.pages(level)):
            region.levels.store(page, PG_LEVEL_4K)

    def _drop(self, region: Region, first: int, last: int) -> int:
        released = 0
        for index in range(first, last):
            pfn = region.ptes.xchg(index, 0)
            if pfn:
                self._release(pfn)
                released += 1
        return released

    def _release(self, pfn: int) -> None:
        self.stamp.store(pfn, FREED)
        self.word.store(pfn, 0)
        self._allocator.give(pfn)

    def _homes_but(self, region: Region, gone: tuple[Home, ...]) -> tuple[Home, ...]:
        return tuple(home for home in region.homes.value if home not in gone)

    def _settle(self, region: Region, homes: tuple[Home, ...]) -> None:
        """Set the region's homes, and stamp its mapped pages accordingly."""
        region.homes.value = homes
        for index, pfn in self._mapped(region):
            self.stamp.store(pfn, _stamp_of(homes, index))

    def _retag(self, region: Region, old: tuple[Home, ...], new: Home) -> None:
        """Count what was written through the `old` homes as written through `new`."""
        for index, pfn in self._mapped(region):
            for home in old:
                if home.covers(index) and new.covers(index):
                    self._retag_word(pfn, home.tag(index), new.tag(index))

    def _retag_word(self, pfn: int, old: int, new: int) -> None:
        while True:
            seen = self.word[pfn]
            if (
                seen & _TAG_MASK != old + 1
                or self.word.cmpxchg(pfn, seen, seen - old + new) == seen
            ):
                return


def _stamp_of(homes: tuple[Home, ...], index: int) -> int:
    """The stamp of a frame that holds page `index` of a region with these homes."""
    stamp = FREED
    for home in homes:
        if 0 <= index - home.first < home.pages:
            if stamp != FREED or not home.writable:
                return SEVERAL
            stamp = home.base + index - home.first
    return stamp
