"""Yielding: what is owed is paid first, locks are dropped from the inside out, and a walk always
gets somewhere in between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mmu.paging.table import RootPage
from mmu.sync.lockdep import READ, WRITE
from mmu.tdp.iter import TdpIter
from mmu.tdp.yielding import Yielding
from tests.conftest import blocked, eventually, finish, rcu_section, writing
from tests.model import Machine


@pytest.fixture
def yielding(machine: Machine) -> Yielding:
    """What is tested."""
    return machine.vm.yielding


@pytest.fixture
def root(machine: Machine) -> RootPage:
    """A root with leaves at gfns 1, 2 and 21."""
    root = machine.root()
    machine.plant(root, 1, 2, 21)
    return root


def contended(machine: Machine) -> None:
    """From now on mmu_lock looks contended, though not for ever to a walk that does nothing but
    yield."""
    looks = iter(range(200))
    machine.mmu_lock.needbreak = lambda: next(looks, -1) >= 0  # type: ignore[method-assign]


@pytest.fixture(params=[True, False], ids=["shared", "exclusive"])
def shared(request: pytest.FixtureRequest, machine: Machine) -> Iterator[bool]:
    """mmu_lock is held in this mode, and an RCU section is open, for the whole test."""
    mode: bool = request.param
    machine.mmu_lock.lock(mode)
    machine.kvm.rcu.read_lock()
    yield mode
    machine.kvm.rcu.read_unlock()
    machine.mmu_lock.unlock(mode)


def moved(machine: Machine, root: RootPage) -> TdpIter:
    """A walk that has got somewhere: it may yield."""
    it = TdpIter(machine.kvm, root, 1, 0, 64)
    while it.gfn < 2:
        it.next()
    return it


def test_without_contention_nobody_yields(
    machine: Machine, root: RootPage, yielding: Yielding
) -> None:
    events = machine.record("point", "zap_yielded", "flush_begin")
    with machine.zapping():
        it = moved(machine, root)
        assert not yielding.iter_cond_resched(it, True, False)
        assert not it.yielded
    assert events.events == []


@pytest.mark.parametrize("owed", [True, False])
def test_what_is_owed_is_flushed_before_anything_is_dropped(
    machine: Machine, root: RootPage, yielding: Yielding, owed: bool
) -> None:
    held: list[tuple[str, int, bool]] = []

    def note(what: str) -> None:
        held.append((what, machine.mmu_lock.held_mode(), machine.kvm.rcu.read_held()))

    contended(machine)
    machine.on(
        flush_begin=lambda reason, *_: note(reason),
        point=lambda name: note(name) if name == "P7" else None,
    )
    with machine.zapping():
        assert yielding.iter_cond_resched(moved(machine, root), owed, False)
    assert held == [("yield", WRITE, True)] * owed + [("P7", WRITE, False)], "RCU is left first"


def test_a_yield_lets_a_waiting_writer_in_and_takes_the_lock_again_in_its_mode(
    machine: Machine, root: RootPage, yielding: Yielding
) -> None:
    written: list[bool] = []

    def write() -> None:
        with writing(machine.mmu_lock):
            written.append(True)

    def yield_once() -> bool:
        """The writer may need more than one chance: it only says that it is about to wait."""
        yielding.iter_cond_resched(moved(machine, root), False, True)
        return bool(written)

    machine.mmu_lock.read_lock()
    machine.kvm.rcu.read_lock()
    writer = blocked(machine.runtime, write, lambda task: "mmu_lock" in task.waiting_for)
    eventually(yield_once, "the writer to get the lock")
    assert (machine.mmu_lock.held_mode(), machine.kvm.rcu.read_held()) == (READ, True)
    machine.kvm.rcu.read_unlock()
    machine.mmu_lock.read_unlock()
    finish(machine.runtime, writer)


def test_after_a_yield_the_walk_goes_on_at_its_goal(
    machine: Machine, root: RootPage, yielding: Yielding, shared: bool
) -> None:
    contended(machine)
    it = moved(machine, root)
    goal = it.next_last_level_gfn
    assert yielding.iter_cond_resched(it, False, shared)
    assert it.yielded
    it.next()
    assert (it.yielded, it.next_last_level_gfn, it.level, it.gfn) == (False, goal, 3, 0)


def test_a_walk_that_got_nowhere_since_its_last_yield_does_not_yield(
    machine: Machine, root: RootPage, yielding: Yielding, shared: bool
) -> None:
    """B07: two walks could otherwise hand the lock to each other for ever."""
    contended(machine)
    it = TdpIter(machine.kvm, root, 1, 0, 64)
    assert yielding.must_advance(it)
    assert not yielding.iter_cond_resched(it, False, shared)
    it = moved(machine, root)
    assert not yielding.must_advance(it)
    assert yielding.iter_cond_resched(it, False, shared)
    it.next()
    assert not yielding.iter_cond_resched(it, False, shared), (
        "it stands at its goal again, but has not visited it yet"
    )


def test_asking_a_walk_that_has_yielded_is_reported(
    machine: Machine, root: RootPage, yielding: Yielding, shared: bool
) -> None:
    it = moved(machine, root)
    it.yielded = True
    yielding.iter_cond_resched(it, False, shared)
    machine.expect("O15 bad-yield")


def test_a_walk_behind_its_goal_is_reported(
    machine: Machine, root: RootPage, yielding: Yielding, shared: bool
) -> None:
    it = moved(machine, root)
    it.next_last_level_gfn = it.gfn - 1
    yielding.iter_cond_resched(it, False, shared)
    machine.expect("O15 bad-yield")


def test_each_section_is_told_with_the_steps_it_took(
    machine: Machine, root: RootPage, yielding: Yielding, shared: bool
) -> None:
    sections = machine.record("walk_section")
    contended(machine)
    it = moved(machine, root)
    steps = it.steps
    assert steps > 0
    yielding.iter_cond_resched(it, False, shared)
    it.next()
    it.next()
    yielding.section_end(it, can_yield=True)
    (first, first_ns, _), (second, second_ns, _) = sections.args("walk_section")
    assert (first, second) == (steps, 2)
    assert min(first_ns, second_ns) >= 0


def test_allocating_drops_everything_and_comes_back_as_after_a_yield(
    machine: Machine, root: RootPage, yielding: Yielding, shared: bool
) -> None:
    """tdp_mmu_alloc_sp_for_split(): it may sleep, so nothing may be held."""
    held: list[tuple[int, bool]] = []
    plain = machine.kvm.tables.allocate

    def allocate() -> object:
        held.append((machine.mmu_lock.held_mode(), machine.kvm.rcu.read_held()))
        return plain()

    machine.kvm.tables.allocate = allocate  # type: ignore[method-assign, assignment]
    it = moved(machine, root)
    page = yielding.allocate_unlocked(it, shared)
    assert held == [(0, False)]
    assert (machine.mmu_lock.held_mode(), machine.kvm.rcu.read_held(), it.yielded) == (
        READ if shared else WRITE,
        True,
        True,
    )
    assert list(page.spt) == [0] * 4
    machine.kvm.tables.discard(page)
    machine.expect()


def test_allocating_inside_another_section_is_reported(
    machine: Machine, root: RootPage, yielding: Yielding
) -> None:
    with rcu_section(machine.kvm.rcu), machine.zapping():
        page = yielding.allocate_unlocked(moved(machine, root), False)
    machine.kvm.tables.discard(page)
    machine.expect("O3 sleep-in-rcu")
