"""Zapping: leaves or whole roots, the yield contract, and zap_all_fast's order with an exported
root (reference 2.5, 2.7)."""

from __future__ import annotations

from typing import Any

import pytest

from mmu.paging.table import RootPage
from mmu.tdp.zap import Zapper
from tests.conftest import blocked, finish, reading, writing
from tests.model import REAL, Machine, Recorder
from tests.unit.conftest import MakeMachine

ALL = 64


@pytest.fixture
def zapper(machine: Machine) -> Zapper:
    """What is tested."""
    return machine.vm.zapper


def zap_leafs(
    machine: Machine,
    root: RootPage,
    start: int = 0,
    end: int = ALL,
    *,
    can_yield: bool = False,
    flush: bool = False,
) -> bool:
    """tdp_mmu_zap_leafs() under the lock it needs."""
    with writing(machine.mmu_lock):
        return machine.vm.zapper.zap_leafs(root, start, end, can_yield=can_yield, flush=flush)


def zap_all_fast(machine: Machine) -> None:
    """kvm_mmu_zap_all_fast() under the lock it needs."""
    with machine.kvm.slots_lock:
        machine.vm.zapper.zap_all_fast()


def contended(machine: Machine) -> None:
    """From now on mmu_lock always looks contended, though not for ever to a zap that does nothing
    but yield."""
    looks = iter(range(10_000))
    machine.mmu_lock.needbreak = lambda: next(looks) >= 0  # type: ignore[method-assign]


# Leaves.


def test_a_leaf_zap_removes_the_leaves_and_keeps_the_tables(
    machine: Machine, root: RootPage
) -> None:
    before = machine.tables(root)
    assert zap_leafs(machine, root)
    assert machine.leaves(root) == {}
    assert machine.tables(root) == before
    assert machine.kvm.stat.pages_4k.value == 0
    assert machine.kvm.rcu.pending() == 0, "nothing was freed"


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [
        (2, 22, {1, 63}),
        (0, 1, {1, 2, 21, 63}),
        (1, 2, {2, 21, 63}),
        (22, 10**9, {1, 2, 21}),
        (21, 21, {1, 2, 21, 63}),
    ],
)
def test_a_leaf_zap_stays_in_its_range(
    machine: Machine, root: RootPage, start: int, end: int, left: set[int]
) -> None:
    flush = zap_leafs(machine, root, start, end)
    assert set(machine.leaves(root)) == left
    assert flush == (len(left) < 4)


@pytest.mark.parametrize("owed", [True, False])
def test_a_flush_that_the_caller_owes_is_not_forgotten(
    machine: Machine, root: RootPage, owed: bool
) -> None:
    """The kernel's a835429cda91: the debt of one root is carried on to the next."""
    assert zap_leafs(machine, root, 30, 40, flush=owed) is owed


def test_a_leaf_zap_does_not_flush_by_itself(machine: Machine, root: RootPage) -> None:
    events = machine.record("flush_begin")
    zap_leafs(machine, root)
    assert events.events == []


@pytest.mark.parametrize("mode", ["unlocked", "read"])
def test_a_leaf_zap_needs_the_write_lock(
    machine: Machine, root: RootPage, zapper: Zapper, mode: str
) -> None:
    if mode == "read":
        machine.mmu_lock.read_lock()
    zapper.zap_leafs(root, 30, 40, can_yield=False, flush=False)
    if mode == "read":
        machine.mmu_lock.read_unlock()
    machine.expect("O5 assert-held-for-write")


# Yielding.


def test_a_yield_flushes_before_the_lock_is_dropped(machine: Machine, root: RootPage) -> None:
    events = machine.record(
        "spte_zapped", "flush_begin", "mmu_write_unlocking", "mmu_write_locked", "zap_yielded"
    )
    contended(machine)
    assert not zap_leafs(machine, root, end=48, can_yield=True), (
        "a yield followed the last leaf, so nothing is owed"
    )
    owed = False
    for name in events.names():
        if name == "spte_zapped":
            owed = True
        elif name == "flush_begin":
            owed = False
        elif name == "mmu_write_unlocking":
            assert not owed, "mmu_lock was dropped with a flush owed"
    assert events.names().count("zap_yielded") >= 2
    assert set(machine.leaves(root)) == {63}


def test_a_yield_with_nothing_owed_does_not_flush(machine: Machine, root: RootPage) -> None:
    zap_leafs(machine, root)
    events = machine.record("flush_begin", "zap_yielded")
    contended(machine)
    zap_leafs(machine, root, can_yield=True)
    assert set(events.names()) == {"zap_yielded"}


