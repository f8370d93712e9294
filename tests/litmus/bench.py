"""What litmus programs share: a small VM under every oracle, guests with stops in them, and other
threads' whole parts.

A program is driven to one interleaving. `meanwhile` runs another thread's part to its end while the
caller stands still; `until_stuck` runs it to its end or to the wait that is named, whichever comes
first. Nothing here depends on luck or on time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mmu.invariants import check, violations
from mmu.machine.vcpu import FETCH, Vcpu
from mmu.memory.host import Region, tag_of
from mmu.memory.memslots import MemoryRegion
from mmu.paging.geometry import Geometry
from mmu.posted import POSTED
from mmu.task import Task
from mmu.tdp.fault import RetPf
from mmu.variant import Variant
from stress.observe.oracles import attach_all
from stress.scenario.types import Limits, Seconds
from tests.conftest import eventually, finish, srcu_section, together
from tests.model import SMALL, Machine, machine_of

PATIENT = Limits(write_hold_s=Seconds(60.0))
"""Bounds that a program which stands still on purpose does not pass."""

both_ways = pytest.mark.parametrize("posted", [False, True], ids=["mended", "posted"])
"""With the mend, and with the defect of the posted series put back."""


@contextmanager
def litmus(
    *variants: Variant, geometry: Geometry = SMALL, limits: Limits = PATIENT, **config: Any
) -> Iterator[Machine]:
    """A machine under every oracle; what a program provokes it has to `expect`."""
    with machine_of(geometry, variants, **config) as machine:
        attach_all(machine.vm, limits)
        yield machine


def defect(name: str, posted: bool) -> tuple[Variant, ...]:
    """The variants of one way of `both_ways`."""
    return (POSTED[name],) if posted else ()


def part(*parts: type) -> Variant:
    """A variant that is made for one test."""
    return Variant("litmus", "a deliberate breach", parts)


def broken(machine: Machine) -> set[str]:
    """The invariants that do not hold now, at rest."""
    return {violation.invariant for violation in violations(machine.vm)}


def expect(machine: Machine, *reports: str) -> None:
    """Exactly these were reported since the last look; each a `rule code`."""
    found = machine.news()
    assert found == set(reports), (
        f"reported {sorted(found)}, expected {sorted(reports)}\n{machine.splats()}"
    )


def assert_clean(machine: Machine) -> None:
    """No rule and no invariant is broken, and no access went wrong."""
    expect(machine)
    machine.assert_sound()


def assert_found(machine: Machine, *reports: str) -> None:
    """Exactly these were reported, invariants at rest included; the VM has served its purpose."""
    check(machine.vm)
    expect(machine, *reports)
    machine.abandon()


# Memory.


def add_huge_slot(
    machine: Machine,
    gfn: int = 0,
    npages: int = 16,
    *,
    slot: int = 0,
    level: int = 2,
    flags: int = 0,
    writable: bool = True,
) -> Region:
    """A slot whose memory the host maps with pages of up to `level`; give the machine blocks for
    them (huge_2m)."""
    region = machine.vm.host.mmap(npages, writable=writable, max_level=level)
    machine.vm.host.assign(region, tag_of(0, gfn))
    machine.vm.set_user_memory_region(MemoryRegion(slot, gfn, npages, region, flags))
    machine.regions[0, slot] = region
    return region


def set_flags(machine: Machine, flags: int, *, slot: int = 0, gfn: int = 0) -> None:
    """Change a slot's flags."""
    region = machine.regions[0, slot]
    machine.vm.set_user_memory_region(MemoryRegion(slot, gfn, region.pages, region, flags))


def reclaim(machine: Machine, region: Region, first: int = 0, last: int | None = None) -> None:
    """The host takes pages away as it must: between an mmu_notifier's start and end."""
    end = region.pages if last is None else last
    machine.vm.notifier.invalidate_range_start(region, first, end)
    machine.vm.host.discard(region, first, end)
    machine.vm.notifier.invalidate_range_end(region, first, end)


def move_pages(machine: Machine, region: Region, first: int = 0, last: int | None = None) -> None:
    """The host migrates pages."""
    end = region.pages if last is None else last
    machine.vm.notifier.invalidate_range_start(region, first, end)
    machine.vm.host.migrate(region, first, end)
    machine.vm.notifier.invalidate_range_end(region, first, end)


# Accesses.


def x(gfn: int) -> int:
    """An instruction fetch from `gfn`, in `Steps`."""
    return gfn << 1 | FETCH


class Steps:
    """A guest that makes accesses and stops where it is told to: an int is an access as in `Script`
    (or `x(gfn)`), anything else is called, in guest mode, before the access that follows it."""

    def __init__(self, *steps: int | Callable[[], object]) -> None:
        self._left: Iterator[Any] = iter(steps)

    def next_access(self) -> int:
        """The next access; stops on the way are made."""
        step = next(self._left)
        while callable(step):
            step()
            step = next(self._left)
        number = int(step)
        if number >= FETCH:
            return number
        return ~number << 1 | 1 if number < 0 else number << 1


def fetch(machine: Machine, vcpu: Vcpu, gfn: int) -> RetPf:
    """One EPT violation of an instruction fetch, handled."""
    with srcu_section(machine.kvm.srcu):
        return vcpu.page_fault(gfn, False, False, True)


def dma(device: Any, hwpt: Any, gfn: int, write: bool = False) -> bool:
    """A DMA access with an IO page fault where it needs one; whether it reached memory."""
    for _ in range(3):
        if device.transact(gfn, write) is not None:
            return True
        if not hwpt.bound:
            return False
        request = hwpt.request([(gfn, write)])
        hwpt.handle(request)
        if request.code.value != "SUCCESS":
            return False
    return False


# Other threads.


def meanwhile(machine: Machine, *bodies: Callable[[], object]) -> None:
    """Other threads do all this now, one after the other, while the caller stands still."""
    for body in bodies:

        def whole(body: Callable[[], object] = body) -> None:
            body()

        together(machine.runtime, whole)


def until_stuck(
    machine: Machine,
    body: Callable[[], object],
    on: str,
    also: Callable[[], object] = lambda: False,
) -> Task:
    """Another thread runs `body` until it ends, or waits for something whose name has `on` in it,
    or `also` holds."""

    def whole() -> None:
        body()

    task = machine.runtime.spawn("other", whole)

    def waits() -> bool:
        return bool(task.waiting_for) and on in task.waiting_for

    eventually(
        lambda: waits() or ended(machine, task) or also(), f"{task} to end or to wait for {on}"
    )
    return task


def ended(machine: Machine, task: Task) -> bool:
    """Whether a thread has come to its end."""
    return bool(machine.runtime.join(task, 0))


def finish_all(machine: Machine, tasks: Iterable[Task]) -> None:
    """Wait for threads, and raise what they raised."""
    finish(machine.runtime, *tasks)
