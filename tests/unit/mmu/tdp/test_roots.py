"""Roots: found or made, counted exactly, invalid for ever once invalid, and never lost or freed by
an iteration."""

from __future__ import annotations

import pytest

from mmu.paging.table import RootPage, RootRole
from mmu.sync.poison import is_poisoned
from mmu.tdp.roots import Roots
from tests.conftest import elsewhere, rcu_section, reading, writing
from tests.model import Machine


@pytest.fixture
def roots(machine: Machine) -> Roots:
    """What is tested."""
    return machine.vm.roots


def get(machine: Machine, as_id: int = 0, guest_mode: bool = False) -> RootPage:
    """A root with a reference for the caller."""
    with writing(machine.mmu_lock):
        return machine.vm.roots.get_vcpu_root(RootRole(as_id, guest_mode))


def put(machine: Machine, *roots: RootPage) -> None:
    """Drop one reference each."""
    with writing(machine.mmu_lock):
        for root in roots:
            machine.vm.roots.put_root(root, shared=False)


def invalidate(machine: Machine) -> list[RootPage]:
    """Invalidate what may be."""
    with writing(machine.mmu_lock):
        return machine.vm.roots.invalidate_all_roots()


# Look-up.


def test_a_root_is_made_once_and_then_found(machine: Machine, roots: Roots) -> None:
    allocated = machine.record("root_allocated")
    first = get(machine)
    assert first.refcount.read() == 2, "the caller's and the TDP MMU's own"
    assert get(machine) is first
    assert first.refcount.read() == 3
    assert allocated.args("root_allocated") == [(first,)]
    assert roots.snapshot() == [first]
    put(machine, first, first)


def test_each_role_has_a_root_of_its_own(machine: Machine, roots: Roots) -> None:
    different = [
        get(machine),
        get(machine, as_id=1),
        get(machine, guest_mode=True),
        get(machine, as_id=1, guest_mode=True),
    ]
    assert len(set(map(id, different))) == 4
    assert roots.snapshot() == different[::-1], "the newest is the head of the list"
    put(machine, *different)


def test_an_invalid_root_never_matches_a_look_up(machine: Machine) -> None:
    old = get(machine)
    invalidate(machine)
    new = get(machine)
    assert new is not old
    assert not new.invalid.value
    assert get(machine) is new
    put(machine, old, new, new)


def test_a_dying_root_never_matches_a_look_up(machine: Machine, roots: Roots) -> None:
    dying = get(machine)
    dying.refcount.put()
    dying.refcount.put()
    assert not roots.get_root(dying)
    assert get(machine) is not dying
    machine.expect()
    machine.abandon()


@pytest.mark.parametrize("mode", ["unlocked", "read"])
def test_a_root_is_looked_up_under_the_write_lock(
    machine: Machine, roots: Roots, mode: str
) -> None:
    if mode == "read":
        with reading(machine.mmu_lock):
            root = roots.get_vcpu_root(RootRole(0))
    else:
        root = roots.get_vcpu_root(RootRole(0))
    machine.expect("O5 assert-held-for-write")
    put(machine, root)


# The last reference.


@pytest.mark.parametrize("shared", [True, False])
def test_a_put_in_the_other_mode_is_reported(machine: Machine, roots: Roots, shared: bool) -> None:
    root = get(machine)
    machine.mmu_lock.lock(not shared)
    roots.put_root(root, shared)
    machine.mmu_lock.unlock(not shared)
    machine.expect("O5 assert-held-for-read" if shared else "O5 assert-held-for-write")


def test_the_last_put_on_a_valid_root_is_reported(machine: Machine) -> None:
    root = get(machine)
    put(machine, root, root)
    machine.expect("O4 last-put")
    (report,) = machine.reporter.reports
    assert "it is still valid" in report.headline


def test_the_last_put_on_an_exported_root_is_reported(machine: Machine) -> None:
    root = get(machine)
    invalidate(machine)
    root.exported.value = True
    put(machine, root, root)
    machine.expect("O4 last-put")
    (report,) = machine.reporter.reports
    assert "it is still exported" in report.headline


def test_the_last_put_on_a_root_that_still_maps_something_is_reported(machine: Machine) -> None:
    root = get(machine)
    machine.plant(root, 3)
    invalidate(machine)
    put(machine, root, root)
    machine.expect("O4 last-put")
    (report,) = machine.reporter.reports
    assert "1 of its entries is still present" in report.headline
    machine.abandon()