def test_without_leave_to_yield_the_lock_is_kept(machine: Machine, root: RootPage) -> None:
    events = machine.record("zap_yielded", "mmu_write_unlocking", "flush_begin")
    contended(machine)
    assert zap_leafs(machine, root, can_yield=False)
    assert events.names() == ["mmu_write_unlocking"]


@pytest.mark.parametrize("shared", [True, False])
def test_endless_contention_does_not_stop_progress(
    machine: Machine, root: RootPage, zapper: Zapper, shared: bool
) -> None:
    """The kernel's ed5e484b79e8: at least one step of the goal is made between two yields."""
    contended(machine)
    machine.mmu_lock.lock(shared)
    zapper.zap_root(root, shared)
    machine.mmu_lock.unlock(shared)
    assert not any(root.spt)


def test_without_contention_nobody_yields(machine: Machine, root: RootPage) -> None:
    events = machine.record("zap_yielded")
    zap_leafs(machine, root, can_yield=True)
    assert events.events == []


def test_a_waiting_reader_gets_the_lock_from_a_writer_that_may_yield(
    machine: Machine, root: RootPage, zapper: Zapper
) -> None:
    events = machine.record("zap_yielded")

    def read() -> None:
        with reading(machine.mmu_lock):
            pass

    with writing(machine.mmu_lock):
        reader = blocked(machine.runtime, read, at=lambda _: machine.mmu_lock.needbreak())
        zapper.zap_root(root, shared=False)
        assert events.names()[:1] == ["zap_yielded"]
    finish(machine.runtime, reader)
    assert not any(root.spt)


def test_a_yield_leaves_rcu_before_it_leaves_the_lock(machine: Machine, root: RootPage) -> None:
    contended(machine)
    inside: list[bool] = []
    machine.on(mmu_write_unlocking=lambda: inside.append(machine.kvm.rcu.read_held()))
    zap_leafs(machine, root, can_yield=True)
    assert len(inside) > 1
    assert not any(inside)


# Whole roots.


@pytest.mark.parametrize("shared", [True, False])
def test_zapping_a_root_removes_everything_and_does_not_flush(
    machine: Machine, root: RootPage, zapper: Zapper, shared: bool
) -> None:
    flushes = machine.record("flush_begin")
    machine.mmu_lock.lock(shared)
    zapper.zap_root(root, shared)
    machine.mmu_lock.unlock(shared)
    assert not any(root.spt)
    assert (machine.kvm.stat.pages_4k.value, machine.kvm.stat.tdp_mmu_pages.value) == (0, 0)
    assert flushes.events == []


@pytest.mark.parametrize("shared", [True, False])
def test_no_single_removal_is_larger_than_a_gigabyte(
    make_machine: MakeMachine, shared: bool
) -> None:
    """Two passes: first what is below 1 GiB, then the rest, so that no recursion is long."""
    machine = make_machine(REAL)
    root = machine.root()
    gigabyte = REAL.pages(3)
    machine.plant(root, 0, gigabyte, 600 * gigabyte, pfn=1)
    cleared: list[tuple[int, int]] = []
    machine.on(
        spte_zapped=lambda sp, gfn, level, old, new, shared: (
            cleared.append((level, gfn)) if new == 0 else None
        )
    )
    machine.mmu_lock.lock(shared)
    machine.vm.zapper.zap_root(root, shared)
    machine.mmu_lock.unlock(shared)
    assert cleared == [(3, 0), (3, gigabyte), (3, 600 * gigabyte), (4, 0), (4, 512 * gigabyte)]


@pytest.mark.parametrize("shared", [True, False])
def test_zapping_a_root_needs_the_lock_in_the_stated_mode(
    machine: Machine, zapper: Zapper, shared: bool
) -> None:
    root = machine.root()
    machine.mmu_lock.lock(not shared)
    zapper.zap_root(root, shared)
    machine.mmu_lock.unlock(not shared)
    machine.expect("O5 assert-held-for-read" if shared else "O5 assert-held-for-write")


def test_zapping_a_root_that_nobody_holds_is_reported(machine: Machine, zapper: Zapper) -> None:
    root = machine.root()
    root.refcount.put()
    with writing(machine.mmu_lock):
        zapper.zap_root(root, shared=False)
    machine.expect("O4 zap-of-dead-root")
    machine.abandon()


