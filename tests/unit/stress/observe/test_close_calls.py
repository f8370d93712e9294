"""Close calls: each is counted when it was close, and only then. Time is what the test says it
is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmu.memory.memslots import Change
from mmu.memory.requests import IN_GUEST_MODE, OUTSIDE_GUEST_MODE
from mmu.memory.tlb import WHOLE
from mmu.runtime import Runtime
from stress.observe.close_calls import CLOSE_CALLS, CloseCalls
from stress.observe.counts import Counts
from stress.scenario.counters import COUNTERS
from tests.conftest import blocked, elsewhere, finish, rcu_section, reading, srcu_section, writing
from tests.model import Machine, w

NEAR = 100


class Clock(Runtime):
    """A runtime whose time stands still until it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1_000

    def now(self) -> int:
        return self.time


class Scene:
    """Close calls over a real machine, at a time that the test sets."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.clock = Clock()
        self.counts = Counts(self.clock)
        self.calls = CloseCalls(self.clock, machine.vm, self.counts, NEAR)

    def changed(self) -> dict[str, int]:
        return {name: value for name, value in self.counts.values().items() if value}


@pytest.fixture
def scene(machine: Machine) -> Scene:
    return Scene(machine)


def test_every_close_call_has_a_counter_and_a_meaning() -> None:
    assert set(CLOSE_CALLS) <= set(COUNTERS)
    assert all(CLOSE_CALLS.values())


# Devices.


@pytest.fixture
def attached(scene: Scene) -> Any:
    """A device on the exported root."""
    scene.machine.add_slot(0, 4)
    return scene.machine.attach(scene.machine.export())


def test_a_flush_that_finds_a_device_in_the_middle_of_an_access(
    scene: Scene, attached: Any
) -> None:
    device, _ = attached
    scene.calls.dma_begin(device, 1)
    scene.calls.flush_begin("exported-zap", 0, WHOLE)
    scene.calls.flush_begin("notifier", 0, WHOLE)
    scene.calls.dma_end(device)
    scene.calls.flush_begin("exported-zap", 0, WHOLE)
    assert scene.changed() == {"flushes_mid_dma": 2, "exported_zaps_mid_walk": 1}


def test_a_device_without_a_root_reaches_nothing(scene: Scene, attached: Any) -> None:
    device, hwpt = attached
    scene.calls.dma_begin(device, 1)
    hwpt.revoke()
    scene.calls.flush_begin("exported-zap", 0, WHOLE)
    assert scene.changed() == {}


@pytest.mark.parametrize(
    ("gfn", "pages", "later", "close"),
    [
        (0, WHOLE, NEAR, True),
        (0, WHOLE, NEAR + 1, False),
        (1, 1, 0, True),
        (0, 1, 0, False),
        (2, 2, 0, False),
        (0, 2, 0, True),
    ],
)
def test_a_translation_that_was_used_right_before_its_invalidation(
    scene: Scene, attached: Any, gfn: int, pages: int, later: int, close: bool
) -> None:
    device, hwpt = attached
    scene.calls.dma_begin(device, 1)
    scene.calls.dma_end(device)
    scene.clock.time += later
    scene.calls.importer_called(hwpt, gfn, pages)
    assert scene.changed() == ({"uses_before_flush": 1} if close else {})


def test_a_translation_in_use_is_close_however_long_the_access_takes(
    scene: Scene, attached: Any
) -> None:
    device, hwpt = attached
    scene.calls.dma_begin(device, 1)
    scene.clock.time += 10 * NEAR
    scene.calls.importer_called(hwpt, 0, WHOLE)
    scene.calls.importer_called(object(), 0, WHOLE)
    assert scene.changed() == {"uses_before_flush": 1}


def test_the_model_tells_of_every_transaction(machine: Machine) -> None:
    machine.add_slot(0, 4)
    device, hwpt = machine.attach(machine.export())
    events = machine.record("dma_begin", "dma_end")
    hwpt.io_fault(1, True)
    assert device.transact(1, True) is not None
    assert device.transact(9, False) is None
    assert events.names() == ["dma_begin", "dma_end"] * 2
    assert [args[1] for args in events.args("dma_begin")] == [1, 9]


# vCPUs.


@pytest.mark.parametrize(
    ("mode", "cached", "close"),
    [
        (IN_GUEST_MODE, {1: 5}, True),
        (IN_GUEST_MODE, {}, False),
        (OUTSIDE_GUEST_MODE, {1: 5}, False),
    ],
)
def test_a_flush_that_finds_a_vcpu_in_the_guest(
    scene: Scene, mode: int, cached: dict[int, int], close: bool
) -> None:
    vcpu = scene.machine.vcpu()
    vcpu.tlb.entries.update(cached)
    vcpu.state.mode.store(mode)
    scene.calls.flush_begin("notifier", 0, WHOLE)
    vcpu.state.mode.store(OUTSIDE_GUEST_MODE)
    assert scene.changed() == ({"flushes_in_guest": 1} if close else {})


# Importers.


@pytest.mark.parametrize(
    ("change", "later", "close"),
    [
        (Change.DELETE, NEAR, True),
        (Change.MOVE, 1, True),
        (Change.DELETE, NEAR + 1, False),
        (Change.CREATE, 0, False),
    ],
)
def test_an_importer_that_is_told_at_the_end_of_a_memslot_call(
    scene: Scene, change: Change, later: int, close: bool
) -> None:
    scene.calls.memslot_begin(change, None)
    scene.calls.importers_notified(None, 0, WHOLE, 1)
    scene.clock.time += later
    scene.calls.memslot_end(change, None, {})
    assert scene.changed() == ({"notified_last": 1} if close else {})


def test_what_was_told_before_the_call_does_not_count(scene: Scene) -> None:
    scene.calls.importers_notified(None, 0, WHOLE, 1)
    scene.calls.memslot_begin(Change.DELETE, None)
    scene.calls.memslot_end(Change.DELETE, None, {})
    assert scene.changed() == {}


def test_the_same_at_the_start_of_a_range_once(scene: Scene) -> None:
    scene.calls.importers_notified(None, 0, WHOLE, 1)
    scene.calls.range_started(None, 0, 1, 5)
    scene.calls.range_started(None, 0, 1, 5)
    assert scene.changed() == {"notified_last": 1}


def test_another_thread_told_somebody_else(scene: Scene) -> None:
    scene.calls.importers_notified(None, 0, WHOLE, 1)
    finish(
        scene.clock, scene.clock.spawn("host0", lambda: scene.calls.range_started(None, 0, 1, 5))
    )
    assert scene.changed() == {}


# RCU.


@pytest.mark.parametrize(("later", "freed"), [(NEAR, 3), (NEAR + 1, 0)])
def test_pages_that_are_freed_right_after_a_reader_has_left(
    scene: Scene, later: int, freed: int
) -> None:
    scene.calls.grace_period_waited("rcu")
    scene.clock.time += later
    scene.calls.grace_period(5, 3)
    scene.calls.grace_period(5, 4)
    assert scene.changed() == {
        "rcu_waits_with_reader": 1,
        **({"frees_after_reader": freed} if freed else {}),
    }


def test_a_wait_for_srcu_is_told_apart(scene: Scene) -> None:
    scene.calls.grace_period_waited("kvm->srcu")
    scene.calls.grace_period(5, 3)
    assert scene.changed() == {"srcu_waits_with_reader": 1}


# Roots.


@pytest.mark.parametrize(
    ("zapped", "count", "alive", "counter"),
    [
        (True, 2, True, "roots_pinned_last"),
        (True, 3, True, ""),
        (False, 2, True, ""),
        (True, 0, False, "dying_roots_met"),
    ],
)
def test_a_root_that_is_nearly_gone(
    scene: Scene, zapped: bool, count: int, alive: bool, counter: str
) -> None:
    root: Any = SimpleNamespace(
        zapped=SimpleNamespace(value=zapped), refcount=SimpleNamespace(read=lambda: count)
    )
    scene.calls.root_pinned(root, alive)
    assert scene.changed() == ({counter: 1} if counter else {})


def test_the_model_tells_of_every_root_that_is_pinned(machine: Machine) -> None:
    root = machine.root()
    events = machine.record("root_pinned")
    assert machine.vm.roots.get_root(root)
    assert events.args("root_pinned") == [(root, True)]
    with writing(machine.mmu_lock):
        machine.vm.roots.put_root(root, shared=False)


# What the model tells of lost races.


def test_a_lost_compare_exchange_is_told_and_counted(machine: Machine) -> None:
    machine.add_slot(0, 4)
    machine.run(machine.vcpu(), w(0), w(1))
    events = machine.record("cmpxchg_lost")
    counts = Counts(machine.runtime)
    machine.probe.attach(counts)
    sp, index = machine.entry(machine.root(), 2)
    with reading(machine.mmu_lock):
        assert not machine.vm.writer.set_spte_atomic(sp, index, 2, 12345, 0)
    assert events.args("cmpxchg_lost") == [(2,)]
    assert counts.values()["cmpxchgs_lost"] == 1


def test_a_grace_period_tells_of_the_reader_that_it_waited_for(machine: Machine) -> None:
    events = machine.record("grace_period_waited")
    rcu, srcu = machine.kvm.rcu, machine.kvm.srcu
    rcu.synchronize()
    assert events.events == []
    for domain, section in ((rcu, rcu_section(rcu)), (srcu, srcu_section(srcu))):
        with elsewhere(machine.runtime, section):
            waiter = blocked(machine.runtime, domain.synchronize)
        finish(machine.runtime, waiter)
    assert events.args("grace_period_waited") == [("rcu",), ("kvm->srcu",)]
