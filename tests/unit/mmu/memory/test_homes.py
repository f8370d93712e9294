"""One region behind several memslots, in both address spaces, or read-only."""

from __future__ import annotations

import pytest

from mmu.memory.host import FREED, SEVERAL, HostMemory, Region, tag_of
from tests.model import Machine


@pytest.fixture
def host(machine: Machine) -> HostMemory:
    """The machine's host memory."""
    return machine.vm.host


@pytest.fixture
def region(host: HostMemory) -> Region:
    """Eight mapped pages without a home."""
    region = host.mmap(8)
    for index in range(8):
        host.fault_in(region, index)
    return region


def may(host: HostMemory, region: Region, index: int, tag: int) -> str:
    """What an access at `tag` may do with a page: read, write, both or nothing."""
    pfn = region.ptes[index]
    return "".join(
        letter for letter, write in (("r", False), ("w", True)) if host.access(pfn, tag, write)
    )


def test_memory_without_a_home_is_stamped_free(host: HostMemory, region: Region) -> None:
    assert {host.stamp[region.ptes[index]] for index in range(8)} == {FREED}


def test_each_part_is_right_at_its_own_place(host: HostMemory, region: Region) -> None:
    host.assign(region, tag_of(0, 8), 0, 4)
    host.assign(region, tag_of(0, 40), 4)
    assert may(host, region, 3, tag_of(0, 11)) == "rw"
    assert may(host, region, 4, tag_of(0, 40)) == "rw"
    assert may(host, region, 4, tag_of(0, 12)) == ""
    assert may(host, region, 3, tag_of(0, 39)) == ""


def test_a_page_may_be_in_both_address_spaces(host: HostMemory, region: Region) -> None:
    host.assign(region, tag_of(0, 8))
    host.assign(region, tag_of(1, 8), 0, 4)
    for as_id in (0, 1):
        assert may(host, region, 3, tag_of(as_id, 11)) == "rw"
    assert may(host, region, 4, tag_of(1, 12)) == ""
    assert may(host, region, 3, tag_of(1, 10)) == ""
    assert host.stamp[region.ptes[3]] == SEVERAL
    assert host.stamp[region.ptes[4]] == tag_of(0, 12)


def test_what_comes_later_is_at_all_its_places(host: HostMemory, region: Region) -> None:
    host.assign(region, tag_of(0, 8))
    host.assign(region, tag_of(1, 20), 2, 2)
    host.discard(region, 0, 8)
    for index in (1, 3):
        host.fault_in(region, index)
    assert may(host, region, 1, tag_of(0, 9)) == "rw"
    assert may(host, region, 3, tag_of(1, 21)) == "rw"
    assert may(host, region, 1, tag_of(1, 19)) == ""


def test_a_new_home_takes_the_old_one_of_its_address_space_back(
    host: HostMemory, region: Region
) -> None:
    host.assign(region, tag_of(0, 8))
    host.assign(region, tag_of(1, 8))
    host.assign(region, tag_of(0, 40))
    assert may(host, region, 0, tag_of(0, 8)) == ""
    assert may(host, region, 0, tag_of(0, 40)) == "rw"
    assert may(host, region, 0, tag_of(1, 8)) == "rw"


def test_read_only_memory_may_be_read(host: HostMemory, region: Region) -> None:
    host.assign(region, tag_of(0, 8), writable=False)
    assert may(host, region, 1, tag_of(0, 9)) == "r"
    assert may(host, region, 1, tag_of(0, 8)) == ""
    assert host.is_at(region.ptes[1], tag_of(0, 9))


def test_a_deleted_slot_takes_its_home_along_and_no_other(host: HostMemory, region: Region) -> None:
    low = host.assign(region, tag_of(0, 8), 0, 4)
    host.assign(region, tag_of(0, 40), 4, 4)
    host.withdraw(region, low)
    assert may(host, region, 0, tag_of(0, 8)) == ""
    assert may(host, region, 4, tag_of(0, 40)) == "rw"


def test_one_part_moves_while_the_others_stay(host: HostMemory, region: Region) -> None:
    low = host.assign(region, tag_of(0, 8), 0, 4)
    host.assign(region, tag_of(0, 40), 4, 4)
    move = host.begin_move(region, tag_of(0, 20), low)
    assert may(host, region, 1, tag_of(0, 9)) == may(host, region, 1, tag_of(0, 21)) == "rw"
    assert may(host, region, 5, tag_of(0, 41)) == "rw"
    assert may(host, region, 5, tag_of(0, 25)) == ""
    assert host.end_move(move) == move.new
    assert may(host, region, 1, tag_of(0, 9)) == ""
    assert may(host, region, 1, tag_of(0, 21)) == "rw"


def test_what_was_written_before_a_move_counts_as_written_after_it(
    host: HostMemory, region: Region
) -> None:
    host.assign(region, tag_of(0, 8))
    host.access(region.ptes[2], tag_of(0, 10), True)
    host.epoch.value = 5
    host.access(region.ptes[3], tag_of(0, 11), True)
    host.end_move(host.begin_move(region, tag_of(0, 40)))
    assert list(host.written_since(region, 1)) == [tag_of(0, 42), tag_of(0, 43)]
    assert list(host.written_since(region, 5)) == [tag_of(0, 43)]


def test_where_a_page_was_written_is_known(host: HostMemory, region: Region) -> None:
    host.assign(region, tag_of(0, 8))
    host.assign(region, tag_of(1, 8))
    host.access(region.ptes[0], tag_of(0, 8), True)
    host.access(region.ptes[1], tag_of(1, 9), True)
    assert list(host.written_since(region, 1)) == [tag_of(0, 8), tag_of(1, 9)]


def test_no_frame_beyond_the_last_is_anywhere(host: HostMemory) -> None:
    assert not host.is_at(host.frames, tag_of(0, 0))
