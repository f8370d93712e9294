"""The frame allocator: single frames and aligned blocks, both reused oldest first, and a broken
block is whole again in the end."""

from __future__ import annotations

import pytest

from mmu.memory.frames import FrameAllocator
from mmu.paging.geometry import Geometry
from mmu.runtime import Runtime
from tests.model import SMALL


def allocator(
    frames: int = 64, huge: tuple[int, int] = (0, 0), geometry: Geometry = SMALL
) -> FrameAllocator:
    """An allocator at small geometry: "2M" is 4 frames, "1G" 16."""
    return FrameAllocator(Runtime(), geometry, frames, huge)


def all_single(frames: FrameAllocator) -> list[int]:
    """Every single frame, taken."""
    taken: list[int] = []
    while (pfn := frames.take()) is not None:
        taken.append(pfn)
    return taken


def test_without_blocks_every_frame_but_the_first_is_single() -> None:
    frames = allocator(8)
    assert frames.free_frames() == 7
    assert all_single(frames) == [1, 2, 3, 4, 5, 6, 7]
    assert frames.free_frames() == 0


def test_single_frames_are_reused_oldest_first() -> None:
    frames = allocator(4)
    all_single(frames)
    for pfn in (3, 1, 2):
        frames.give(pfn)
    assert all_single(frames) == [3, 1, 2]


def test_blocks_are_aligned_and_apart_from_each_other_and_from_single_frames() -> None:
    frames = allocator(70, (3, 1))
    large = [frames.take_block(3)]
    small = [frames.take_block(2) for _ in range(3)]
    assert large == [48]
    assert small == [44, 40, 36]
    assert all_single(frames) == [*range(1, 36), *range(64, 70)], (
        "what alignment leaves over at the end is not lost"
    )


@pytest.mark.parametrize("level", [2, 3])
def test_there_are_as_many_blocks_as_were_set_aside(level: int) -> None:
    frames = allocator(64, (2, 1))
    taken = [frames.take_block(level) for _ in range(3)]
    assert [pfn is not None for pfn in taken] == (
        [True, True, False] if level == 2 else [True, False, False]
    )


@pytest.mark.parametrize("level", [1, 4])
def test_other_sizes_have_no_blocks(level: int) -> None:
    assert allocator(64, (2, 1)).take_block(level) is None


def test_a_block_does_not_come_from_single_frames() -> None:
    assert allocator(64).take_block(2) is None


def test_a_block_is_whole_again_when_the_last_of_its_frames_is_back() -> None:
    frames = allocator(16, (1, 0))
    first = frames.take_block(2)
    assert first == 12
    for pfn in (14, 12, 15):
        frames.give(pfn)
        assert frames.take_block(2) is None, "a broken block is nobody's"
    frames.give(13)
    assert frames.take_block(2) == 12


def test_the_frames_of_a_broken_block_are_not_single_ones() -> None:
    frames = allocator(8, (1, 0))
    frames.take_block(2)
    all_single(frames)
    frames.give(5)
    assert frames.take() is None


def test_whole_blocks_are_reused_oldest_first() -> None:
    frames = allocator(16, (2, 0))
    first, second = frames.take_block(2), frames.take_block(2)
    assert first is not None
    assert second is not None
    for block in (second, first):
        for pfn in range(block, block + 4):
            frames.give(pfn)
    assert [frames.take_block(2), frames.take_block(2)] == [second, first]


def test_free_frames_are_those_in_whole_and_broken_blocks_too() -> None:
    frames = allocator(32, (1, 1))
    assert frames.free_frames() == 31
    frames.take()
    assert frames.free_frames() == 30
    block = frames.take_block(3)
    assert block is not None
    assert frames.free_frames() == 14
    frames.give(block)
    assert frames.free_frames() == 15


def test_a_guest_without_a_third_level_has_no_blocks_of_that_size() -> None:
    frames = allocator(64, (1, 1), Geometry(levels=2, entries=4))
    assert frames.take_block(3) is None
    assert frames.take_block(2) == 60
    assert len(all_single(frames)) == 59


def test_more_blocks_than_memory_has_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="8 frames have no room for 2 huge blocks"):
        allocator(8, (2, 0))
