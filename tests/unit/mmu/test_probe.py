"""The probe: hooks nobody wants cost nothing, everybody who wants one is called in order, and
errors find their way."""

from __future__ import annotations

from typing import Any

import pytest

from mmu.export.policies import REPUBLISH
from mmu.probe import HOOKS, Probe
from tests.model import Machine, Recorder, w, x
from tests.unit.conftest import MakeMachine


class Listener:
    """Listens to two hooks, and has a method that is none."""

    def __init__(self, name: str, heard: list[tuple[Any, ...]]) -> None:
        self._name = name
        self._heard = heard

    def root_freed(self, root: object) -> None:
        """A hook."""
        self._heard.append((self._name, "root_freed", root))

    def point(self, name: str) -> None:
        """Another."""
        self._heard.append((self._name, "point", name))

    def unrelated(self) -> None:
        """No hook."""


@pytest.fixture
def heard() -> list[tuple[Any, ...]]:
    """What the listeners heard."""
    return []


def test_at_first_nobody_listens() -> None:
    probe = Probe()
    assert [getattr(probe, hook) for hook in HOOKS] == [None] * len(HOOKS)


def test_only_the_wanted_hooks_are_connected(heard: list[tuple[Any, ...]]) -> None:
    probe = Probe()
    probe.attach(Listener("a", heard))
    assert {hook for hook in HOOKS if getattr(probe, hook) is not None} == {"root_freed", "point"}
    assert probe.root_freed is not None
    probe.root_freed(7)
    assert heard == [("a", "root_freed", 7)]


def test_all_are_called_in_the_order_in_which_they_came(heard: list[tuple[Any, ...]]) -> None:
    probe = Probe()
    probe.attach(Listener("a", heard), Listener("b", heard))
    probe.attach(Listener("c", heard))
    assert probe.point is not None
    probe.point("P1")
    assert heard == [("a", "point", "P1"), ("b", "point", "P1"), ("c", "point", "P1")]


def test_an_attribute_that_cannot_be_called_is_no_observer() -> None:
    class Odd:
        point = "not a method"

    probe = Probe()
    probe.attach(Odd())
    assert probe.point is None


def test_an_observers_error_is_the_models_when_nobody_takes_it() -> None:
    class Broken:
        def point(self, name: str) -> None:
            raise LookupError(name)

    probe = Probe()
    probe.attach(Broken())
    assert probe.point is not None
    with pytest.raises(LookupError, match="P3"):
        probe.point("P3")


def test_an_observers_error_goes_to_whoever_takes_it() -> None:
    class Broken:
        def point(self, name: str) -> None:
            raise LookupError(name)

    taken: list[tuple[str, str]] = []
    probe = Probe(on_error=lambda hook, error: taken.append((hook, str(error))))
    probe.attach(Broken())
    assert probe.point is not None
    probe.point("P3")
    assert taken == [("point", "'P3'")] or taken == [("point", "P3")]


def test_a_name_that_is_no_hook_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        Probe().rooot_freed = None  # type: ignore[attr-defined]


def test_every_hook_is_described_with_its_arguments() -> None:
    assert all(text.startswith("(") and ") " in text and len(text) > 20 for text in HOOKS.values())
    assert set(HOOKS) <= set(Probe.__slots__)


RARE = {
    "bad_translation",
    "frozen_met",
    "zap_yielded",
    "obsolete_zap_broken",
    "grace_period",
    "grace_period_waited",
    "cmpxchg_lost",
}
"""Hooks that need a defect, or somebody in the way."""


def a_full_life(machine: Machine) -> Recorder:
    """A VM in which everything happens, but what needs a defect or somebody in the way."""
    events: Recorder = machine.record()
    region = machine.add_slot(0, 16, max_level=2)
    vcpu = machine.vm.create_vcpu()
    device, hwpt = machine.attach(machine.export())
    machine.plant(machine.root(as_id=1), 1)
    machine.run(vcpu, 1)
    machine.vm.set_nx_huge_pages(True)
    machine.run(vcpu, 1, x(1))
    machine.at("P2", lambda: machine.kvm.invalidation.seq.fetch_add(1))
    machine.run(vcpu, w(9))
    for gfn in (40, 40):
        machine.run(vcpu, gfn)
    machine.log_dirty_pages()
    machine.run(vcpu, w(9))
    machine.vm.get_dirty_log(0)
    machine.run(vcpu, w(9))
    machine.discard(region, 4, 8)
    machine.at("P1", lambda: machine.kvm.invalidation.seq.fetch_add(1))
    hwpt.io_fault(2, write=True)
    device.transact(2, write=True)
    vcpu.shadow(2)
    machine.delete_slot()
    machine.add_slot(0, 8)
    machine.kvm.rcu.barrier()
    return events


@pytest.mark.parametrize("republish", [False, True])
def test_a_vm_fires_each_hook_with_as_many_arguments_as_its_description_names(
    make_machine: MakeMachine, republish: bool
) -> None:
    machine = make_machine(huge_2m=8, mmio_gen_bits=3, variants=[REPUBLISH] if republish else [])
    events = a_full_life(machine)
    for name, args in events.events:
        named = HOOKS[name].partition("(")[2].partition(")")[0].split(", ")
        assert len(args) == len([argument for argument in named if argument]), name
    others = {"exported_zapped"} if republish else {"importer_switched", "republished"}
    assert set(HOOKS) - set(events.names()) - RARE == others