def test_zap_all_empties_invalid_roots_too(machine: Machine, root: RootPage) -> None:
    smm = machine.root(as_id=1)
    machine.plant(smm, 7)
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate(root)
    machine.vm.zapper.zap_all()
    assert not any(root.spt)
    assert not any(smm.spt)
    assert machine.vm.roots.snapshot() == [smm, root], "the references are not zap_all's to drop"


# zap_all_fast.


def test_zap_all_fast_needs_slots_lock(machine: Machine, zapper: Zapper) -> None:
    zapper.zap_all_fast()
    machine.expect("O5 assert-held")


def in_order(events: Recorder, *hooks: str) -> list[str]:
    """The recorded events, each run of equal ones as one, restricted to `hooks`."""
    short: list[str] = []
    for name in events.names():
        if name in hooks and short[-1:] != [name]:
            short.append(name)
    return short


def test_zap_all_fast_has_its_exact_order(machine: Machine) -> None:
    """Invalidate, kick, zap and flush what is exported, unlock - and only then zap what was
    invalidated."""
    machine.add_slot(0, 8)
    vcpu, fd = machine.vcpu(), machine.export()
    exported = fd.metadata().root
    other = machine.root(as_id=1)
    device, _ = machine.attach(fd)
    machine.fault(vcpu, 1)
    machine.plant(other, 40)
    events = machine.record()
    zap_all_fast(machine)
    expected = [
        "mmu_write_locked",
        "zap_all_fast",
        "root_invalidated",
        "roots_kicked",
        "spte_zapped",
        "flush_begin",
        "importer_called",
        "importers_notified",
        "flush_end",
        "exported_zapped",
        "mmu_write_unlocking",
        "spte_zapped",
        "prepare_zap_page",
        "spte_zapped",
        "prepare_zap_page",
        "spte_zapped",
        "root_zapped",
        "root_freed",
    ]
    assert in_order(events, *expected) == expected
    assert events.args("root_invalidated") == [(other,)]
    assert events.args("roots_kicked") == [([other],)]
    assert events.args("exported_zapped") == [(exported, 1)]
    assert [args[0] for args in events.args("flush_begin")] == ["exported-zap"]
    assert events.args("root_zapped") == events.args("root_freed") == [(other,)]
    assert device.root.value is exported
    points = [args[0] for args in events.args("point")]
    assert [name for name in points if name in ("P8", "P9", "P10")] == ["P8", "P9", "P10"]


def test_the_exported_root_stays_valid_and_keeps_its_tables(machine: Machine) -> None:
    fd = machine.export()
    exported, other = fd.metadata().root, machine.root(as_id=1)
    machine.plant(exported, 1, 21)
    machine.plant(other, 1, 21)
    tables = machine.tables(exported)
    events = machine.record("root_invalidated")
    zap_all_fast(machine)
    assert events.args("root_invalidated") == [(other,)]
    assert not exported.invalid.value
    assert machine.leaves(exported) == {}
    assert machine.tables(exported) == tables
    assert machine.vm.roots.snapshot() == [exported]


def test_an_exported_root_without_leaves_costs_no_flush(machine: Machine) -> None:
    machine.export()
    events = machine.record("flush_begin", "exported_zapped")
    zap_all_fast(machine)
    assert [(name, args[1:]) for name, args in events.events] == [("exported_zapped", (0,))]


def test_every_exported_leaf_is_flushed_before_the_lock_is_released(machine: Machine) -> None:
    machine.plant(machine.export().metadata().root, 1, 2, 3)
    events = machine.record("spte_zapped", "flush_end", "mmu_write_unlocking")
    zap_all_fast(machine)
    assert events.names() == ["spte_zapped"] * 3 + ["flush_end", "mmu_write_unlocking"]


def test_the_exported_zap_does_not_yield(machine: Machine) -> None:
    machine.plant(machine.export().metadata().root, 1, 21, 63)
    events = machine.record("zap_yielded")
    contended(machine)
    zap_all_fast(machine)
    assert events.events == []


@pytest.mark.parametrize("mode", ["unlocked", "read"])
def test_the_exported_zap_needs_the_write_lock(machine: Machine, zapper: Zapper, mode: str) -> None:
    if mode == "read":
        machine.mmu_lock.read_lock()
    zapper.zap_exported_roots()
    if mode == "read":
        machine.mmu_lock.read_unlock()
    machine.expect("O5 assert-held-for-write")


def test_the_exported_zap_is_one_rcu_section(machine: Machine) -> None:
    root = machine.export().metadata().root
    machine.plant(root, 1)
    held: list[bool] = []

    def note(*_: Any) -> None:
        held.append(machine.kvm.rcu.read_held())

    machine.on(spte_zapped=note, flush_begin=note, exported_zapped=note)
    zap_all_fast(machine)
    assert held == [True, True, True]