def test_the_last_put_on_an_invalid_empty_root_frees_it_after_a_grace_period(
    machine: Machine, roots: Roots
) -> None:
    freed = machine.record("root_freed")
    root = get(machine)
    invalidate(machine)
    put(machine, root)
    assert freed.events == []
    with elsewhere(machine.runtime, rcu_section(machine.kvm.rcu)):
        put(machine, root)
        assert freed.args("root_freed") == [(root,)]
        assert roots.empty()
        assert not is_poisoned(root)
    machine.kvm.rcu.barrier()
    assert is_poisoned(root)
    machine.expect()


def test_one_put_too_many_is_reported(machine: Machine) -> None:
    root = get(machine)
    invalidate(machine)
    with rcu_section(machine.kvm.rcu):
        put(machine, root, root, root)
    machine.expect("O4 refcount-underflow")


def test_a_root_leaves_the_list_once(machine: Machine, roots: Roots) -> None:
    root = get(machine)
    invalidate(machine)
    with rcu_section(machine.kvm.rcu):
        put(machine, root, root)
        with writing(machine.mmu_lock):
            roots._unlink(root)
    machine.expect("O4 root-not-linked")


def test_the_list_survives_a_removal_from_its_middle(machine: Machine, roots: Roots) -> None:
    oldest, middle, newest = get(machine), get(machine, as_id=1), get(machine, guest_mode=True)
    with writing(machine.mmu_lock):
        roots.invalidate(middle)
    put(machine, middle, middle)
    assert roots.snapshot() == [newest, oldest]
    put(machine, oldest, newest)


def test_a_reader_that_stands_on_a_removed_root_can_go_on(machine: Machine, roots: Roots) -> None:
    oldest, removed = get(machine), get(machine, as_id=1)
    with writing(machine.mmu_lock):
        roots.invalidate(removed)
    with rcu_section(machine.kvm.rcu):
        walk = roots.each_rcu()
        assert next(walk) is removed
        put(machine, removed, removed)
        assert next(walk) is oldest
        assert next(walk, None) is None
    machine.expect()
    put(machine, oldest)


# Iteration that may yield.


def test_the_current_root_and_only_it_is_pinned(machine: Machine, roots: Roots) -> None:
    first, second = get(machine), get(machine, as_id=1)
    with reading(machine.mmu_lock):
        counts = [
            (root, second.refcount.read(), first.refcount.read())
            for root in roots.each_yield_safe(shared=True)
        ]
    assert counts == [(second, 3, 2), (first, 2, 3)]
    assert (first.refcount.read(), second.refcount.read()) == (2, 2)
    put(machine, first, second)


def test_the_next_root_is_pinned_before_the_previous_one_is_put(
    machine: Machine, roots: Roots
) -> None:
    first, second = get(machine), get(machine, as_id=1)
    at_the_step: list[tuple[int, int]] = []
    with reading(machine.mmu_lock):
        walk = roots.each_yield_safe(shared=True)
        assert next(walk) is second
        machine.at(
            "P11", lambda: at_the_step.append((second.refcount.read(), first.refcount.read()))
        )
        assert next(walk) is first
        assert next(walk, None) is None
    assert at_the_step == [(3, 3)]
    put(machine, first, second)


def test_a_root_whose_last_other_reference_goes_meanwhile_is_freed_by_the_iteration(
    machine: Machine, roots: Roots
) -> None:
    """The kernel's a889ea54b3da: a raw decrement here would leak the root."""
    freed = machine.record("root_freed")
    root = get(machine)
    invalidate(machine)
    machine.mmu_lock.write_lock()
    for pinned in roots.each_yield_safe(shared=False):
        assert pinned is root
        machine.mmu_lock.write_unlock()
        put(machine, root, root)
        machine.mmu_lock.write_lock()
        assert freed.events == []
    machine.mmu_lock.write_unlock()
    assert freed.args("root_freed") == [(root,)]
    assert roots.empty()
    machine.expect()


def test_who_leaves_the_loop_early_owns_a_reference(machine: Machine, roots: Roots) -> None:
    root = get(machine)
    with reading(machine.mmu_lock):
        pinned = next(roots.each_yield_safe(shared=True))
        assert root.refcount.read() == 3
        roots.put_root(pinned, shared=True)
    put(machine, root)
    machine.expect()


