"""Ageing: what was used is young once, and the next use is noticed - by the A bit, or by a fault
where there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmu.machine.vcpu import Vcpu
from mmu.paging.spte import SPTE_A, SPTE_D, SPTE_RWX, SPTE_W
from mmu.tdp.fault import RetPf
from tests.conftest import reading, writing
from tests.model import Machine, w, x
from tests.unit.conftest import MakeMachine

ages = pytest.mark.parametrize("ad_bits", [True, False], ids=["A bits", "access tracking"])


def aged(machine: Machine, first: int = 0, last: int = 16) -> bool:
    """Make these pages of slot 0 old."""
    with writing(machine.mmu_lock):
        return machine.vm.ageing.age_gfn_range(machine.slot(), first, last)


def young(machine: Machine, first: int = 0, last: int = 16) -> bool:
    """Whether any of them is young."""
    with writing(machine.mmu_lock):
        return machine.vm.ageing.test_age_gfn(machine.slot(), first, last)


@pytest.fixture
def make_used(make_machine: MakeMachine) -> Callable[..., tuple[Machine, Vcpu]]:
    """A machine whose vCPU has written gfn 1 and read gfn 5 of a slot at gfns 0..15."""

    def make(ad_bits: bool, **config: object) -> tuple[Machine, Vcpu]:
        machine = make_machine(ad_bits=ad_bits, **config)
        machine.add_slot(0, 16)
        vcpu = machine.vcpu()
        machine.run(vcpu, w(1), 5)
        return machine, vcpu

    return make


@ages
def test_what_was_used_is_young_until_it_is_aged(
    make_used: Callable[..., tuple[Machine, Vcpu]], ad_bits: bool
) -> None:
    machine, _ = make_used(ad_bits)
    assert young(machine)
    assert young(machine), "looking changes nothing"
    assert aged(machine)
    assert not young(machine)
    assert not aged(machine)
    machine.assert_sound()


@ages
@pytest.mark.parametrize(
    ("first", "last", "left"),
    [(0, 2, [5]), (2, 5, [1, 5]), (5, 6, [1]), (6, 16, [1, 5]), (1, 1, [1, 5])],
)
def test_only_the_range_is_aged(
    make_used: Callable[..., tuple[Machine, Vcpu]],
    ad_bits: bool,
    first: int,
    last: int,
    left: list[int],
) -> None:
    machine, _ = make_used(ad_bits)
    assert aged(machine, first, last) == (len(left) < 2)
    assert [gfn for gfn in (1, 5) if young(machine, gfn, gfn + 1)] == left


@ages
def test_the_next_use_is_noticed_when_the_tlb_was_flushed(
    make_used: Callable[..., tuple[Machine, Vcpu]], ad_bits: bool
) -> None:
    machine, vcpu = make_used(ad_bits)
    aged(machine)
    machine.run(vcpu, 5)
    assert not young(machine), "the TLB still translates"
    machine.vm.tlb.flush("test")
    machine.run(vcpu, 5)
    assert young(machine, 5, 6)
    assert not young(machine, 1, 2)
    machine.assert_sound()


def test_with_a_bits_the_next_use_is_no_fault(
    make_used: Callable[..., tuple[Machine, Vcpu]],
) -> None:
    machine, vcpu = make_used(True)
    before = machine.spte(1)
    aged(machine)
    assert machine.spte(1) == before & ~SPTE_A
    faults = vcpu.stat.pf_taken
    machine.vm.tlb.flush("test")
    machine.run(vcpu, w(1), 5)
    assert vcpu.stat.pf_taken == faults


@pytest.mark.parametrize(
    ("access", "back"), [(1, "r-x"), (w(1), "rwx"), (x(1), "r-x")], ids=["read", "write", "fetch"]
)
def test_without_a_bits_the_next_use_is_a_fault_without_mmu_lock(
    make_used: Callable[..., tuple[Machine, Vcpu]], access: int, back: str
) -> None:
    machine, vcpu = make_used(False)
    before = machine.spte(1)
    aged(machine)
    assert not machine.spte(1) & SPTE_RWX
    machine.vm.tlb.flush("test")
    fast = machine.record("fast_page_fault", "spte_changed")
    machine.run(vcpu, access)
    assert fast.names() == ["fast_page_fault"]
    assert machine.spte(1) == (before if back == "rwx" else before & ~SPTE_W)
    machine.run(vcpu, w(1))
    assert machine.spte(1) == before
    machine.assert_sound()


def test_an_old_page_that_was_written_is_still_dirty_for_the_host(
    make_used: Callable[..., tuple[Machine, Vcpu]],
) -> None:
    """Without a D bit W says "dirty", and access tracking takes W."""
    machine, _ = make_used(False)
    pfn = machine.regions[0, 0].ptes[1]
    assert not machine.kvm.pfn_dirtied[pfn]
    aged(machine)
    assert machine.kvm.pfn_dirtied[pfn]


def test_a_d_bit_survives_ageing(make_used: Callable[..., tuple[Machine, Vcpu]]) -> None:
    machine, _ = make_used(True)
    aged(machine)
    assert machine.spte(1) & SPTE_D
    machine.assert_sound()


def test_a_bit_that_the_cpu_sets_meanwhile_is_not_lost(
    make_used: Callable[..., tuple[Machine, Vcpu]],
) -> None:
    """B56: ageing clears one bit of a word that hardware writes as well."""
    machine, _ = make_used(True)
    sp, index = machine.entry(machine.root(), 5)
    sp.spt.fetch_and(index, ~SPTE_D)
    writer = machine.vm.writer
    plain = writer.has_volatile_bits

    def dirtied_meanwhile(spte: int, level: int) -> bool:
        sp.spt.store(index, sp.spt[index] | SPTE_D)
        return plain(spte, level)

    writer.has_volatile_bits = dirtied_meanwhile  # type: ignore[method-assign]
    aged(machine, 5, 6)
    assert machine.spte(5) & (SPTE_A | SPTE_D) == SPTE_D


def test_rights_that_the_lockless_path_gives_meanwhile_are_taken_with_the_rest(
    make_used: Callable[..., tuple[Machine, Vcpu]],
) -> None:
    machine, _ = make_used(False)
    sp, index = machine.entry(machine.root(), 1)
    full = sp.spt[index]
    sp.spt.store(index, full & ~SPTE_W)
    plain = machine.kvm.layout.mark_for_access_track
    pfn = machine.regions[0, 0].ptes[1]
    given: list[int] = []

    class Layout(type(machine.kvm.layout)):  # type: ignore[misc]
        __slots__ = ()

        def mark_for_access_track(self, spte: int) -> int:
            if not given:
                given.append(spte)
                sp.spt.store(index, full)
            return plain(spte)

    object.__setattr__(machine.kvm.layout, "__class__", Layout)
    aged(machine, 1, 2)
    assert not machine.spte(1) & SPTE_RWX
    assert machine.kvm.pfn_dirtied[pfn], "a write that was possible in between is not forgotten"


@ages
def test_a_huge_page_is_aged_as_a_whole(make_machine: MakeMachine, ad_bits: bool) -> None:
    machine = make_machine(ad_bits=ad_bits, huge_2m=4)
    machine.add_slot(0, 16, max_level=2)
    vcpu = machine.vcpu()
    machine.run(vcpu, 5)
    assert young(machine, 6, 7)
    assert aged(machine, 7, 8)
    assert not young(machine, 5, 6)
    machine.vm.tlb.flush("test")
    machine.run(vcpu, 4)
    assert young(machine, 6, 7)
    assert machine.huge_leaves() == [(4, 2)]
    machine.assert_sound()


@ages
def test_other_address_spaces_are_left_alone(
    make_used: Callable[..., tuple[Machine, Vcpu]], ad_bits: bool
) -> None:
    machine, _ = make_used(ad_bits)
    machine.add_slot(0, 16, as_id=1)
    vcpu = machine.vm.create_vcpu()
    vcpu.set_smm(True)
    machine.run(vcpu, 1)
    aged(machine)
    with writing(machine.mmu_lock):
        assert machine.vm.ageing.test_age_gfn(machine.slot(0, as_id=1), 0, 16)


@ages
def test_ageing_neither_flushes_nor_unmaps(
    make_used: Callable[..., tuple[Machine, Vcpu]], ad_bits: bool
) -> None:
    machine, _ = make_used(ad_bits)
    events = machine.record("flush_begin", "spte_zapped")
    before = machine.leaves(machine.root())
    aged(machine)
    assert events.events == []
    assert machine.leaves(machine.root()) == before
    assert machine.kvm.stat.pages_4k.value == 2


@ages
def test_an_old_page_can_be_mapped_again_by_the_slow_path(
    make_used: Callable[..., tuple[Machine, Vcpu]], ad_bits: bool
) -> None:
    """A device's IO fault knows no lockless path."""
    machine, _ = make_used(ad_bits)
    fd = machine.export()
    before = machine.spte(1)
    aged(machine)
    assert fd.fault(1, write=True)
    assert machine.spte(1) == before
    machine.assert_sound()


def test_ageing_needs_the_write_lock(make_used: Callable[..., tuple[Machine, Vcpu]]) -> None:
    machine, _ = make_used(True)
    with reading(machine.mmu_lock):
        machine.vm.ageing.test_age_gfn(machine.slot(), 0, 16)
    assert "O5 assert-held-for-write" in machine.news()


def test_a_fault_makes_an_old_page_young_even_if_it_is_there(
    make_used: Callable[..., tuple[Machine, Vcpu]],
) -> None:
    machine, vcpu = make_used(True)
    aged(machine)
    assert machine.fault(vcpu, 5) is RetPf.FIXED
    assert young(machine, 5, 6)
