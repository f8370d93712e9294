"""O5: a range is unmapped only while faults on it are held off."""

from __future__ import annotations

import pytest

from mmu.export.policies import SLOT_LEAVES
from mmu.memory.memslots import Memslot
from mmu.tdp.notifier import MmuNotifier
from mmu.variant import Variant
from stress.mutants import MUTANTS
from tests.model import Machine, w
from tests.unit.stress.observe.oracles.conftest import Watch, reported


def used(machine: Machine) -> None:
    """A slot of 16 frames, of which two are mapped."""
    machine.add_slot(0, 16)
    machine.run(machine.vcpu(), w(2), w(3))


def test_notifiers_attributes_and_memslot_updates_are_silent(watch: Watch) -> None:
    machine = watch(SLOT_LEAVES)
    used(machine)
    machine.discard(machine.regions[0, 0], 2, 3)
    machine.vm.change_attributes(0, 4)
    machine.delete_slot()
    machine.expect()


def test_an_unmap_outside_any_invalidation_is_reported(watch: Watch) -> None:
    machine = watch(MUTANTS["invalidation-not-announced"])
    used(machine)
    machine.discard(machine.regions[0, 0], 2, 3)
    machine.expect("O5 unmap-without-invalidation")
    assert "outside any invalidation" in reported(machine, "unmap-without-invalidation").headline


def test_an_unmap_while_other_pages_are_invalidated_is_reported(watch: Watch) -> None:
    machine = watch(MUTANTS["attribute-zap-in-wrong-units"])
    used(machine)
    machine.vm.change_attributes(0, 4)
    machine.expect("O5 unmap-without-invalidation")
    assert (
        "another range is being invalidated: host pages 0x0..0x3"
        in reported(machine, "unmap-without-invalidation").headline
    )


@pytest.mark.parametrize(("wider", "reports"), [(0, ()), (1, ("O5 unmap-without-invalidation",))])
def test_a_page_more_than_was_announced_is_reported(
    watch: Watch, wider: int, reports: tuple[str, ...]
) -> None:
    class Wider(MmuNotifier):
        def unmap_gfn_range(self, slot: Memslot, start: int, end: int, *, flush: bool) -> bool:
            return super().unmap_gfn_range(slot, start, end + wider, flush=flush)

    machine = watch(Variant("wider", "unmaps too much", (Wider,)))
    used(machine)
    machine.discard(machine.regions[0, 0], 2, 3)
    machine.expect(*reports)


def test_gfns_without_a_slot_need_nothing_announced(watch: Watch) -> None:
    machine = watch(MUTANTS["attribute-zap-in-wrong-units"])
    used(machine)
    machine.vm.change_attributes(40, 44)
    machine.expect()
