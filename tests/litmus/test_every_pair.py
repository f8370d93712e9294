"""Every operation stopped when it first comes to each of its preemption points, while another
thread does the whole of another operation, or as much of it as can be done. Whatever the
interleaving: no rule is broken, every invariant holds, and nobody sees wrong memory.

How far the second thread gets is not fixed; that it may not do harm is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from attrs import frozen

from mmu.errors import KvmError
from mmu.export.device import Device
from mmu.export.iommu import KvmHwpt
from mmu.export.tdp_fd import TdpFd
from mmu.machine.vcpu import Vcpu
from mmu.memory.host import Region
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.stack import frames_of_threads
from mmu.task import Task
from tests.conftest import finish
from tests.litmus.bench import add_huge_slot, dma, fetch, litmus, reclaim, set_flags, until_stuck
from tests.model import Machine, w


@frozen
class World:
    """A machine in the middle of its life: a huge slot, one that logs, two vCPUs and two devices,
    all of them warm."""

    machine: Machine
    region: Region
    fd: TdpFd
    devices: tuple[tuple[Device, KvmHwpt], ...]
    vcpus: tuple[Vcpu, Vcpu]


def world_of(machine: Machine) -> World:
    region = add_huge_slot(machine, 0, 32)
    machine.add_slot(32, 8, slot=1, flags=KVM_MEM_LOG_DIRTY_PAGES)
    fd = machine.export()
    devices = machine.attach(fd, "device0"), machine.attach(fd, "device1")
    vcpus = machine.vcpu(), machine.vcpu()
    for vcpu in vcpus:
        machine.run(vcpu, w(1), 6, w(33))
    fetch(machine, vcpus[0], 13)
    for device, hwpt in devices:
        dma(device, hwpt, 2, write=True)
        dma(device, hwpt, 34, write=True)
    machine.run(vcpus[0], 60)
    return World(machine, region, fd, devices, vcpus)


def guest(world: World, who: int) -> None:
    world.machine.run(world.vcpus[who], w(35), 9, w(17), 60)


def transfer(world: World, who: int) -> None:
    for gfn in (36, 10, 18):
        dma(*world.devices[who], gfn, write=True)


def delete(world: World, who: int) -> None:
    world.machine.delete_slot(1)


def move(world: World, who: int) -> None:
    world.machine.move_slot(44, slot=1)


def take_pages(world: World, who: int) -> None:
    reclaim(world.machine, world.region)


def log(world: World, who: int) -> None:
    set_flags(world.machine, KVM_MEM_LOG_DIRTY_PAGES)
    world.machine.vm.get_dirty_log(0)


def toggle(world: World, who: int) -> None:
    world.machine.vm.set_nx_huge_pages(not world.machine.kvm.nx_huge_pages.value)


def un_export(world: World, who: int) -> None:
    for _, hwpt in world.devices:
        hwpt.destroy()
    world.fd.put()


OPERATIONS: list[Callable[[World, int], None]] = [
    guest,
    transfer,
    delete,
    move,
    take_pages,
    log,
    toggle,
    un_export,
]
"""What either thread may do."""

ONLY_ONCE = {
    ("delete", "delete"),
    ("delete", "move"),
    ("move", "delete"),
    ("move", "move"),
    ("un_export", "un_export"),
}
"""What a VMM does not do twice at a time: its own bookkeeping would be wrong, not the MMU's."""

PAIRS = [
    (first, second)
    for first in OPERATIONS
    for second in OPERATIONS
    if (first.__name__, second.__name__) not in ONLY_ONCE
]


def at_each_point(machine: Machine, reached: Callable[[int], None]) -> None:
    """From now on `reached` is called when this thread comes to a point for the first time, with
    the number of the point."""
    names: list[str] = []
    me = threading.get_ident()

    def point(name: str) -> None:
        if threading.get_ident() == me and name not in names:
            names.append(name)
            reached(len(names) - 1)

    machine.on(point=point)


def stands(world: World) -> bool:
    """Whether somebody waits where nothing has a name: for mmu_lock, for a device that has an
    access in flight, or in a guest that faults again and again on a slot that is being deleted."""
    drained = any(device.hardware.locked() for device, _ in world.devices)  # type: ignore[attr-defined]
    frames = frames_of_threads().values()
    if any(vcpu.stat.pf_retry > 8 for vcpu in world.vcpus):
        return True
    return world.machine.mmu_lock.needbreak() or (
        drained and any(frame.f_code is Device.flush_iotlb.__code__ for frame in frames)
    )


def use_everything(world: World) -> None:
    """Whatever is stale somewhere is met now."""
    machine = world.machine
    for vcpu in world.vcpus:
        for gfn in (1, 2, 6, 9, 10, 17, 18, 33, 34, 35, 44, 45, 60):
            machine.run(vcpu, gfn)
    for device, hwpt in world.devices:
        for gfn in (1, 2, 6, 10, 18, 34, 36, 46, 60) if hwpt.live.value else ():
            dma(device, hwpt, gfn, write=True)
    for slot in (0, 1, 0, 1):
        with suppress(KvmError):
            machine.vm.get_dirty_log(slot)
    machine.kvm.rcu.barrier()


def interleaved(
    first: Callable[[World, int], None], second: Callable[[World, int], None], number: int
) -> bool:
    """`second` comes when `first` is at its point `number`; whether there was such a point."""
    with litmus(frames=512, huge_2m=12, mmio_gen_bits=3) as machine:
        world = world_of(machine)
        tasks: list[Task] = []
        over: list[bool] = []

        def body() -> None:
            with suppress(KvmError):
                second(world, 1)

        def reached(at: int) -> None:
            if at == number and not over:
                tasks.append(until_stuck(machine, body, "", lambda: stands(world)))

        at_each_point(machine, reached)
        with suppress(KvmError):
            first(world, 0)
        over.append(True)
        finish(machine.runtime, *tasks)
        machine.assert_sound()
        use_everything(world)
        machine.assert_sound()
        assert machine.news() == set(), machine.splats()
        return bool(tasks)


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda operation: operation.__name__)
def test_no_interleaving_of_two_operations_does_harm(
    first: Callable[[World, int], None], second: Callable[[World, int], None]
) -> None:
    number = 0
    while interleaved(first, second, number):
        number += 1
    assert number, "the first operation has a point to stop at"