def test_a_kernel_without_the_feature_has_nothing_to_export(make_machine: MakeMachine) -> None:
    machine = make_machine(have_exported_tdp=False)
    root = machine.root()
    machine.plant(root, 1)
    events = machine.record("exported_zapped", "root_zapped")
    zap_all_fast(machine)
    assert events.names() == ["root_zapped"]


def test_the_shadow_generation_flips(machine: Machine) -> None:
    events = machine.record("zap_all_fast")
    zap_all_fast(machine)
    zap_all_fast(machine)
    assert events.args("zap_all_fast") == [(0,), (1,)], "the event carries the old value"


# Scheduled roots.


def test_the_tdp_mmus_own_reference_goes_after_the_zap(machine: Machine) -> None:
    """While it is being zapped a root must stay on the list, where a notifier would look for it."""
    vcpu = machine.vcpu()
    root = vcpu.root
    assert root is not None
    machine.plant(root, 1)
    at_the_end: list[tuple[int, bool, bool]] = []
    machine.on(
        root_zapped=lambda zapped: at_the_end.append(
            (zapped.refcount.read(), any(zapped.spt), zapped.scheduled.value)
        )
    )
    zap_all_fast(machine)
    assert at_the_end == [(3, False, False)], "the vCPU's, the TDP MMU's and the iteration's"
    assert root.refcount.read() == 1


def test_a_zapped_root_lives_until_its_last_vcpu_lets_go(machine: Machine) -> None:
    vcpu, root = machine.vcpu(), machine.root()
    freed = machine.record("root_freed")
    zap_all_fast(machine)
    assert (root.invalid.value, root.zapped.value, freed.events) == (True, True, [])
    assert machine.vm.roots.snapshot() == [root]
    vcpu.service_requests()
    assert freed.args("root_freed") == [(root,)]
    assert vcpu.root is machine.root()
    assert vcpu.root is not root


def test_a_zapped_root_is_not_zapped_again(machine: Machine) -> None:
    machine.vcpu()
    zapped = machine.record("root_zapped")
    zap_all_fast(machine)
    zap_all_fast(machine)
    assert len(zapped.events) == 1


def test_a_valid_root_must_not_be_scheduled(machine: Machine, root: RootPage) -> None:
    machine.vcpu()
    root.scheduled.value = True
    machine.vm.zapper.zap_invalidated_roots()
    machine.expect("O12 scheduled-but-valid")
    machine.abandon()


def test_invalidated_roots_are_zapped_under_the_read_lock(machine: Machine, root: RootPage) -> None:
    """Another reader may hold the lock all the while."""
    machine.fault(machine.vcpu(), 1)
    modes: list[bool] = []
    machine.on(prepare_zap_page=lambda sp, shared: modes.append(shared))
    zap_all_fast(machine)
    assert modes
    assert all(modes)


# Whole roots that are in use.


def contended_zap_all(machine: Machine) -> Recorder:
    """kvm_mmu_zap_all() while others want the lock."""
    events = machine.record("prepare_zap_page", "flush_begin", "zap_yielded", "mmu_write_unlocking")
    contended(machine)
    machine.vm.zapper.zap_all()
    return events


def test_zapping_everything_removes_tables_of_every_root(machine: Machine, root: RootPage) -> None:
    other = machine.root(as_id=1)
    machine.plant(other, 5)
    with writing(machine.mmu_lock):
        machine.vm.roots.invalidate(other)
    machine.vm.zapper.zap_all()
    assert [machine.leaves(each) for each in (root, other)] == [{}, {}]
    assert machine.kvm.stat.tdp_mmu_pages.value == 0


def test_a_root_that_no_device_walks_is_zapped_without_a_flush(
    machine: Machine, root: RootPage
) -> None:
    assert "flush_begin" not in contended_zap_all(machine).names()


def test_a_root_that_a_device_walks_is_flushed_before_every_yield(machine: Machine) -> None:
    """Defect R12: that no vCPU can run does not stop a device."""
    root = machine.export().metadata().root
    machine.plant(root, 1, 21, 63)
    names = contended_zap_all(machine).names()
    assert names.count("zap_yielded") >= 2
    owed = False
    for name in names:
        owed = name == "prepare_zap_page" or (owed and name != "flush_begin")
        assert not (owed and name in ("zap_yielded", "mmu_write_unlocking")), names
