"""Laws of the walk: for any tree it visits exactly what is there, in pre-order, and no yield makes
it miss or skip a thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from mmu.paging.geometry import Geometry
from mmu.paging.table import RootPage
from mmu.tdp.iter import TdpIter
from tests.conftest import rcu_section, writing
from tests.model import Machine, machine_of, round_down

Entry = tuple[int, int]
"""(gfn, level) of an SPTE."""

geometries = st.sampled_from(
    [
        Geometry(3, 4),
        Geometry(4, 2),
        Geometry(2, 8),
        Geometry(1, 4),
        Geometry(5, 2),
        Geometry(4, 512),
    ]
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Geometry, list[int], list[int]]:
    """A geometry, the gfns that are mapped, and those of them that are unmapped again, which leaves
    tables empty."""
    geometry = draw(geometries)
    near = st.integers(0, min(geometry.max_gfn, 255))
    far = st.integers(0, geometry.max_gfn)
    mapped = draw(st.lists(near | far, unique=True, max_size=12))
    unmapped = draw(st.lists(st.sampled_from(mapped), unique=True)) if mapped else []
    return geometry, mapped, unmapped


@st.composite
def trees(draw: st.DrawFn) -> tuple[Geometry, list[int], list[int], int, int]:
    """A shape and a range of gfns that is not empty, its ends often at something."""
    geometry, mapped, unmapped = draw(shapes())
    edges = st.integers(0, geometry.max_gfn + 1) | st.sampled_from(
        [0, geometry.max_gfn + 1, *mapped, *(gfn + 1 for gfn in mapped)]
    )
    start, end = sorted(draw(st.tuples(edges, edges).filter(lambda ends: ends[0] != ends[1])))
    return geometry, mapped, unmapped, start, end


def grow(machine: Machine, mapped: list[int], unmapped: list[int]) -> RootPage:
    """A root of that shape."""
    root = machine.root()
    machine.plant(root, *mapped, pfn=1)
    for gfn in unmapped:
        unmap(machine, root, gfn)
    return root


def unmap(machine: Machine, root: RootPage, gfn: int) -> None:
    """Clear one leaf."""
    sp, index = machine.entry(root, gfn)
    with machine.zapping():
        machine.vm.writer.set_spte(sp, index, gfn, sp.spt[index], 0)


def expected(
    geometry: Geometry,
    mapped: Iterable[int],
    unmapped: Iterable[int],
    start: int,
    end: int,
    min_level: int = 1,
) -> list[Entry]:
    """What a walk must visit: every entry on the way to a mapped gfn that lies in the range, in
    pre-order."""
    entries: set[Entry] = set()
    for level in range(max(min_level, 2), geometry.levels + 1):
        entries |= {(round_down(geometry, gfn, level), level) for gfn in mapped}
    if min_level == 1:
        entries |= {(gfn, 1) for gfn in set(mapped) - set(unmapped)}
    inside = [
        (gfn, level) for gfn, level in entries if gfn < end and gfn + geometry.pages(level) > start
    ]
    return sorted(inside, key=lambda entry: (entry[0], -entry[1]))


def present(it: TdpIter, step: Callable[[], None]) -> Iterator[Entry]:
    """Walk to the end, yielding what is there."""
    while it.valid:
        if it.old_spte:
            yield it.gfn, it.level
        step()


@given(trees(), st.integers(1, 5), st.booleans())
def test_the_walk_visits_exactly_the_present_entries_in_pre_order(
    tree: tuple[Geometry, list[int], list[int], int, int], min_level: int, skipping: bool
) -> None:
    geometry, mapped, unmapped, start, end = tree
    min_level = min(min_level, geometry.levels)
    with machine_of(geometry, frames=4) as machine:
        root = grow(machine, mapped, unmapped)
        with rcu_section(machine.kvm.rcu):
            it = TdpIter(machine.kvm, root, min_level, start, end)
            visited = list(present(it, it.next_present if skipping else it.next))
        assert visited == expected(geometry, mapped, unmapped, start, end, min_level)


@given(
    shapes(),
    st.lists(st.integers(0, 40), max_size=6),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_whatever_happens_during_yields_what_stays_is_visited(
    shape: tuple[Geometry, list[int], list[int]], yields: list[int], random: object, skipping: bool
) -> None:
    """A yield may come at any step; others then unmap leaves and cut off whole tables."""
    geometry, mapped, unmapped = shape
    with machine_of(geometry, frames=4) as machine:
        root = grow(machine, mapped, unmapped)
        stays = set(mapped) - set(unmapped)
        seen: set[int] = set()
        with rcu_section(machine.kvm.rcu):
            it = TdpIter(machine.kvm, root, 1, 0, geometry.max_gfn + 1)
            step = it.next_present if skipping else it.next
            steps = 0
            while it.valid:
                steps += 1
                if steps in yields:
                    stays -= disturb(machine, root, stays, random)
                    it.yielded = True
                elif it.level == 1 and it.old_spte:
                    seen.add(it.gfn)
                step()
        assert stays <= seen
        assert seen <= set(mapped)


def disturb(machine: Machine, root: RootPage, stays: set[int], random: object) -> set[int]:
    """What another thread does while the lock is dropped: unmap a leaf or a whole subtree; the gfns
    that went."""
    chosen = sorted(stays)
    if not chosen:
        return set()
    gfn = random.choice(chosen)  # type: ignore[attr-defined]
    level = random.randint(1, machine.kvm.geometry.levels)  # type: ignore[attr-defined]
    geometry = machine.kvm.geometry
    sp, index = machine.entry(root, gfn, level)
    first = round_down(geometry, gfn, level)
    with machine.zapping():
        machine.vm.writer.set_spte(sp, index, first, sp.spt[index], 0)
    return {other for other in stays if round_down(geometry, other, level) == first}


@given(trees())
def test_a_leaf_zap_removes_exactly_the_leaves_of_its_range(
    tree: tuple[Geometry, list[int], list[int], int, int],
) -> None:
    geometry, mapped, unmapped, start, end = tree
    with machine_of(geometry, frames=4) as machine:
        root = grow(machine, mapped, unmapped)
        tables = machine.tables(root)
        leaves = set(mapped) - set(unmapped)
        doomed = {gfn for gfn in leaves if start <= gfn < end}
        with writing(machine.mmu_lock):
            flush = machine.vm.zapper.zap_leafs(root, start, end, can_yield=False, flush=False)
        assert set(machine.leaves(root)) == leaves - doomed
        assert machine.tables(root) == tables
        assert flush == bool(doomed)
        assert machine.kvm.stat.pages_4k.value == len(leaves - doomed)


@given(trees(), st.lists(st.booleans(), max_size=20), st.booleans())
def test_a_leaf_zap_that_yields_owes_no_flush_when_it_drops_the_lock(
    tree: tuple[Geometry, list[int], list[int], int, int], contention: list[bool], owed: bool
) -> None:
    geometry, mapped, unmapped, start, end = tree
    with machine_of(geometry, frames=4) as machine:
        root = grow(machine, mapped, unmapped)
        doomed = {gfn for gfn in set(mapped) - set(unmapped) if start <= gfn < end}
        events = machine.record("spte_zapped", "flush_begin", "mmu_write_unlocking")
        left = iter(contention)
        machine.mmu_lock.needbreak = lambda: next(left, False)  # type: ignore[method-assign]
        with writing(machine.mmu_lock):
            flush = machine.vm.zapper.zap_leafs(root, start, end, can_yield=True, flush=owed)
        debt = owed
        for event in events.names()[:-1]:
            assert not (event == "mmu_write_unlocking" and debt)
            debt = event == "spte_zapped" or (debt and event != "flush_begin")
        assert flush == debt
        assert not doomed & set(machine.leaves(root))


@given(shapes(), st.booleans(), st.lists(st.booleans(), max_size=20))
def test_zapping_a_root_leaves_nothing_of_any_tree(
    shape: tuple[Geometry, list[int], list[int]], shared: bool, contention: list[bool]
) -> None:
    geometry, mapped, unmapped = shape
    with machine_of(geometry, frames=4) as machine:
        root = grow(machine, mapped, unmapped)
        left = iter(contention)
        machine.mmu_lock.needbreak = lambda: next(left, False)  # type: ignore[method-assign]
        machine.mmu_lock.lock(shared)
        machine.vm.zapper.zap_root(root, shared)
        machine.mmu_lock.unlock(shared)
        assert not any(root.spt)
        assert (machine.kvm.stat.pages_4k.value, machine.kvm.stat.tdp_mmu_pages.value) == (0, 0)
        machine.kvm.rcu.barrier()
        assert machine.kvm.tables.live() == 1 + len(machine.spare_tables())


@given(geometries, st.data())
def test_geometry_splits_a_gfn_into_its_indices_and_back(
    geometry: Geometry, data: st.DataObject
) -> None:
    gfn = data.draw(st.integers(0, geometry.max_gfn))
    assert (
        sum(
            geometry.index(gfn, level) * geometry.pages(level)
            for level in range(1, geometry.levels + 1)
        )
        == gfn
    )