def test_dying_roots_are_passed_by(machine: Machine, roots: Roots) -> None:
    alive, dying = get(machine), get(machine, as_id=1)
    dying.refcount.put()
    dying.refcount.put()
    with reading(machine.mmu_lock):
        assert list(roots.each_yield_safe(shared=True)) == [alive]
    machine.expect()
    machine.abandon()


def test_invalid_roots_are_passed_by_when_only_valid_ones_are_wanted(
    machine: Machine, roots: Roots
) -> None:
    old = get(machine)
    invalidate(machine)
    new = get(machine)
    with reading(machine.mmu_lock):
        assert list(roots.each_yield_safe(shared=True, only_valid=True)) == [new]
        assert list(roots.each_yield_safe(shared=True)) == [new, old]
    put(machine, old, new)


def test_one_address_space_can_be_asked_for(machine: Machine, roots: Roots) -> None:
    normal, smm = get(machine), get(machine, as_id=1)
    with reading(machine.mmu_lock):
        assert list(roots.each_yield_safe(shared=True, as_id=0)) == [normal]
        assert list(roots.each_yield_safe(shared=True, as_id=1)) == [smm]
    assert (normal.refcount.read(), smm.refcount.read()) == (2, 2)
    put(machine, normal, smm)


@pytest.mark.parametrize("shared", [True, False])
def test_every_step_asserts_the_mode(machine: Machine, roots: Roots, shared: bool) -> None:
    root = get(machine)
    machine.mmu_lock.lock(shared)
    walk = roots.each_yield_safe(shared)
    next(walk)
    machine.mmu_lock.unlock(shared)
    machine.expect()
    next(walk, None)
    machine.expect("O5 assert-held-for-read" if shared else "O5 assert-held-for-write")
    put(machine, root)


# Iteration that may not.


def test_the_plain_walk_needs_the_write_lock_at_every_step(machine: Machine, roots: Roots) -> None:
    both = [get(machine), get(machine, as_id=1)]
    with writing(machine.mmu_lock):
        walk = roots.each()
        next(walk)
    machine.expect()
    next(walk)
    machine.expect("O5 assert-held-for-write")
    put(machine, *both)


def test_the_rcu_walk_needs_its_section_at_every_step(machine: Machine, roots: Roots) -> None:
    both = [get(machine), get(machine, as_id=1)]
    with rcu_section(machine.kvm.rcu):
        walk = roots.each_rcu()
        next(walk)
    machine.expect()
    next(walk)
    machine.expect("O3 suspicious-rcu-usage")
    put(machine, *both)


# Invalidation.


def test_invalidation_marks_every_valid_root_once(machine: Machine) -> None:
    events = machine.record("root_invalidated")
    both = [get(machine), get(machine, as_id=1)]
    assert invalidate(machine) == both[::-1]
    assert all(
        root.invalid.value and root.scheduled.value and not root.zapped.value for root in both
    )
    assert invalidate(machine) == []
    assert events.args("root_invalidated") == [(root,) for root in both[::-1]]
    put(machine, *both)


def test_invalidation_spares_an_exported_root(machine: Machine) -> None:
    fd = machine.export()
    exported, other = fd.metadata().root, get(machine, as_id=1)
    assert invalidate(machine) == [other]
    assert not exported.invalid.value
    assert not exported.scheduled.value
    put(machine, other)


def test_without_vcpus_nobody_can_race_with_an_invalidation(machine: Machine, roots: Roots) -> None:
    """The assertion is waived then (reference 2.14)."""
    roots.invalidate_all_roots()
    machine.expect()


@pytest.mark.parametrize("mode", ["unlocked", "read"])
def test_invalidation_needs_the_write_lock(machine: Machine, roots: Roots, mode: str) -> None:
    machine.vm.create_vcpu()
    if mode == "read":
        with reading(machine.mmu_lock):
            roots.invalidate_all_roots()
    else:
        roots.invalidate_all_roots()
    machine.expect("O5 assert-held-for-write")


def test_a_vm_without_users_is_not_asked_for_the_lock(machine: Machine, roots: Roots) -> None:
    root = get(machine)
    put(machine, root)
    machine.kvm.users_count.put()
    assert roots.invalidate_all_roots() == [root]
    machine.expect()
    machine.vm._destroy()
