"""Laws of lockdep: it reports exactly when the orders that were seen could deadlock, whatever the
history before.

Every law runs its locks on one thread, one acquisition after the other: what could deadlock is
never made to happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, pairwise
from random import Random
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmu.report import Report, Reporter
from mmu.sync import Mutex, RwLock, Sync
from mmu.task import current
from tests.conftest import forget_held_locks

LAW = settings(max_examples=100)


class Step(NamedTuple):
    """One acquisition: which lock, and in which mode (a lock with one mode ignores it)."""

    lock: int
    shared: bool


def steps(locks: int) -> st.SearchStrategy[list[Step]]:
    """A nest of acquisitions, outermost first, none of a lock that is held already."""
    step = st.builds(Step, st.integers(0, locks - 1), st.booleans())
    return st.lists(step, unique_by=lambda step: step.lock, max_size=locks)


def make_locks(sync: Sync) -> list[Mutex | RwLock]:
    """One lock of each kind, sleeping ones first: an order in which all may be nested."""
    return [
        sync.mutex("0 mutex"),
        sync.mutex("1 mutex"),
        sync.rwlock("2 fair", "fair"),
        sync.rwlock("3 writer", "writer"),
        sync.rwlock("4 reader", "reader"),
        sync.spinlock("5 spinlock"),
    ]


KINDS = 6


def take(lock: Mutex | RwLock, shared: bool) -> None:
    """Acquire a lock of any kind."""
    lock.lock(shared) if isinstance(lock, RwLock) else lock.acquire()


def give(lock: Mutex | RwLock, shared: bool) -> None:
    """Release a lock of any kind."""
    lock.unlock(shared) if isinstance(lock, RwLock) else lock.release()


def run(
    locks: Sequence[Mutex | RwLock],
    nest: Sequence[Step],
    release_order: Sequence[int] | None = None,
) -> None:
    """Take the locks of `nest` one inside the other, then release them, innermost first unless told
    otherwise."""
    for step in nest:
        take(locks[step.lock], step.shared)
    for position in release_order or range(len(nest) - 1, -1, -1):
        give(locks[nest[position].lock], nest[position].shared)


def fresh() -> tuple[Sync, Reporter]:
    """A validator without history; a failed example must not leave it locks."""
    forget_held_locks()
    reporter = Reporter(sink=None)
    return Sync(reporter=reporter), reporter


def cycles(reporter: Reporter) -> list[Report]:
    """The reports of a wrong order."""
    return [report for report in reporter.reports if report.code == "circular-dependency"]


# One global order


in_global_order = steps(KINDS).map(sorted)


@LAW
@given(st.lists(in_global_order, max_size=8), st.randoms(use_true_random=False))
def test_one_global_order_never_reports_whatever_the_modes_and_the_release_order(
    nests: list[list[Step]], random: Random
) -> None:
    sync, reporter = fresh()
    locks = make_locks(sync)
    for nest in nests:
        run(locks, nest, random.sample(range(len(nest)), len(nest)))
    assert reporter.reports == ()
    assert sync.lockdep.chain_of(current.task) is sync.lockdep.root
    assert current.task.held == []


@LAW
@given(st.lists(in_global_order, max_size=8))
def test_the_graph_holds_every_pair_that_was_nested_and_no_other(nests: list[list[Step]]) -> None:
    sync, _ = fresh()
    for nest in nests:
        run(make_locks(sync), nest)
    nested = {(int(outer[0]), int(inner[0])) for outer, _, inner, _ in sync.lockdep.orders()}
    assert nested == {
        (outer.lock, inner.lock) for nest in nests for outer, inner in combinations(nest, 2)
    }


# Inverted pairs


@LAW
@given(
    history=st.lists(steps(5).map(sorted), max_size=6),
    pair=st.lists(st.integers(0, 4), min_size=2, max_size=2, unique=True).map(sorted),
    times=st.integers(1, 3),
)
def test_an_inverted_pair_is_reported_exactly_once(
    history: list[list[Step]], pair: list[int], times: int
) -> None:
    sync, reporter = fresh()
    locks = [sync.mutex(f"lock {number}") for number in range(5)]
    outer, inner = (Step(number, shared=False) for number in pair)
    for nest in [*history, [outer, inner]]:
        run(locks, nest)
    assert reporter.reports == ()
    for _ in range(times):
        run(locks, [inner, outer])
    for nest in history:
        run(locks, nest)
    (report,) = cycles(reporter)
    assert (report.subject, report.count) == (f"lock {pair[0]} / lock {pair[1]}", 1)


@LAW
@given(st.permutations(range(6)).flatmap(lambda ring: st.tuples(st.just(ring), st.integers(2, 6))))
def test_a_ring_of_any_length_is_reported_when_its_last_order_closes_it(
    ring_and_length: tuple[list[int], int],
) -> None:
    sync, reporter = fresh()
    ring = ring_and_length[0][: ring_and_length[1]]
    locks = [sync.mutex(f"lock {number}") for number in range(6)]
    for outer, inner in pairwise(ring):
        run(locks, [Step(outer, shared=False), Step(inner, shared=False)])
    assert reporter.reports == ()
    run(locks, [Step(ring[-1], shared=False), Step(ring[0], shared=False)])
    (report,) = cycles(reporter)
    assert (
        len([part for part in report.sections if "existing dependency" in part.title])
        == len(ring) - 1
    )


# Any history


class Order(NamedTuple):
    """The lock `outer` was held when `inner` was waited for, each in its mode."""

    outer: Step
    inner: Step


def can_deadlock(orders: set[Order], recursive_reads: set[int]) -> bool:
    """Whether threads that follow `orders` can wait for each other in a ring. Written without
    looking at lockdep.

    The waiter of one order waits for the holder of the next when they name the same lock and the
    wait is not a read that is granted beside other readers even while a writer waits.
    """

    def waits_for(order: Order, other: Order) -> bool:
        granted = order.inner.shared and order.inner.lock in recursive_reads and other.outer.shared
        return order.inner.lock == other.outer.lock and not granted

    graph = {order: [other for other in orders if waits_for(order, other)] for order in orders}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


@LAW
@given(st.lists(steps(4), max_size=5))
@example([[Step(0, True), Step(1, False)], [Step(1, False), Step(0, True)]])
@example([[Step(2, True), Step(3, True)], [Step(3, True), Step(2, True)]])
@example([[Step(2, True), Step(0, False)], [Step(0, False), Step(2, True)]])
@example([[Step(2, True), Step(0, False)], [Step(0, False), Step(2, False)]])
def test_a_report_comes_exactly_when_the_orders_seen_can_deadlock(nests: list[list[Step]]) -> None:
    sync, reporter = fresh()
    locks = [
        sync.rwlock("fair"),
        sync.rwlock("writer", "writer"),
        sync.rwlock("reader", "reader"),
        sync.rwlock("reader too", "reader"),
    ]
    orders: set[Order] = set()
    for nest in nests:
        run(locks, nest)
        orders.update(Order(outer, inner) for outer, inner in combinations(nest, 2))
        assert bool(cycles(reporter)) == can_deadlock(orders, recursive_reads={2, 3})


@LAW
@given(st.lists(st.permutations(range(3)), max_size=5))
def test_reads_alone_never_deadlock_on_reader_preferring_locks(nests: list[list[int]]) -> None:
    sync, reporter = fresh()
    locks = [sync.rwlock(f"lock {number}", "reader") for number in range(3)]
    for nest in nests:
        run(locks, [Step(number, shared=True) for number in nest])
    assert reporter.reports == ()
