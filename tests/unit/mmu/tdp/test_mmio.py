"""MMIO SPTEs: remembered for one generation, honoured while no slot came, never in the way of
memory (I16, O13)."""

from __future__ import annotations

import pytest

from mmu.export.device import Dma
from mmu.export.policies import SEPARATE_ROOT
from mmu.invariants import CheckedTree
from mmu.machine.vcpu import Exit, Vcpu
from mmu.memory.memslots import GEN_UPDATE_IN_PROGRESS
from mmu.paging.spte import SPTE_MMIO, SPTE_RWX
from mmu.paging.table import RootPage
from mmu.posted.r18_mmio_spte_walked import Misconfigured
from mmu.task import Task
from mmu.tdp.fault import RetPf
from mmu.variant import Variant
from tests.conftest import blocked, finish, srcu_section, together, writing
from tests.model import Machine, w, x
from tests.unit.conftest import MakeMachine


@pytest.fixture
def vcpu(machine: Machine) -> Vcpu:
    """A vCPU of a VM with memory at gfns 0..15 and none at 40."""
    machine.add_slot(0, 16)
    return machine.vcpu()


def mmio_sptes(machine: Machine, root: RootPage | None = None) -> list[int]:
    """The gfns that have an MMIO SPTE."""
    return [
        entry.gfn
        for entry in CheckedTree(machine.vm, root or machine.root()).others
        if entry.spte & SPTE_MMIO
    ]


def generation(machine: Machine) -> int:
    """The current memslot generation."""
    return machine.vm.memslots.peek(0).generation.value


# Made and honoured.


@pytest.mark.parametrize("access", [40, w(40), x(40)], ids=["read", "write", "fetch"])
def test_the_first_access_is_looked_up_and_the_next_ones_are_not(
    machine: Machine, vcpu: Vcpu, access: int
) -> None:
    honoured = machine.record("mmio_honoured")
    assert [machine.run(vcpu, access) for _ in range(3)] == [Exit.MMIO] * 3
    assert (vcpu.stat.pf_emulate, vcpu.stat.pf_mmio, vcpu.stat.mmio_exits) == (1, 2, 3)
    assert mmio_sptes(machine) == [40]
    assert [args[:3] for args in honoured.args("mmio_honoured")] == [
        (vcpu, 40, machine.spte(40))
    ] * 2
    assert machine.leaves(machine.root()) == {}
    assert 40 not in vcpu.tlb.entries, "a misconfiguration is not cached"
    machine.assert_sound()


def test_an_mmio_spte_says_where_and_when(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 40)
    assert machine.spte(40) == machine.kvm.layout.mmio(40, generation(machine))
    assert not machine.spte(40) & SPTE_RWX, "to an IOMMU it is nothing"


def test_without_mmio_caching_every_access_is_looked_up(make_machine: MakeMachine) -> None:
    machine = make_machine(mmio_caching=False)
    machine.add_slot(0, 16)
    vcpu = machine.vcpu()
    assert [machine.run(vcpu, 40) for _ in range(3)] == [Exit.MMIO] * 3
    assert (vcpu.stat.pf_emulate, vcpu.stat.pf_mmio) == (3, 0)
    assert mmio_sptes(machine) == []


def test_a_second_fault_changes_nothing_and_counts_nothing(machine: Machine, vcpu: Vcpu) -> None:
    machine.fault(vcpu, 40)
    changes = machine.record("spte_changed")
    assert machine.fault(vcpu, 40) is RetPf.EMULATE
    assert changes.events == []
    assert machine.kvm.stat.pages_4k.value == 0


def test_any_memslot_change_makes_it_stale(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 40)
    before = machine.spte(40)
    machine.add_slot(48, 4, slot=1)
    machine.run(vcpu, 40)
    assert vcpu.stat.pf_mmio == 0
    assert machine.spte(40) != before
    machine.run(vcpu, 40)
    assert vcpu.stat.pf_mmio == 1


def test_memory_takes_the_place_of_an_mmio_spte(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 40)
    region = machine.add_slot(32, 16, slot=1)
    assert machine.run(vcpu, w(40)) is Exit.INTR
    assert machine.leaves(machine.root()) == {40: region.ptes[8]}
    machine.assert_sound()


def test_a_huge_page_takes_the_place_of_a_table_of_mmio_sptes(huge: Machine) -> None:
    huge.add_slot(0, 16)
    vcpu = huge.vcpu()
    for gfn in (40, 41):
        huge.run(vcpu, gfn)
    huge.add_slot(32, 16, slot=1, max_level=2)
    assert huge.run(vcpu, w(40), w(41)) is Exit.INTR
    assert huge.huge_leaves() == [(40, 2)]
    huge.assert_sound()


