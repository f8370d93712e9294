"""The VT-d driver: which commands a range becomes, in which order, and what it refuses."""

from __future__ import annotations

import pytest

from mmu.export.device import Device, Dma
from mmu.export.iommu import KvmHwpt
from mmu.export.vtd import EVERYTHING, VtdDomain
from mmu.memory.tlb import WHOLE
from mmu.posted import POSTED
from tests.model import Machine
from tests.unit.conftest import MakeMachine

HINT = POSTED["r23-range-flush-with-hint"]


class NotedDevice(Device):
    """Writes down the commands that it is sent."""

    def __init__(self, machine: Machine, *, ats: bool) -> None:
        super().__init__(machine.kvm, machine.vm.host, "noted", ats)
        self.commands: list[tuple[object, ...]] = []

    def flush_iotlb(self, gfn: int, pages: int, *, leaves_only: bool) -> None:
        self.commands.append(("iotlb", gfn, pages, leaves_only))

    def flush_devtlb(self, gfn: int, pages: int) -> None:
        self.commands.append(("devtlb", gfn, pages))


def commands(machine: Machine, iova: int, size: int, *, ats: bool = False) -> list[object]:
    """What an invalidation becomes."""
    device = NotedDevice(machine, ats=ats)
    domain = machine.kvm.parts[VtdDomain](machine.kvm, device)
    domain.cache_invalidate(iova, size)
    return [*device.commands, *(["refused"] if domain.refused.value else [])]


def test_everything_is_one_command_and_one_for_the_device(machine: Machine) -> None:
    assert commands(machine, 0, EVERYTHING, ats=True) == [
        ("iotlb", 0, WHOLE, False),
        ("devtlb", 0, WHOLE),
    ]
    assert commands(machine, 0, EVERYTHING) == [("iotlb", 0, WHOLE, False)]


@pytest.mark.parametrize(("iova", "size"), [(0x800, 0x1000), (0x1000, 1), (0x1000, EVERYTHING)])
def test_a_range_that_is_not_made_of_pages_is_refused_and_not_flushed(
    machine: Machine, iova: int, size: int
) -> None:
    assert commands(machine, iova, size, ats=True) == ["refused"]


def test_the_iotlb_comes_before_the_device_tlb(machine: Machine) -> None:
    assert commands(machine, 5 << 12, 1 << 12, ats=True) == [
        ("iotlb", 5, 1, False),
        ("devtlb", 5, 1),
    ]


@pytest.mark.parametrize(
    ("first", "pages", "block"),
    [(4, 4, (4, 4)), (4, 3, (4, 4)), (1, 2, (0, 4)), (0x17F, 3, (0x100, 0x100)), (6, 1, (6, 1))],
)
def test_a_range_becomes_an_aligned_block_around_it(
    machine: Machine, first: int, pages: int, block: tuple[int, int]
) -> None:
    assert commands(machine, first << 12, pages << 12) == [("iotlb", *block, False)]


def test_the_block_is_the_smallest_one_that_covers_the_range(machine: Machine) -> None:
    domain = VtdDomain(machine.kvm, NotedDevice(machine, ats=False))
    for first in range(40):
        for pages in range(1, 40):
            mask = domain.psi_mask(first, pages)
            assert first >> mask == (first + pages - 1) >> mask, "covered"
            assert not mask or first >> mask - 1 != (first + pages - 1) >> mask - 1, "smallest"


def test_a_block_that_is_too_large_for_the_hardware_flushes_the_domain(machine: Machine) -> None:
    class Narrow(VtdDomain):
        MAX_ADDRESS_MASK = 2

    device = NotedDevice(machine, ats=True)
    Narrow(machine.kvm, device).cache_invalidate(8 << 12, 8 << 12)
    assert device.commands == [("iotlb", 0, WHOLE, False), ("devtlb", 8, 8)]


@pytest.mark.parametrize("honoured", [True, False])
def test_the_hint_of_the_posted_series_reaches_only_todays_hardware(
    make_machine: MakeMachine, honoured: bool
) -> None:
    posted = make_machine(variants=[HINT], iommu_hint=honoured)
    assert commands(posted, 4 << 12, 4 << 12) == [("iotlb", 4, 4, honoured)]
    assert commands(posted, 0, EVERYTHING) == [("iotlb", 0, WHOLE, False)]
    mended = make_machine(iommu_hint=honoured)
    assert commands(mended, 4 << 12, 4 << 12) == [("iotlb", 4, 4, False)]


# A device with a TLB of its own.


@pytest.fixture
def translated(machine: Machine) -> tuple[Device, KvmHwpt]:
    """A device with ATS, bound to the exported root of a VM with a slot at gfns 0..15; gfn 1 is
    mapped."""
    machine.add_slot(0, 16)
    device, hwpt = machine.attach(machine.export(), ats=True)
    assert hwpt.io_fault(1, write=False)
    return device, hwpt


def test_a_device_keeps_what_the_iommu_has_answered(translated: tuple[Device, KvmHwpt]) -> None:
    device, _ = translated
    for _ in range(3):
        assert device.transact(1, write=False) is Dma.DONE
    assert (device.walks, device.hits, device.devtlb_hits) == (1, 0, 2)


def test_the_iommu_answers_from_its_iotlb(translated: tuple[Device, KvmHwpt]) -> None:
    device, _ = translated
    device.transact(1, write=False)
    device.flush_devtlb(1, 1)
    device.transact(1, write=False)
    assert (device.walks, device.hits, device.devtlb_hits) == (1, 1, 0)


def test_a_flush_of_the_vm_empties_both(
    machine: Machine, translated: tuple[Device, KvmHwpt]
) -> None:
    device, _ = translated
    device.transact(1, write=False)
    assert all(cache.entries for _, cache in device.caches())
    machine.vm.tlb.flush_range("test", 1, 1)
    assert not any(cache.entries for _, cache in device.caches())


def test_unbinding_empties_both(translated: tuple[Device, KvmHwpt]) -> None:
    device, hwpt = translated
    device.transact(1, write=False)
    hwpt.unbind()
    assert not any(cache.entries for _, cache in device.caches())
    assert device.transact(1, write=False) is None
    hwpt.drain()


def test_huge_leaves_are_one_entry_of_the_iotlb(make_machine: MakeMachine) -> None:
    machine = make_machine(huge_2m=8)
    machine.add_slot(0, 16, max_level=2)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(5, write=True)
    for gfn in (5, 4, 7):
        assert device.transact(gfn, write=True) is Dma.DONE
    assert (device.walks, device.hits, device.iotlb.entries) == (1, 2, {})
    machine.vm.tlb.flush_range("test", 6, 1)
    assert device.iotlb.huge == {}, "a page of it is enough"
    assert device.transact(4, write=True) is Dma.DONE
    assert device.walks == 2
