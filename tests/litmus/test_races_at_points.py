"""Two threads at the preemption points of the reference's 2.16 that the other programs do not stand
at, and two debts: of a flush that is owed from one address space to the next, and of an MMIO SPTE
that is made while the generation wraps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmu.export.device import Dma
from mmu.machine.vcpu import Exit
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.task import Task
from mmu.tdp.fault import FaultHandler, RetPf
from mmu.tdp.zap import Zapper
from stress.mutants import MUTANTS
from tests.conftest import eventually, reading, writing
from tests.litmus.bench import (
    Steps,
    add_huge_slot,
    assert_clean,
    broken,
    dma,
    expect,
    fetch,
    finish_all,
    litmus,
    meanwhile,
    part,
    reclaim,
    set_flags,
    until_stuck,
)
from tests.model import Machine, w


def writer_comes(
    machine: Machine, tasks: list[Task], body: Callable[[], object] = lambda: None
) -> None:
    """Another thread takes mmu_lock for write and does `body`; on return it is waiting for the
    lock, which whoever yields then leaves to it, however busy the machine is."""

    def write() -> None:
        with writing(machine.mmu_lock):
            body()

    tasks.append(machine.runtime.spawn("writer", write))
    machine.runtime.resched = lambda: finish_all(machine, tasks)  # type: ignore[method-assign]
    eventually(machine.mmu_lock.needbreak, "the writer to wait")


# P5: a table is visible, and not yet counted.


def test_p5_a_table_is_counted_after_it_became_visible_and_the_sum_is_right() -> None:
    with litmus() as machine:
        machine.add_slot(0, 64)
        first, second = machine.vcpu(), machine.vcpu()
        seen: list[tuple[int, int]] = []

        def use_it() -> None:
            seen.append(
                (
                    len(machine.tables(machine.vm.roots.snapshot()[0])),
                    machine.kvm.stat.tdp_mmu_pages.value,
                )
            )
            meanwhile(machine, lambda: machine.fault(second, 2))

        machine.at("P5", use_it)
        assert machine.fault(first, 1) is RetPf.FIXED
        assert seen == [(1, 0)], "visible, not yet counted"
        assert machine.leaves(machine.root()).keys() == {1, 2}
        assert machine.kvm.stat.tdp_mmu_pages.value == len(machine.tables(machine.root())) == 2
        assert_clean(machine)


def test_p5_a_table_that_is_zapped_before_it_is_listed_is_not_listed() -> None:
    """kvm_tdp_mmu_map() adds to possible_nx_huge_pages only if the flag is still set (2.8)."""
    with litmus(huge_2m=4, nx_huge_pages=True) as machine:
        add_huge_slot(machine)
        vcpu = machine.vcpu()
        machine.fault(vcpu, 9)
        root = vcpu.root
        assert root is not None

        def zap_it() -> None:
            machine.vm.roots.invalidate(root)
            with reading(machine.mmu_lock):
                machine.vm.zapper.zap_root(root, shared=True)

        machine.at("P5", lambda: meanwhile(machine, zap_it))
        fetch(machine, vcpu, 1)
        assert machine.kvm.possible_nx_huge_pages.pages() == ()
        machine.kvm.rcu.barrier()
        assert machine.leaves(root) == {}
        assert_clean(machine)


# P7: what others do while a zap has dropped the lock.


def test_p7_a_fault_maps_in_the_root_that_a_notifier_is_zapping_outside_the_range() -> None:
    with litmus() as machine:
        region = machine.add_slot(0, 64)
        first, second = machine.vcpu(), machine.vcpu()
        machine.run(first, 1, 21, 37)
        tasks: list[Task] = []
        machine.on(spte_zapped=lambda *_: None if tasks else writer_comes(machine, tasks))
        yields = machine.record("zap_yielded")
        answers: list[RetPf] = []

        def fault_both() -> None:
            answers.append(machine.fault(second, 2))
            answers.append(machine.fault(second, 63))

        machine.vm.notifier.invalidate_range_start(region, 0, 48)
        meanwhile(machine, fault_both)
        machine.vm.host.discard(region, 0, 48)
        machine.vm.notifier.invalidate_range_end(region, 0, 48)
        finish_all(machine, tasks)
        assert yields.events
        assert answers == [RetPf.RETRY, RetPf.FIXED]
        assert set(machine.leaves(machine.root())) == {63}
        assert_clean(machine)


@pytest.mark.parametrize("spaces", [1, 2])
def test_p7_what_one_address_space_owes_is_flushed_before_the_next_one_yields(spaces: int) -> None:
    """2.7: `flush` is chained across roots and address spaces (B02)."""
    with litmus() as machine:
        for as_id in range(spaces):
            machine.add_slot(0, 64, as_id=as_id)
            vcpu = machine.vcpu()
            vcpu.set_smm(as_id == 1)
            machine.run(vcpu, 1, 21, 37)
        tasks: list[Task] = []
        machine.on(spte_zapped=lambda *_: None if tasks else writer_comes(machine, tasks))
        yields = machine.record("zap_yielded")
        machine.vm.change_attributes(0, 64)
        finish_all(machine, tasks)
        assert yields.events
        assert_clean(machine)


def test_p7_a_fault_is_held_off_while_an_attribute_change_yields() -> None:
    """B50: kvm_zap_gfn_range() is an invalidation of everything, for as long as it takes."""
    with litmus() as machine:
        machine.add_slot(0, 64)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1, 21, 37)
        tasks: list[Task] = []
        stale: list[bool] = []
        invalidation = machine.kvm.invalidation

        def look() -> None:
            stale.append(invalidation.retry(invalidation.seq.value, 12345))

        machine.on(spte_zapped=lambda *_: None if tasks else writer_comes(machine, tasks, look))
        machine.vm.change_attributes(0, 64)
        finish_all(machine, tasks)
        assert stale == [True]
        assert machine.fault(vcpu, 1) is RetPf.FIXED
        assert_clean(machine)


# P8, P9, P10: an invalidated root on its way out.


@pytest.mark.parametrize("point", ["P9", "P10"])
def test_a_vcpu_may_drop_and_reload_its_root_while_the_old_one_is_zapped(point: str) -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1)
        old = vcpu.root
        reloading: list[Task] = []

        def reload() -> None:
            reloading.append(
                until_stuck(
                    machine,
                    lambda: machine.run(vcpu, 2),
                    "mmu_lock (write)" if point == "P10" else "-",
                )
            )

        machine.at(point, reload)
        freed = machine.record("root_freed")
        machine.vm.set_nx_huge_pages(True)
        finish_all(machine, reloading)
        assert vcpu.root is not old
        assert freed.args("root_freed") == [(old,)]
        machine.kvm.rcu.barrier()
        assert_clean(machine)


def test_p8_a_guest_that_runs_between_invalidation_and_request_leaves_before_the_zap() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1)
        toggling: list[Task] = []
        kicked = machine.record("roots_kicked", "root_zapped")
        seen: list[int] = []

        def toggle() -> None:
            toggling.append(
                until_stuck(machine, lambda: machine.vm.set_nx_huge_pages(True), "leave guest mode")
            )
            seen.append(len(kicked.events))

        vcpu.run(Steps(1, toggle, 1), 2)
        finish_all(machine, toggling)
        assert seen == [0], "nothing is zapped before the guest has left"
        assert kicked.names() == ["roots_kicked", "root_zapped"]
        assert_clean(machine)


# P18: the lockless path.


@pytest.mark.parametrize("meets", ["reclaim", "protect"])
def test_p18_the_lockless_path_loses_to_whoever_changes_the_entry_first(meets: str) -> None:
    with litmus(ad_bits=False, pml=False) as machine:
        region = machine.add_slot(0, 8, flags=KVM_MEM_LOG_DIRTY_PAGES)
        vcpu = machine.vcpu()
        machine.run(vcpu, w(1))
        machine.vm.get_dirty_log(0)

        def other() -> None:
            if meets == "reclaim":
                reclaim(machine, region)
            else:
                machine.vm.notifier.clear_young(region, 0, 8)

        machine.at("P18", lambda: meanwhile(machine, other))
        result = machine.fault(vcpu, 1, write=True, present=True)
        assert result in ((RetPf.RETRY, RetPf.FIXED) if meets == "reclaim" else (RetPf.FIXED,))
        machine.run(vcpu, w(1))
        assert machine.vm.get_dirty_log(0) == {1}
        assert_clean(machine)


def test_p18_a_page_that_is_made_writable_is_in_the_log_that_is_read_next() -> None:
    with litmus(ad_bits=False, pml=False) as machine:
        machine.add_slot(0, 8, flags=KVM_MEM_LOG_DIRTY_PAGES)
        vcpu = machine.vcpu()
        machine.run(vcpu, w(1))
        assert machine.vm.get_dirty_log(0) == {1}
        logs: list[set[int]] = []
        machine.at(
            "P18", lambda: meanwhile(machine, lambda: logs.append(machine.vm.get_dirty_log(0)))
        )
        machine.run(vcpu, w(1))
        logs.append(machine.vm.get_dirty_log(0))
        assert logs == [set(), {1}]
        assert_clean(machine)


# P19: the knob is written, nothing is zapped yet.


@pytest.mark.parametrize("exported", [False, True])
def test_p19_a_fault_between_knob_and_zap_follows_the_new_policy(exported: bool) -> None:
    with litmus(huge_2m=4) as machine:
        add_huge_slot(machine)
        if exported:
            machine.export()
        vcpu = machine.vcpu()
        machine.at(
            "P19",
            lambda: meanwhile(
                machine, lambda: machine.run(vcpu, 1), lambda: fetch(machine, vcpu, 5)
            ),
        )
        machine.vm.set_nx_huge_pages(True)
        machine.run(vcpu, 1, 5)
        assert_clean(machine)


# P20: between the requests and the guest.


@pytest.mark.parametrize("skipped", [False, True], ids=["correct", "mutant"])
def test_p20_a_request_that_comes_after_the_last_look_keeps_the_vcpu_out(skipped: bool) -> None:
    with litmus(*((MUTANTS["request-check-skipped"],) if skipped else ())) as machine:
        machine.add_slot(0, 8)
        vcpu = machine.vcpu()
        machine.run(vcpu, 1)
        machine.at("P20", lambda: meanwhile(machine, lambda: machine.vm.set_nx_huge_pages(True)))
        machine.run(vcpu, 1)
        expect(machine, *(["O12 guest-on-obsolete-root"] if skipped else []))
        if skipped:
            machine.abandon()
        else:
            assert_clean(machine)


# P6: frozen, flushed, cleared - seen by a device.


def test_p6_a_device_is_flushed_while_the_entry_is_frozen_and_faults_until_it_is_cleared() -> None:
    with litmus(huge_2m=4) as machine:
        add_huge_slot(machine)
        device, hwpt = machine.attach(machine.export())
        set_flags(machine, KVM_MEM_LOG_DIRTY_PAGES)
        assert dma(device, hwpt, 1, write=True)
        seen: list[Dma | None] = []
        left = [1, 2]

        def look(name: str) -> None:
            if name == "P6" and left:
                left.pop()
                seen.append(device.transact(1, write=True))

        machine.on(point=look)
        set_flags(machine, 0)
        assert seen == [Dma.DONE, None], "by its IOTLB before the flush; a frozen entry after it"
        assert dma(device, hwpt, 1, write=True)
        assert machine.kvm.stat.pages_2m.value == 1
        assert_clean(machine)


# The process exits while an IO fault is being handled.


def test_an_io_fault_in_flight_keeps_the_memory_until_it_is_answered() -> None:
    with litmus() as machine:
        machine.add_slot(0, 8)
        device, hwpt = machine.attach(machine.export())
        machine.at("P1", lambda: meanwhile(machine, machine.vm.exit_mm))
        assert hwpt.io_fault(1, write=True)
        assert machine.kvm.mm_gone.value
        assert device.transact(1, write=True) is None
        assert not hwpt.io_fault(1, write=True)
        expect(machine)
        assert machine.wrong == []


# The window between the zap of MMIO SPTEs and the new generation.


class StopBeforeTheGeneration(Zapper):
    """A point to meet at: everything that could match after the wrap is gone, the generation is
    still the old one."""

    act: Callable[[], object] | None = None

    def memslots_updated(self, generation: int) -> None:
        super().memslots_updated(generation)
        if generation % 8 == 0:
            act, StopBeforeTheGeneration.act = StopBeforeTheGeneration.act, None
            if act is not None:
                act()


class CachedInFlux(FaultHandler):
    """An MMIO SPTE is made while memslots are being updated, with the generation as it was
    before."""

    def is_in_flux(self, generation: int) -> bool:
        return False


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("careful", [True, False], ids=["careful", "cached-in-flux"])
def test_an_mmio_spte_that_is_made_while_the_generation_wraps_does_not_match_a_round_later(
    careful: bool, exported: bool
) -> None:
    with litmus(
        part(StopBeforeTheGeneration, *(() if careful else (CachedInFlux,))), mmio_gen_bits=3
    ) as machine:
        if exported:
            machine.export()
        vcpu = machine.vcpu()
        for number in range(3):
            machine.add_slot(4 * number, 4, slot=number)
        assert machine.vm.memslots.peek(0).generation.value == 6
        StopBeforeTheGeneration.act = lambda: meanwhile(machine, lambda: machine.run(vcpu, 40))
        for number, gfn in enumerate((16, 40, 44, 48), start=3):
            machine.add_slot(gfn, 4, slot=number)
        assert StopBeforeTheGeneration.act is None
        assert machine.vm.memslots.peek(0).generation.value == 14
        assert machine.run(vcpu, 40) is (Exit.INTR if careful else Exit.MMIO)
        if careful:
            assert_clean(machine)
        else:
            expect(machine, "O13 stale-mmio-honoured")
            assert broken(machine) == {"I16"}
            machine.abandon()


# A slot that is being created: some see it, some do not yet.


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "overwritten"])
def test_p13_a_fault_that_does_not_see_a_new_slot_yet_leaves_its_leaves_alone(
    checked: bool,
) -> None:
    with litmus(*(() if checked else (part(CachedInFlux),))) as machine:
        early, late = machine.vcpu(), machine.vcpu()
        adding: list[Task] = []
        answers: list[RetPf] = []

        def slot_appears() -> None:
            adding.append(
                until_stuck(machine, lambda: machine.add_slot(40, 4), "kvm->srcu grace period")
            )
            meanwhile(machine, lambda: answers.append(machine.fault(late, 40)))

        machine.at("P2", slot_appears)
        answers.append(machine.fault(early, 40))
        finish_all(machine, adding)
        assert answers == [RetPf.FIXED, RetPf.EMULATE]
        if checked:
            assert machine.leaves(machine.root()) == {40: machine.regions[0, 0].ptes[0]}
            assert_clean(machine)
        else:
            assert machine.leaves(machine.root()) == {}
            machine.news()
            machine.abandon()
