"""Host memory: every access is judged by who owns the frame at that moment, and late writes are
found by their victims."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmu.errors import KvmError
from mmu.memory.host import FREED, SEVERAL, HostMemory, Region, tag_of
from tests.conftest import blocked, finish, rcu_section
from tests.model import Machine
from tests.unit.conftest import MakeMachine


@pytest.fixture
def host(machine: Machine) -> HostMemory:
    """What is tested."""
    return machine.vm.host


@pytest.fixture
def region(host: HostMemory) -> Region:
    """Four pages that are to be gfns 8..11."""
    region = host.mmap(4)
    host.assign(region, tag_of(0, 8))
    return region


def reads(host: HostMemory, pfn: int, tag: int) -> bool:
    """Whether a read through a translation of `tag` to `pfn` is right."""
    return host.access(pfn, tag, write=False)


def writes(host: HostMemory, pfn: int, tag: int) -> bool:
    """Whether a write is."""
    return host.access(pfn, tag, write=True)


# Frames.


def test_frames_come_with_the_first_touch(host: HostMemory, region: Region) -> None:
    free = host.free_frames()
    assert list(region.ptes) == [0, 0, 0, 0]
    pfn = host.fault_in(region, 2)
    assert list(region.ptes) == [0, 0, pfn, 0]
    assert host.fault_in(region, 2) == pfn
    assert host.free_frames() == free - 1


def test_frame_zero_is_nobodys(host: HostMemory) -> None:
    everything = host.mmap(host.frames - 1)
    pfns = [host.fault_in(everything, index) for index in range(host.frames - 1)]
    assert sorted(pfns) == list(range(1, host.frames))


@pytest.mark.parametrize("gfn", [0, 7])
def test_frame_zero_is_wrong_for_everybody(host: HostMemory, gfn: int) -> None:
    """An SPTE without a frame number, such as one whose frame was forgotten, points there."""
    assert not reads(host, 0, tag_of(0, gfn))
    assert not writes(host, 0, tag_of(0, gfn))


def test_a_full_host_says_so(make_machine: MakeMachine) -> None:
    host = make_machine(frames=3).vm.host
    region = host.mmap(3)
    host.fault_in(region, 0)
    host.fault_in(region, 1)
    with pytest.raises(KvmError, match="all 3 host frames are in use"):
        host.fault_in(region, 2)
    assert host.munmap(region) == 2
    assert host.fault_in(host.mmap(1), 0)


def test_freed_frames_are_reused_oldest_first(make_machine: MakeMachine) -> None:
    host = make_machine(frames=6).vm.host
    first, second = host.mmap(2), host.mmap(3)
    old = [host.fault_in(first, index) for index in range(2)]
    host.munmap(first)
    assert [host.fault_in(second, index) for index in range(3)] == [3, 4, 5]
    assert host.fault_in(host.mmap(1), 0) == old[0]


def test_getting_a_frame_may_sleep(machine: Machine, host: HostMemory, region: Region) -> None:
    with rcu_section(machine.kvm.rcu):
        host.fault_in(region, 0)
    machine.expect("O3 sleep-in-rcu")


def test_a_mapped_page_is_found_without_sleeping(
    machine: Machine, host: HostMemory, region: Region
) -> None:
    pfn = host.fault_in(region, 0)
    with rcu_section(machine.kvm.rcu):
        assert host.fault_in(region, 0) == pfn


# Who may.


def test_only_the_gfn_that_the_frame_backs_may_use_it(host: HostMemory, region: Region) -> None:
    pfn = host.fault_in(region, 1)
    assert reads(host, pfn, tag_of(0, 9))
    assert writes(host, pfn, tag_of(0, 9))
    for stranger in (tag_of(0, 8), tag_of(0, 10), tag_of(1, 9)):
        assert not reads(host, pfn, stranger)
        assert not writes(host, pfn, stranger)


def test_a_freed_frame_is_wrong_for_everybody(host: HostMemory, region: Region) -> None:
    pfn = host.fault_in(region, 1)
    assert host.munmap(region) == 1
    assert host.stamp[pfn] == FREED
    assert not reads(host, pfn, tag_of(0, 9))
    assert not writes(host, pfn, tag_of(0, 9))
    assert list(region.ptes) == [0, 0, 0, 0]
    assert host.munmap(region) == 0


def test_assigning_stamps_what_is_there_and_what_comes_later(
    host: HostMemory, region: Region
) -> None:
    early = host.fault_in(region, 0)
    host.assign(region, tag_of(0, 40))
    late = host.fault_in(region, 3)
    assert reads(host, early, tag_of(0, 40))
    assert reads(host, late, tag_of(0, 43))
    assert not reads(host, early, tag_of(0, 8))


def test_memory_given_to_another_place_is_not_blamed_for_what_was_rightly_written_there(
    host: HostMemory, region: Region
) -> None:
    """Delete a slot, and give the same memory to the VM elsewhere: what the guest wrote before is
    no late write."""
    pfn = host.fault_in(region, 1)
    assert writes(host, pfn, tag_of(0, 9))
    host.assign(region, tag_of(0, 32))
    assert reads(host, pfn, tag_of(0, 33))


# Late writes.


def after_the_check(host: HostMemory, action: Callable[[], object]) -> None:
    """Let `action` happen in the middle of the next access: its stamp was read, its data not yet
    touched."""
    plain = type(host.stamp)

    class Interrupted(plain):  # type: ignore[misc, valid-type]
        __slots__ = ()

        def __getitem__(self, index: Any) -> Any:
            value = plain.__getitem__(self, index)
            host.stamp.__class__ = plain
            action()
            return value

    host.stamp.__class__ = Interrupted


@pytest.mark.parametrize("gfn", [9, 0])
def test_a_late_write_to_a_freed_frame_is_found_when_it_is_used_again(
    make_machine: MakeMachine, gfn: int
) -> None:
    machine = make_machine(frames=2)
    host = machine.vm.host
    region, other = host.mmap(1), host.mmap(1)
    host.assign(region, tag_of(0, gfn))
    pfn = host.fault_in(region, 0)
    after_the_check(host, lambda: host.munmap(region))
    assert writes(host, pfn, tag_of(0, gfn)), "the writer sees nothing wrong"
    host.assign(other, tag_of(0, 20))
    assert host.fault_in(other, 0) == pfn
    assert [found[:4] for found in machine.wrong] == [(None, tag_of(0, gfn), pfn, True)]
    assert reads(host, pfn, tag_of(0, 20)), "found once, then cleaned"
    machine.abandon()


@pytest.mark.parametrize("gfn", [9, 0])
def test_a_late_write_to_a_frame_that_has_a_new_owner_is_found_by_him(
    make_machine: MakeMachine, gfn: int
) -> None:
    host = make_machine(frames=2).vm.host
    region, other = host.mmap(1), host.mmap(1)
    host.assign(region, tag_of(0, gfn))
    host.assign(other, tag_of(0, 20))
    pfn = host.fault_in(region, 0)

    def change_hands() -> None:
        host.munmap(region)
        assert host.fault_in(other, 0) == pfn

    after_the_check(host, change_hands)
    assert writes(host, pfn, tag_of(0, gfn))
    assert not reads(host, pfn, tag_of(0, 20))
    assert writes(host, pfn, tag_of(0, 20))
    assert reads(host, pfn, tag_of(0, 20)), "a later right write mends it"


def test_memory_that_was_released_in_time_is_clean(make_machine: MakeMachine) -> None:
    machine = make_machine(frames=2)
    host = machine.vm.host
    region, other = host.mmap(1), host.mmap(1)
    host.assign(region, tag_of(0, 9))
    pfn = host.fault_in(region, 0)
    assert writes(host, pfn, tag_of(0, 9))
    host.munmap(region)
    host.assign(other, tag_of(0, 3))
    assert host.fault_in(other, 0) == pfn
    assert reads(host, pfn, tag_of(0, 3))
    assert machine.wrong == []


# Moves.


def test_while_it_moves_memory_may_be_used_at_both_places(host: HostMemory, region: Region) -> None:
    pfn = host.fault_in(region, 1)
    assert writes(host, pfn, tag_of(0, 9))
    host.begin_move(region, tag_of(0, 32))
    assert host.stamp[pfn] == SEVERAL
    for tag in (tag_of(0, 9), tag_of(0, 33)):
        assert reads(host, pfn, tag)
        assert writes(host, pfn, tag)
        assert reads(host, pfn, tag_of(0, 9))
    assert not reads(host, pfn, tag_of(0, 32))
    assert not writes(host, pfn, tag_of(1, 9))


def test_after_the_move_only_the_new_place_is_right(host: HostMemory, region: Region) -> None:
    pfn = host.fault_in(region, 1)
    move = host.begin_move(region, tag_of(0, 32))
    host.end_move(move)
    assert reads(host, pfn, tag_of(0, 33))
    assert not reads(host, pfn, tag_of(0, 9))
    assert [home.base for home in region.homes.value] == [tag_of(0, 32)]


@pytest.mark.parametrize("writer", [tag_of(0, 9), tag_of(0, 33)], ids=["old place", "new place"])
def test_what_was_written_before_or_during_the_move_is_right_after_it(
    host: HostMemory, region: Region, writer: int
) -> None:
    pfn = host.fault_in(region, 1)
    move = host.begin_move(region, tag_of(0, 32))
    assert writes(host, pfn, writer)
    host.end_move(move)
    assert reads(host, pfn, tag_of(0, 33))


def test_a_frame_that_comes_during_the_move_belongs_to_both_places_until_it_ends(
    host: HostMemory, region: Region
) -> None:
    move = host.begin_move(region, tag_of(0, 32))
    pfn = host.fault_in(region, 2)
    assert reads(host, pfn, tag_of(0, 10))
    assert reads(host, pfn, tag_of(0, 34))
    host.end_move(move)
    assert reads(host, pfn, tag_of(0, 34))
    assert not reads(host, pfn, tag_of(0, 10))


def test_address_spaces_do_not_share_tags() -> None:
    assert len({tag_of(as_id, gfn) for as_id in (0, 1) for gfn in (0, 1, (1 << 45) - 1)}) == 6


# Huge pages. "2M" is four frames here, "1G" sixteen.


@pytest.fixture
def hugemem(huge: Machine) -> HostMemory:
    """A host with eight "2M" and two "1G" pages."""
    return huge.vm.host


def big(
    host: HostMemory, pages: int = 16, *, max_level: int = 2, offset: int = 0, base: int = 0
) -> Region:
    """A region that may have huge pages, at gfns from `base` on."""
    region = host.mmap(pages, max_level=max_level, offset=offset)
    host.assign(region, tag_of(0, base))
    return region


@pytest.mark.parametrize(("max_level", "first", "last"), [(1, 6, 7), (2, 4, 8), (3, 0, 16)])
def test_a_first_touch_brings_the_largest_page_that_is_allowed(
    hugemem: HostMemory, max_level: int, first: int, last: int
) -> None:
    region = big(hugemem, max_level=max_level)
    free = hugemem.free_frames()
    pfn = hugemem.fault_in(region, 6)
    assert [index for index, level in enumerate(region.levels) if level] == list(range(first, last))
    assert set(region.levels[first:last]) == {max_level}
    block = region.ptes[first]
    assert list(region.ptes[first:last]) == list(range(block, block + last - first))
    assert block % (last - first) == 0
    assert pfn == block + 6 - first
    assert hugemem.free_frames() == free - (last - first)
    assert all(
        hugemem.access(region.ptes[index], tag_of(0, index), write=True)
        for index in range(first, last)
    )


def test_a_huge_page_must_lie_inside_the_region(hugemem: HostMemory) -> None:
    region = big(hugemem, 7, offset=2)
    for index in range(7):
        hugemem.fault_in(region, index)
    assert list(region.levels) == [1, 1, 2, 2, 2, 2, 1]
    assert region.hva % 16 == 2


def test_a_huge_page_does_not_come_where_a_small_one_is(hugemem: HostMemory) -> None:
    region = big(hugemem)
    hugemem.fault_in(region, 0)
    hugemem.split(region, 0, 4)
    hugemem.discard(region, 1, 4)
    kept = region.ptes[0]
    hugemem.fault_in(region, 2)
    assert list(region.levels[:4]) == [1, 1, 1, 1]
    assert region.ptes[0] == kept


def test_without_a_whole_block_small_pages_will_do(make_machine: MakeMachine) -> None:
    host = make_machine(huge_2m=1).vm.host
    region = big(host, 8)
    host.fault_in(region, 0)
    host.fault_in(region, 4)
    assert list(region.levels) == [2, 2, 2, 2, 1, 0, 0, 0]


def test_splitting_changes_the_size_and_nothing_else(hugemem: HostMemory) -> None:
    region = big(hugemem)
    hugemem.fault_in(region, 5)
    frames = list(region.ptes)
    assert hugemem.split(region, 0, 16) == 4
    assert list(region.ptes) == frames
    assert list(region.levels[4:8]) == [1, 1, 1, 1]
    assert hugemem.split(region, 0, 16) == 0, "there is none any more"


@pytest.fixture
def small_run(hugemem: HostMemory) -> Region:
    """Four small pages at gfns 0..3 where one huge page could be; page 1 holds data."""
    region = big(hugemem, 8)
    region.max_level = 1
    for index in range(4):
        hugemem.fault_in(region, index)
    assert writes(hugemem, region.ptes[1], tag_of(0, 1))
    return region


def test_collapsing_moves_a_run_with_its_data_into_one_block(
    hugemem: HostMemory, small_run: Region
) -> None:
    old, free = list(small_run.ptes[:4]), hugemem.free_frames()
    data = hugemem.word[old[1]]
    assert hugemem.collapse(small_run, 2, 2)
    block = small_run.ptes[0]
    assert list(small_run.ptes[:4]) == [block, block + 1, block + 2, block + 3]
    assert (block % 4, list(small_run.levels)) == (0, [2, 2, 2, 2, 0, 0, 0, 0])
    assert hugemem.word[block + 1] == data
    assert reads(hugemem, block + 1, tag_of(0, 1))
    assert not any(reads(hugemem, pfn, tag_of(0, index)) for index, pfn in enumerate(old)), (
        "the old frames are nobody's"
    )
    assert hugemem.free_frames() == free


@pytest.mark.parametrize(
    "why", ["a page is missing", "huge already", "over the end", "no block", "unmapped"]
)
def test_a_collapse_that_is_not_possible_changes_nothing(
    hugemem: HostMemory, small_run: Region, why: str
) -> None:
    index = 0
    match why:
        case "a page is missing":
            hugemem.discard(small_run, 3, 4)
        case "huge already":
            assert hugemem.collapse(small_run, 0, 2)
        case "over the end":
            small_run = big(hugemem, 6)
            index = 5
            small_run.max_level = 1
            for page in (4, 5):
                hugemem.fault_in(small_run, page)
        case "no block":
            other = big(hugemem, 32)
            for page in range(0, 32, 4):
                hugemem.fault_in(other, page)
        case "unmapped":
            hugemem.munmap(small_run)
    before = list(small_run.ptes), list(small_run.levels)
    assert not hugemem.collapse(small_run, index, 2)
    assert (list(small_run.ptes), list(small_run.levels)) == before


# What the host's memory management does.


def test_migration_moves_pages_with_their_data_and_frees_the_old_frames(
    hugemem: HostMemory, small_run: Region
) -> None:
    old, data, free = (
        list(small_run.ptes[:4]),
        hugemem.word[small_run.ptes[1]],
        hugemem.free_frames(),
    )
    assert hugemem.migrate(small_run, 1, 6) == 3, "pages that are there"
    assert small_run.ptes[0] == old[0]
    assert not set(small_run.ptes[1:4]) & set(old)
    assert hugemem.word[small_run.ptes[1]] == data
    for index in (1, 2, 3):
        assert not reads(hugemem, old[index], tag_of(0, index))
        assert writes(hugemem, small_run.ptes[index], tag_of(0, index))
    assert hugemem.free_frames() == free


@pytest.mark.parametrize(("first", "last"), [(5, 6), (4, 7), (5, 8), (7, 12)])
def test_a_huge_page_that_sticks_out_of_the_range_is_left_alone(
    hugemem: HostMemory, first: int, last: int
) -> None:
    """Whoever takes it apart has to invalidate all of it: KVM may map it by one leaf."""
    region = big(hugemem)
    hugemem.fault_in(region, 4)
    before = list(region.ptes), list(region.levels)
    assert (
        hugemem.migrate(region, first, last),
        hugemem.discard(region, first, last),
        hugemem.split(region, first, last),
    ) == (0, 0, 0)
    assert (list(region.ptes), list(region.levels)) == before


def test_migrated_huge_pages_are_small_ones(hugemem: HostMemory) -> None:
    region = big(hugemem)
    hugemem.fault_in(region, 0)
    hugemem.fault_in(region, 4)
    assert hugemem.migrate(region, 3, 9) == 4
    assert list(region.levels[:9]) == [2, 2, 2, 2, 1, 1, 1, 1, 0]


def test_a_full_host_migrates_nothing(make_machine: MakeMachine) -> None:
    host = make_machine(frames=3).vm.host
    region = host.mmap(2)
    before = [host.fault_in(region, index) for index in range(2)]
    assert host.migrate(region, 0, 2) == 0
    assert list(region.ptes) == before


def test_discarded_pages_are_free_and_come_back_empty(
    hugemem: HostMemory, small_run: Region
) -> None:
    old, free = small_run.ptes[1], hugemem.free_frames()
    assert hugemem.discard(small_run, 1, 8) == 3
    assert hugemem.free_frames() == free + 3
    assert hugemem.stamp[old] == FREED
    fresh = hugemem.fault_in(small_run, 1)
    assert fresh != old
    assert hugemem.word[fresh] == 0


def test_a_discarded_part_of_a_split_page_leaves_its_block_broken(
    make_machine: MakeMachine,
) -> None:
    host = make_machine(huge_2m=1).vm.host
    region, other = big(host, 4), big(host, 4)
    host.fault_in(region, 0)
    block = region.ptes[0]
    host.split(region, 0, 4)
    assert host.discard(region, 1, 2) == 1
    assert list(region.ptes) == [block, 0, block + 2, block + 3]
    host.fault_in(other, 0)
    assert other.levels[0] == 1, "the block is not whole"
    host.discard(region, 0, 4)
    host.discard(other, 0, 1)
    host.fault_in(other, 0)
    assert (other.levels[0], other.ptes[0]) == (2, block)


def test_a_region_that_is_gone_is_left_alone(hugemem: HostMemory, small_run: Region) -> None:
    hugemem.munmap(small_run)
    assert (hugemem.discard(small_run, 0, 8), hugemem.migrate(small_run, 0, 8)) == (0, 0)
    with pytest.raises(KvmError, match="EFAULT"):
        hugemem.fault_in(small_run, 0)


def test_when_the_process_exits_every_mapping_goes(hugemem: HostMemory) -> None:
    free = hugemem.free_frames()
    regions = [big(hugemem), hugemem.mmap(4), hugemem.mmap(4)]
    for region in regions:
        hugemem.fault_in(region, 0)
    hugemem.munmap(regions[1])
    assert hugemem.exit_mmap() == 5
    assert hugemem.free_frames() == free
    assert [region.dead.value for region in regions] == [True] * 3


def test_regions_never_overlap(hugemem: HostMemory) -> None:
    regions = [
        hugemem.mmap(pages, offset=offset)
        for pages, offset in ((1, 0), (16, 0), (17, 15), (3, 7), (1, 0))
    ]
    spans = [range(region.hva, region.hva + region.pages) for region in regions]
    assert len(set().union(*spans)) == sum(len(span) for span in spans)
    assert [region.hva % 16 for region in regions] == [0, 0, 15, 7, 0]
    assert min(span.start for span in spans) >= 16, "host page number 0 is never valid"


def test_the_epoch_tells_what_was_written_since(host: HostMemory, region: Region) -> None:
    for index in range(4):
        host.fault_in(region, index)
    writes(host, region.ptes[1], tag_of(0, 9))
    host.epoch.value = 2
    writes(host, region.ptes[2], tag_of(0, 10))
    reads(host, region.ptes[3], tag_of(0, 11))
    assert list(host.written_since(region, 1)) == [tag_of(0, 9), tag_of(0, 10)]
    assert list(host.written_since(region, 2)) == [tag_of(0, 10)]
    assert list(host.written_since(region, 3)) == []


# Userfaults.


def test_whoever_touches_a_missing_page_waits_for_user_space(machine: Machine) -> None:
    host, queue = machine.vm.host, machine.runtime.queue()
    region = host.mmap(4, userfaults=queue)
    frames: list[int] = []
    toucher = blocked(
        machine.runtime,
        lambda: frames.append(host.fault_in(region, 2)),
        lambda task: task.waiting_for == "userfaultfd",
    )
    assert queue.drain() == [(region, 2)]
    host.resolve(region, 2)
    finish(machine.runtime, toucher)
    assert frames == [region.ptes[2]]
    assert frames[0]
    assert host.fault_in(region, 2) == frames[0]
    assert len(queue) == 0, "what is there is no userfault"


def test_resolving_twice_changes_nothing(machine: Machine) -> None:
    host = machine.vm.host
    region = host.mmap(4, userfaults=machine.runtime.queue())
    host.resolve(region, 1)
    before = list(region.ptes)
    host.resolve(region, 1)
    assert list(region.ptes) == before


def test_a_userfault_in_memory_that_goes_away_ends_in_an_error(machine: Machine) -> None:
    host = machine.vm.host
    region = host.mmap(4, userfaults=machine.runtime.queue())
    refusals: list[str] = []

    def touch() -> None:
        try:
            host.fault_in(region, 2)
        except KvmError as refusal:
            refusals.append(str(refusal))

    toucher = blocked(machine.runtime, touch, lambda task: task.waiting_for == "userfaultfd")
    host.munmap(region)
    finish(machine.runtime, toucher)
    assert len(refusals) == 1
    assert "EFAULT" in refusals[0]
    host.resolve(region, 2)
    assert list(region.ptes) == [0] * 4, "nothing is brought in any more"
