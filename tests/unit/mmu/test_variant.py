"""Variants: subclasses take the place of parts, several of one part compose, and what is no part is
refused."""

from __future__ import annotations

import pytest

from mmu.machine.vcpu import Vcpu
from mmu.machine.vm import PART_BASES
from mmu.tdp.zap import Zapper
from mmu.variant import Parts, Variant
from tests.unit.conftest import MakeMachine


class Engine:
    """A part."""

    def start(self) -> str:
        """One thing it does."""
        return "started"

    def stop(self) -> str:
        """Another."""
        return "stopped"


class Wheel:
    """Another part."""


class SlowStart(Engine):
    """Changes the one."""

    def start(self) -> str:
        return f"slowly {super().start()}"


class HardStop(Engine):
    """Changes the other."""

    def stop(self) -> str:
        return f"hard {super().stop()}"


class ColdStart(Engine):
    """Changes the one as well."""

    def start(self) -> str:
        return f"coldly {super().start()}"


class Stranger:
    """No part of anything."""


def variant(name: str, *parts: type) -> Variant:
    """A variant without a story."""
    return Variant(name, name, parts)


def test_without_variants_the_parts_are_themselves() -> None:
    parts = Parts((Engine, Wheel))
    assert parts[Engine] is Engine
    assert parts[Wheel] is Wheel


def test_a_variant_takes_the_place_of_its_part_only() -> None:
    parts = Parts((Engine, Wheel), [variant("slow", SlowStart)])
    assert parts[Engine] is SlowStart
    assert parts[Wheel] is Wheel


def test_two_variants_of_one_part_compose() -> None:
    engine = Parts((Engine, Wheel), [variant("slow", SlowStart), variant("hard", HardStop)])[
        Engine
    ]()
    assert isinstance(engine, SlowStart)
    assert isinstance(engine, HardStop)
    assert (engine.start(), engine.stop()) == ("slowly started", "hard stopped")


def test_where_two_meet_the_later_one_is_asked_first() -> None:
    engine = Parts((Engine,), [variant("slow", SlowStart), variant("cold", ColdStart)])[Engine]()
    assert engine.start() == "coldly slowly started"


def test_the_composed_class_says_what_it_is_made_of() -> None:
    assert (
        Parts((Engine,), [variant("slow", SlowStart), variant("hard", HardStop)])[Engine].__name__
        == "SlowStart+HardStop"
    )


def test_one_variant_may_change_several_parts() -> None:
    class SquareWheel(Wheel):
        """Changes another part."""

    parts = Parts((Engine, Wheel), [variant("both", SlowStart, SquareWheel)])
    assert (parts[Engine], parts[Wheel]) == (SlowStart, SquareWheel)


def test_the_same_class_in_two_variants_counts_once() -> None:
    """A policy and a mutant may share what they change."""
    engine = Parts((Engine,), [variant("one", SlowStart), variant("other", SlowStart)])[Engine]()
    assert engine.start() == "slowly started"


def test_what_is_no_part_is_refused_with_the_parts_that_are() -> None:
    with pytest.raises(
        TypeError, match="Stranger is no subclass of a part; parts are Engine, Wheel"
    ):
        Parts((Engine, Wheel), [variant("slow", SlowStart), variant("odd", Stranger)])


def test_every_part_of_a_vm_can_be_replaced(make_machine: MakeMachine) -> None:
    replaced = [type("My" + base.__name__, (base,), {}) for base in PART_BASES]
    machine = make_machine(variants=[Variant("all", "everything replaced", tuple(replaced))])
    machine.add_slot(0, 8)
    machine.run(machine.vm.create_vcpu(), 1)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(2, write=True)
    machine.delete_slot()
    vm = machine.vm
    parts = [
        vm.kvm.rcu,
        vm.kvm.srcu,
        vm.kvm.tables,
        vm.requests,
        vm.host,
        vm.tlb,
        vm.roots,
        vm.writer,
        vm.zapper,
        vm.memslots,
    ]
    parts += [vm.yielding, vm.huge, vm.dirty, vm.ageing, vm.notifier, vm.nx]
    parts += [vm.faults, vm.exported_tdps, vm.exporter, device, hwpt, *vm.vcpus()]
    parts += [
        hwpt.fd,
        hwpt.fd.exported,
        hwpt.domain,
        device.iotlb,
        *(vcpu.tlb for vcpu in vm.vcpus()),
    ]
    parts += [vm.kvm.invalidation, vm.kvm.possible_nx_huge_pages]
    assert {type(part) for part in parts} == set(replaced)


def test_a_vm_runs_with_a_part_that_two_variants_change(make_machine: MakeMachine) -> None:
    class Shouting(Zapper):
        def toggle_valid_gen(self) -> None:
            heard.append("toggle")
            super().toggle_valid_gen()

    class Counting(Zapper):
        def zap_exported_roots(self) -> None:
            heard.append("exported")
            super().zap_exported_roots()

    heard: list[str] = []
    machine = make_machine(variants=[variant("shouting", Shouting), variant("counting", Counting)])
    machine.add_slot(0, 8)
    machine.run(machine.vm.create_vcpu(), 1)
    machine.delete_slot()
    assert heard == ["toggle", "exported"]
    machine.assert_sound()


def test_a_vm_refuses_what_is_no_part_of_it(make_machine: MakeMachine) -> None:
    with pytest.raises(TypeError, match="Stranger is no subclass of a part"):
        make_machine(variants=[variant("odd", Stranger)])


def test_a_variant_is_a_value() -> None:
    assert variant("slow", SlowStart) == variant("slow", SlowStart)
    assert variant("slow", SlowStart) != variant("slow", HardStop)
    assert issubclass(Parts(PART_BASES)[Vcpu], Vcpu)
