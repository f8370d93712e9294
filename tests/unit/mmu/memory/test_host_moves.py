"""A move that KVM refuses leaves the memory as it was."""

from __future__ import annotations

from mmu import VirtualMachine, VmConfig
from mmu.memory.host import tag_of


def test_a_refused_move_makes_only_the_old_place_right_again() -> None:
    vm = VirtualMachine(VmConfig(frames=16))
    region = vm.host.mmap(4)
    vm.host.assign(region, tag_of(0, 8))
    pfn = vm.host.fault_in(region, 1)
    move = vm.host.begin_move(region, tag_of(0, 32))
    assert vm.host.access(pfn, tag_of(0, 9), True)
    assert vm.host.access(pfn, tag_of(0, 33), False)
    vm.host.abort_move(move)
    assert vm.host.access(pfn, tag_of(0, 9), False)
    assert not vm.host.access(pfn, tag_of(0, 33), False)
    late = vm.host.fault_in(region, 2)
    assert vm.host.access(late, tag_of(0, 10), True)
