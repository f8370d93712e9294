"""The host's page allocator: single frames, and aligned blocks for huge pages; everything is reused
oldest first."""

from __future__ import annotations

from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_2M, Geometry
from mmu.runtime import Queue, Runtime


class FrameAllocator:
    """Frames 1 to `frames` - 1: a pool of single ones, and `huge` = (2 MiB, 1 GiB) blocks at the
    end of memory.

    A block whose frames come back one by one is whole again when the last of them is back. Callers
    hold mmap_lock.
    """

    def __init__(
        self, runtime: Runtime, geometry: Geometry, frames: int, huge: tuple[int, int] = (0, 0)
    ) -> None:
        self._frames = frames
        self._single: Queue[int] = runtime.queue("free frames")
        self._whole: dict[int, Queue[int]] = {}
        self._blocks: list[tuple[int, int, int]] = []
        self._out = runtime.table(huge[0] + huge[1], "frames.out")
        """Frames of each block that somebody uses."""
        end = frames
        for level, count in ((PG_LEVEL_1G, huge[1]), (PG_LEVEL_2M, huge[0])):
            self._whole[level] = runtime.queue(f"free blocks[{level}]")
            pages = geometry.pages(level) if level <= geometry.levels else 0
            for _ in range(count if pages else 0):
                end = (end - pages) & -pages
                if end <= 0:
                    raise ValueError(
                        f"{frames} frames have no room for {huge[0]} huge blocks of 2 MiB and "
                        f"{huge[1]} of 1 GiB"
                    )
                self._blocks.append((end, end + pages, level))
                self._whole[level].put(len(self._blocks) - 1)
        self._lowest = end if self._blocks else frames
        # frame 0 stays unused: a page-table entry that lost its frame points there
        for pfn in range(1, frames):
            if self._block_of(pfn) < 0:
                self._single.put(pfn)

    def free_frames(self) -> int:
        """How many frames are free, those in whole and broken blocks included."""
        in_blocks = sum(last - first for first, last, _ in self._blocks)
        return len(self._single) + in_blocks - sum(self._out)

    def take(self) -> int | None:
        """One frame; None when there is none left."""
        return self._single.take()

    def take_block(self, level: int) -> int | None:
        """The first frame of a whole, aligned block; None when there is none."""
        number = self._whole[level].take() if level in self._whole else None
        if number is None:
            return None
        first, last, _ = self._blocks[number]
        self._out.store(number, last - first)
        return first

    def give(self, pfn: int) -> None:
        """A frame is free again."""
        number = self._block_of(pfn)
        if number < 0:
            self._single.put(pfn)
            return
        left = self._out[number] - 1
        self._out.store(number, left)
        if not left:
            self._whole[self._blocks[number][2]].put(number)

    def _block_of(self, pfn: int) -> int:
        if pfn < self._lowest:
            return -1
        for number, (first, last, _) in enumerate(self._blocks):
            if first <= pfn < last:
                return number
        return -1