def test_while_an_update_is_under_way_nothing_is_honoured(machine: Machine, vcpu: Vcpu) -> None:
    faults = machine.vm.faults
    assert faults.is_current(6, 6)
    assert not faults.is_current(6, 8)
    assert not faults.is_current(6, 6 | GEN_UPDATE_IN_PROGRESS)
    answers: list[bool] = []

    def look() -> None:
        with srcu_section(machine.kvm.srcu):
            answers.append(
                faults.check_mmio_spte(
                    40, 0, machine.kvm.layout.mmio(40, generation(machine)), vcpu
                )
            )

    machine.on(memslot_begin=lambda *_: look())
    machine.vm.memslots.synchronize_srcu = look  # type: ignore[method-assign]
    machine.add_slot(48, 4, slot=1)
    look()
    assert answers == [True, False, True]


def test_a_fault_that_does_not_see_a_slot_yet_hides_nothing_of_those_who_do(
    machine: Machine, vcpu: Vcpu
) -> None:
    """The fault looked at the old set; meanwhile the slot is published, and another vCPU maps what
    the fault takes for MMIO. An MMIO SPTE over its leaf would hide the leaf from every later
    zap."""
    other, creators = machine.vcpu(), list[Task]()

    def create_meanwhile() -> None:
        creators.append(
            blocked(
                machine.runtime,
                lambda: machine.add_slot(32, 16, slot=1),
                lambda task: "grace period" in task.waiting_for,
            )
        )
        together(machine.runtime, lambda: results.append(machine.fault(other, 40)))

    results: list[RetPf] = []
    machine.at("P2", create_meanwhile)
    assert machine.fault(vcpu, 40) is RetPf.EMULATE
    finish(machine.runtime, *creators)
    assert results == [RetPf.FIXED]
    assert list(machine.leaves(machine.root())) == [40]
    assert machine.run(vcpu, w(40)) is Exit.INTR
    machine.assert_sound()


def test_nothing_is_remembered_while_memslots_are_being_updated(
    machine: Machine, vcpu: Vcpu
) -> None:
    """An entry made after a wrap's zap, and before the new generation is stored, would survive the
    wrap."""
    creators: list[Task] = []

    def create_meanwhile() -> None:
        creators.append(
            blocked(
                machine.runtime,
                lambda: machine.add_slot(32, 4, slot=1),
                lambda task: "grace period" in task.waiting_for,
            )
        )

    machine.at("P2", create_meanwhile)
    assert machine.fault(vcpu, 40) is RetPf.EMULATE
    finish(machine.runtime, *creators)
    assert mmio_sptes(machine) == []
    assert machine.fault(vcpu, 40) is RetPf.EMULATE
    assert mmio_sptes(machine) == [40]


def test_an_mmio_spte_that_is_gone_by_now_is_no_page_fault(machine: Machine, vcpu: Vcpu) -> None:
    """handle_mmio_page_fault() has three answers; the third is to let the guest try again."""
    machine.fault(vcpu, 40)
    with srcu_section(machine.kvm.srcu):
        assert vcpu.handle_mmio_page_fault(40) is RetPf.EMULATE
        sp, index = machine.entry(machine.root(), 40)
        sp.spt[index] = 0
        assert vcpu.handle_mmio_page_fault(40) is RetPf.RETRY


def test_who_loses_the_race_for_an_mmio_spte_retries(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 41)
    sp, index = machine.entry(machine.root(), 40)
    plain = machine.vm.faults.make_mmio_spte

    def make(gfn: int, as_id: int) -> int:
        sp.spt.store(index, machine.kvm.layout.mmio(gfn, 1))
        return plain(gfn, as_id)

    machine.vm.faults.make_mmio_spte = make  # type: ignore[method-assign]
    assert machine.fault(vcpu, 40) is RetPf.RETRY


# The wrap.


@pytest.fixture(params=[False, True], ids=["ordinary", "exported"])
def wrapping(request: pytest.FixtureRequest, make_machine: MakeMachine) -> tuple[Machine, Vcpu]:
    """A machine whose MMIO SPTEs keep three bits of the generation, and an MMIO SPTE made at
    generation 2."""
    machine = make_machine(mmio_gen_bits=3)
    machine.add_slot(0, 16)
    vcpu = machine.vcpu()
    if request.param:
        machine.export()
    machine.run(vcpu, 40)
    assert generation(machine) == 2
    return machine, vcpu


