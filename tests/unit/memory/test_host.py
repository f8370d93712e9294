"""Host memory: every access is judged by who owns the frame at that moment, and late writes are found by their victims."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mmu.errors import KvmError
from mmu.memory.host import FREED, MOVING, HostMemory, Region, tag_of
from tests.conftest import rcu_section
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
    assert host.fault_in(region, 2)


def test_freed_frames_are_reused_oldest_first(make_machine: MakeMachine) -> None:
    host = make_machine(frames=6).vm.host
    first, second = host.mmap(2), host.mmap(3)
    old = [host.fault_in(first, index) for index in range(2)]
    host.munmap(first)
    assert [host.fault_in(second, index) for index in range(3)] == [3, 4, 5]
    assert host.fault_in(first, 0) == old[0]


def test_getting_a_frame_may_sleep(machine: Machine, host: HostMemory, region: Region) -> None:
    with rcu_section(machine.kvm.rcu):
        host.fault_in(region, 0)
    machine.expect("O3 sleep-in-rcu")


def test_a_mapped_page_is_found_without_sleeping(machine: Machine, host: HostMemory, region: Region) -> None:
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


def test_assigning_stamps_what_is_there_and_what_comes_later(host: HostMemory, region: Region) -> None:
    early = host.fault_in(region, 0)
    host.assign(region, tag_of(1, 40))
    late = host.fault_in(region, 3)
    assert reads(host, early, tag_of(1, 40))
    assert reads(host, late, tag_of(1, 43))
    assert not reads(host, early, tag_of(0, 8))


def test_memory_given_to_another_place_is_not_blamed_for_what_was_rightly_written_there(host: HostMemory, region: Region) -> None:
    """Delete a slot, and give the same memory to the VM elsewhere: what the guest wrote before is no late write."""
    pfn = host.fault_in(region, 1)
    assert writes(host, pfn, tag_of(0, 9))
    host.assign(region, tag_of(0, 32))
    assert reads(host, pfn, tag_of(0, 33))


# Late writes.


def after_the_check(host: HostMemory, action: Callable[[], object]) -> None:
    """Let `action` happen in the middle of the next access: its stamp was read, its data not yet touched."""
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
def test_a_late_write_to_a_freed_frame_is_found_when_it_is_used_again(make_machine: MakeMachine, gfn: int) -> None:
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
def test_a_late_write_to_a_frame_that_has_a_new_owner_is_found_by_him(make_machine: MakeMachine, gfn: int) -> None:
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
    assert host.stamp[pfn] == MOVING
    for tag in (tag_of(0, 9), tag_of(0, 33)):
        assert reads(host, pfn, tag)
        assert writes(host, pfn, tag)
        assert reads(host, pfn, tag_of(0, 9))
    assert not reads(host, pfn, tag_of(0, 32))
    assert not writes(host, pfn, tag_of(1, 9))


def test_after_the_move_only_the_new_place_is_right(host: HostMemory, region: Region) -> None:
    pfn = host.fault_in(region, 1)
    host.begin_move(region, tag_of(0, 32))
    host.end_move(region)
    assert reads(host, pfn, tag_of(0, 33))
    assert not reads(host, pfn, tag_of(0, 9))
    assert (region.base.value, region.moving_to.value) == (tag_of(0, 32), None)


@pytest.mark.parametrize("writer", [tag_of(0, 9), tag_of(0, 33)], ids=["old place", "new place"])
def test_what_was_written_before_or_during_the_move_is_right_after_it(host: HostMemory, region: Region, writer: int) -> None:
    pfn = host.fault_in(region, 1)
    host.begin_move(region, tag_of(0, 32))
    assert writes(host, pfn, writer)
    host.end_move(region)
    assert reads(host, pfn, tag_of(0, 33))


def test_a_frame_that_comes_during_the_move_belongs_to_both_places_until_it_ends(host: HostMemory, region: Region) -> None:
    host.begin_move(region, tag_of(0, 32))
    pfn = host.fault_in(region, 2)
    assert reads(host, pfn, tag_of(0, 10))
    assert reads(host, pfn, tag_of(0, 34))
    host.end_move(region)
    assert reads(host, pfn, tag_of(0, 34))
    assert not reads(host, pfn, tag_of(0, 10))


def test_address_spaces_do_not_share_tags() -> None:
    assert len({tag_of(as_id, gfn) for as_id in (0, 1) for gfn in (0, 1, (1 << 45) - 1)}) == 6
