"""The probe: a hook without a listener costs nothing, all listeners are called in order, errors
find their way, and what is no hook is refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from mmu.export.policies import REPUBLISH
from mmu.probe import HOOKS, Instrument, Listeners, Probe, override
from mmu.sync.probe import SyncInstrument, SyncProbe
from tests.model import Machine, Recorder, w, x
from tests.unit.conftest import MakeMachine


class Listener(Instrument):
    """Listens to two hooks, and has a method that is none."""

    def __init__(self, name: str, heard: list[tuple[Any, ...]]) -> None:
        self._name = name
        self._heard = heard

    @override
    def root_freed(self, root: object) -> None:
        self._heard.append((self._name, "root_freed", root))

    @override
    def point(self, name: str) -> None:
        self._heard.append((self._name, "point", name))

    def unrelated(self) -> None:
        """No hook."""


class Broken(Instrument):
    """Raises at every point."""

    @override
    def point(self, name: str) -> None:
        raise LookupError(name)


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


def test_an_inherited_method_listens_and_an_inherited_hook_does_not(
    heard: list[tuple[Any, ...]],
) -> None:
    class Heir(Listener):
        @override
        def root_freed(self, root: object) -> None:
            super().root_freed(("heir", root))

        @override
        def root_zapped(self, root: object) -> None:
            super().root_zapped(root)

    probe = Probe()
    probe.attach(Heir("a", heard))
    wanted = {hook for hook in HOOKS if getattr(probe, hook) is not None}
    assert wanted == {"root_freed", "root_zapped", "point"}
    assert probe.root_freed is not None
    assert probe.root_zapped is not None
    probe.root_freed(7)
    probe.root_zapped(7)
    assert heard == [("a", "root_freed", ("heir", 7))]


def test_all_are_called_in_the_order_in_which_they_came(heard: list[tuple[Any, ...]]) -> None:
    probe = Probe()
    probe.attach(Listener("a", heard), Listener("b", heard))
    probe.attach(Listener("c", heard))
    assert probe.point is not None
    probe.point("P1")
    assert heard == [("a", "point", "P1"), ("b", "point", "P1"), ("c", "point", "P1")]


def test_functions_listen_to_hooks_that_are_known_by_name(heard: list[tuple[Any, ...]]) -> None:
    probe = Probe()
    probe.attach(Listeners({"point": lambda *args: heard.append(args)}))
    assert probe.point is not None
    probe.point("P1")
    assert heard == [("P1",)]
    assert probe.root_freed is None


def test_a_function_for_what_is_not_a_hook_is_refused() -> None:
    with pytest.raises(TypeError, match="not a hook: rooot_freed"):
        Listeners({"rooot_freed": print, "root_freed": print})


def test_what_is_not_an_instrument_is_refused() -> None:
    class Other:
        def point(self, name: str) -> None: ...

    probe = Probe()
    with pytest.raises(TypeError, match=r"Other object .* is not an Instrument"):
        probe.attach(Other())
    assert probe.point is None


def test_a_misspelt_hook_is_refused() -> None:
    def handler(self: object, root: object) -> None: ...

    misspelt = "^Misspelt.rooot_freed is not a hook; did you mean root_freed\\?$"
    with pytest.raises(TypeError, match=misspelt):
        type("Misspelt", (Instrument,), {"rooot_freed": handler})
    with pytest.raises(TypeError, match=misspelt):
        type("Misspelt", (Instrument,), {"rooot_freed": override(handler)})
    with pytest.raises(TypeError, match=r"^Misspelt.gone overrides nothing and is not a hook$"):
        type("Misspelt", (Instrument,), {"gone": override(handler)})


def test_a_hook_that_is_not_marked_is_refused() -> None:
    with pytest.raises(TypeError, match="point overrides a hook: mark it with @override"):

        class Unmarked(Instrument):
            def point(self, name: str) -> None: ...


def test_a_hook_that_is_not_a_method_is_refused() -> None:
    with pytest.raises(TypeError, match="point has the name of a hook, but is not a method"):

        class Odd(Instrument):
            point = "not a method"


def test_a_function_put_on_an_instrument_is_refused() -> None:
    with pytest.raises(AttributeError, match="point is a hook: override it in a class"):
        Instrument().point = print


def test_an_observers_error_is_the_models_when_nobody_takes_it() -> None:
    probe = Probe()
    probe.attach(Broken())
    assert probe.point is not None
    with pytest.raises(LookupError, match="P3"):
        probe.point("P3")


def test_an_observers_error_goes_to_whoever_takes_it() -> None:
    taken: list[tuple[str, str]] = []
    probe = Probe(on_error=lambda hook, error: taken.append((hook, str(error))))
    probe.attach(Broken())
    assert probe.point is not None
    probe.point("P3")
    assert taken == [("point", "P3")]


def test_a_name_that_is_no_hook_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        Probe().rooot_freed = None  # type: ignore[attr-defined]


def test_locks_and_rcu_have_a_window_of_their_own(heard: list[tuple[Any, ...]]) -> None:
    class Locked(SyncInstrument):
        @override
        def mmu_write_locked(self) -> None:
            heard.append(("locked",))

    small, whole = SyncProbe(), Probe()
    for probe in (small, whole):
        probe.attach(Locked())
        assert probe.mmu_write_locked is not None
        probe.mmu_write_locked()
    assert heard == [("locked",), ("locked",)]
    with pytest.raises(TypeError, match="root_freed is not a hook of SyncProbe"):
        small.attach(Listener("a", heard))


def test_every_hook_is_described_and_has_typed_arguments() -> None:
    for name in HOOKS:
        hook = getattr(Instrument, name)
        assert len(inspect.getdoc(hook) or "") > 20, name
        _, *arguments = inspect.signature(hook).parameters.values()
        assert all(argument.annotation is not argument.empty for argument in arguments), name
        assert getattr(Probe, name).__objclass__ in (Probe, SyncProbe), "a slot"


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
    hwpt.handle(hwpt.request([(2, True)]))
    device.transact(2, write=True)
    vcpu.shadow(2)
    machine.delete_slot()
    machine.add_slot(0, 8)
    hwpt.destroy()
    machine.kvm.rcu.barrier()
    return events


@pytest.mark.parametrize("republish", [False, True])
def test_a_vm_fires_each_hook_with_the_arguments_that_it_declares(
    make_machine: MakeMachine, republish: bool
) -> None:
    machine = make_machine(huge_2m=8, mmio_gen_bits=3, variants=[REPUBLISH] if republish else [])
    events = a_full_life(machine)
    for name, args in events.events:
        inspect.signature(getattr(Instrument, name)).bind(None, *args)
    others = {"exported_zapped"} if republish else {"importer_switched", "republished"}
    assert set(HOOKS) - set(events.names()) - RARE == others
