"""What sleeps, and with which locks held."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from mmu.paging.table import PageTableMemory, ShadowPage
from mmu.runtime import Queue
from tests.conftest import elsewhere, rcu_section, srcu_section
from tests.litmus.bench import (
    add_huge_slot,
    both_ways,
    defect,
    ended,
    expect,
    finish_all,
    litmus,
    meanwhile,
    part,
    until_stuck,
)
from tests.litmus.test_assertion_yields import slot_of
from tests.model import Machine, machine_of, w


class WatchedMemory(PageTableMemory):
    """Notes how locks are held when a page is allocated."""

    seen: list[tuple[int, bool]]
    machine: Machine | None = None

    def allocate(self) -> ShadowPage:
        machine = type(self).machine
        if machine is not None:
            self.seen.append((machine.mmu_lock.held_mode(), machine.kvm.rcu.read_held()))
        return super().allocate()


@pytest.mark.parametrize("shared", [True, False])
def test_splitting_allocates_with_everything_dropped_and_the_lock_is_free_meanwhile(
    shared: bool,
) -> None:
    class Memory(WatchedMemory):
        seen: list[tuple[int, bool]] = []  # noqa: RUF012 - the test's own class

        def allocate(self) -> ShadowPage:
            if self.machine is not None:
                meanwhile(
                    self.machine,
                    lambda: (
                        self.machine.mmu_lock.write_lock() or self.machine.mmu_lock.write_unlock()
                    ),
                )
            return super().allocate()

    with machine_of(variants=[part(Memory)], huge_2m=4) as machine:
        add_huge_slot(machine)
        machine.run(machine.vcpu(), w(1), w(5))
        assert machine.kvm.stat.pages_2m.value == 2
        Memory.machine = machine
        machine.mmu_lock.lock(shared)
        machine.vm.huge.try_split_huge_pages(slot_of(machine), 0, 16, shared=shared)
        machine.mmu_lock.unlock(shared)
        Memory.machine = None
        assert Memory.seen == [(0, False)] * 2
        assert machine.kvm.stat.pages_2m.value == 0
        expect(machine)
        machine.assert_sound()


@pytest.mark.parametrize(
    ("atomic", "report"), [("rcu", "O3 sleep-in-rcu"), ("pages_lock", "O5 sleep-in-atomic")]
)
def test_splitting_in_atomic_context_is_reported(atomic: str, report: str) -> None:
    with machine_of(huge_2m=4) as machine:
        add_huge_slot(machine)
        machine.run(machine.vcpu(), w(1))
        with ExitStack() as stack:
            stack.enter_context(
                rcu_section(machine.kvm.rcu) if atomic == "rcu" else machine.kvm.tdp_mmu_pages_lock
            )
            machine.mmu_lock.read_lock()
            machine.vm.huge.try_split_huge_pages(slot_of(machine), 0, 16, shared=True)
            machine.mmu_lock.read_unlock()
        assert report in machine.news()
        machine.abandon()


def test_swapping_memslots_waits_for_srcu_readers() -> None:
    with machine_of() as machine:
        with elsewhere(machine.runtime, srcu_section(machine.kvm.srcu)):
            adder = until_stuck(machine, lambda: machine.add_slot(0, 4), "grace period")
            assert not ended(machine, adder)
            assert machine.vm.memslots.peek(0).by_id(0) is not None, "published"
        finish_all(machine, [adder])
        expect(machine)


def test_swapping_memslots_waits_for_the_end_of_invalidations() -> None:
    with machine_of() as machine:
        region = machine.add_slot(0, 4)
        machine.vm.notifier.invalidate_range_start(region, 0, 4)
        adder = until_stuck(machine, lambda: machine.add_slot(4, 4, slot=1), "mmu_notifier")
        assert not ended(machine, adder)
        assert machine.vm.memslots.peek(0).by_id(1) is None, "not published"
        machine.vm.notifier.invalidate_range_end(region, 0, 4)
        finish_all(machine, [adder])
        expect(machine)


def test_slots_arch_lock_is_free_during_the_srcu_wait() -> None:
    """2.1 rule 3: it may be taken inside SRCU, so it is released before the wait."""
    with machine_of() as machine:
        token = machine.kvm.srcu.read_lock()
        adder = until_stuck(machine, lambda: machine.add_slot(0, 4), "grace period")
        with machine.kvm.slots_arch_lock:
            assert not ended(machine, adder)
        machine.kvm.srcu.read_unlock(token)
        finish_all(machine, [adder])
        expect(machine)


@both_ways
def test_an_io_fault_sleeps_while_its_page_is_brought_in(posted: bool) -> None:
    """In the posted series with slots_lock held (R17); mended before any lock is taken."""
    with litmus(*defect("r17-gup-under-slots-lock", posted)) as machine:
        queue: Queue[tuple[object, int]] = machine.runtime.queue()
        region = machine.add_slot(0, 4, userfaults=queue)
        fd = machine.export()
        answers: list[bool] = []
        worker = until_stuck(
            machine, lambda: answers.append(fd.fault(1, write=True)), "userfaultfd"
        )
        assert not ended(machine, worker)
        other = until_stuck(machine, lambda: machine.add_slot(8, 4, slot=1), "slots_lock")
        assert ended(machine, other) is not posted
        machine.vm.host.resolve(region, 1)
        finish_all(machine, [worker, other])
        assert answers == [True]
        expect(machine)