def test_when_the_generation_wraps_every_mmio_spte_goes(wrapping: tuple[Machine, Vcpu]) -> None:
    """Defect R9: a leaf zap keeps them, and the root is kept valid."""
    machine, vcpu = wrapping
    wraps = machine.record("mmio_wrapped")
    for slot in (1, 2, 3):
        machine.add_slot(44 + 4 * slot, 4, slot=slot)
    assert wraps.args("mmio_wrapped") == [(8,)]
    assert mmio_sptes(machine) == []
    machine.add_slot(32, 12, slot=4)
    assert generation(machine) == 10, "2, to an SPTE"
    assert machine.run(vcpu, w(40)) is Exit.INTR
    machine.assert_sound()


def test_mmio_sptes_go_before_the_generation_that_they_could_match_is_stored(
    wrapping: tuple[Machine, Vcpu],
) -> None:
    """152482580a1b."""
    machine, _ = wrapping
    seen: list[int] = []
    machine.on(mmio_wrapped=lambda _: seen.append(generation(machine)))
    for slot in (1, 2, 3):
        machine.add_slot(44 + 4 * slot, 4, slot=slot)
    assert seen == [6 | GEN_UPDATE_IN_PROGRESS]


def test_the_odd_generations_of_smm_wrap_too(make_machine: MakeMachine) -> None:
    machine = make_machine(mmio_gen_bits=3)
    wraps = machine.record("mmio_wrapped")
    for slot in range(4):
        machine.add_slot(4 * slot, 4, slot=slot, as_id=1)
    assert wraps.args("mmio_wrapped") == [(9,)]


def test_a_wrap_takes_mmio_sptes_only_where_they_are(machine: Machine, vcpu: Vcpu) -> None:
    root = machine.export().metadata().root
    machine.run(vcpu, 5)
    for gfn in (20, 40, 63):
        machine.run(vcpu, gfn)
    before = machine.leaves(root)
    events = machine.record("flush_begin", "spte_zapped")
    machine.vm.zapper.zap_kept_mmio_sptes()
    assert mmio_sptes(machine, root) == []
    assert machine.leaves(root) == before
    assert events.events == [], "nothing was cached, so there is nothing to flush"


def test_a_leaf_zap_leaves_them_alone(machine: Machine, vcpu: Vcpu) -> None:
    machine.run(vcpu, 5)
    machine.run(vcpu, 40)
    root = machine.root()
    with writing(machine.mmu_lock):
        machine.vm.zapper.zap_leafs(root, 0, 64, can_yield=False, flush=False)
    assert mmio_sptes(machine) == [40]


# Devices.


def test_a_device_finds_nothing_at_an_mmio_spte(machine: Machine, vcpu: Vcpu) -> None:
    device, hwpt = machine.attach(machine.export())
    machine.run(vcpu, 40)
    assert device.transact(40, write=True) is None
    assert not hwpt.io_fault(40, write=True)
    machine.assert_sound()


def test_with_the_rights_of_a_misconfiguration_a_device_would_write_somewhere(
    make_machine: MakeMachine,
) -> None:
    """Defect R18, which the mended model does not have."""
    machine = make_machine(variants=[Variant("r18", "misconfigured", (Misconfigured,))])
    machine.add_slot(0, 16)
    vcpu = machine.vcpu()
    device, _ = machine.attach(machine.export())
    assert machine.run(vcpu, w(40)) is Exit.MMIO
    assert machine.run(vcpu, w(40)) is Exit.MMIO, "the vCPU sees the mark"
    assert device.transact(40, write=True) is Dma.WRONG
    machine.abandon()


def test_an_io_fault_makes_no_mmio_spte(machine: Machine) -> None:
    machine.add_slot(0, 16)
    fd = machine.export()
    assert not fd.fault(40, write=False)
    assert mmio_sptes(machine, fd.metadata().root) == []


def test_the_importers_own_root_never_has_one(make_machine: MakeMachine) -> None:
    machine = make_machine(variants=[SEPARATE_ROOT], mmio_gen_bits=3)
    machine.add_slot(0, 16)
    fd = machine.export()
    machine.run(machine.vcpu(), 40)
    assert not fd.fault(40, write=False)
    assert mmio_sptes(machine, fd.metadata().root) == []
    assert mmio_sptes(machine) == [40]
