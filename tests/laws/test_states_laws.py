"""State caching loses nothing: a search that gives up where it was before sees exactly the classes
of schedules, with their outcomes and findings, that it sees without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stress.engines.carrier import pinned
from stress.engines.program import Executor
from stress.search.bounded import DelayBounded, DepthFirst, PreemptionBounded, Systematic
from stress.search.dpor import Dpor
from stress.search.happens_before import class_of
from stress.search.state_cache import StateCache
from stress.selftest.litmus.base import LitmusProgram
from stress.selftest.litmus.registry import LITMUS
from tests.laws.test_dpor_laws import everything

Search = Callable[[StateCache | None], Systematic]
Seen = dict[int, tuple[object, ...]]

SEARCHES: dict[str, Search] = {
    "dfs": DepthFirst,
    "delay:1": lambda states: DelayBounded(1, states),
    "delay:3": lambda states: DelayBounded(3, states),
    "preemption:1": lambda states: PreemptionBounded(1, states),
    "preemption:2": lambda states: PreemptionBounded(2, states),
}
FEW = ("delay:1", "preemption:1")
"""What these cut is short: most of their schedules end early, but few are saved altogether."""
MOST = 120
"""A litmus program with more schedules than this is not compared."""


@pytest.mark.parametrize("name", SEARCHES)
def test_random_programs_show_the_same(name: str) -> None:
    search = SEARCHES[name]
    compared = fewer = 0
    with pinned():
        for number in range(12):
            whole = everything(search(None), number)
            if whole is None:
                continue
            cut = everything(search(StateCache()), number)
            assert cut is not None
            compared += 1
            assert cut[0] == whole[0], number
            assert cut[1] <= whole[1], number
            fewer += cut[1] < whole[1]
    assert compared >= 8
    assert fewer >= 3 or name in FEW


def seen(name: str, search: Systematic | Dpor) -> Seen | None:
    """Every class of a litmus program that is run to its end, with what came of it; None if there
    is too much."""
    executor = Executor(LitmusProgram(LITMUS[name]), limit=3000, keep_extras=True)
    found: Seen = {}
    for _ in range(MOST):
        run = executor.execute(search)
        if not run.cut:
            found[class_of(run)] = (
                run.outcome,
                *sorted(report.signature for report in run.reports),
            )
        run.release()
        if search.exhausted:
            return found
    return None


def test_litmus_programs_show_the_same() -> None:
    search = SEARCHES["preemption:1"]
    compared = 0
    with pinned():
        for litmus in list(LITMUS)[::6]:
            whole = seen(litmus, search(None))
            if whole is not None:
                assert seen(litmus, search(StateCache())) == whole, litmus
                compared += 1
    assert compared >= 15


def test_depth_first_and_dpor_prove_the_same_of_litmus_programs() -> None:
    """Two searches that have next to nothing in common."""
    compared = 0
    with pinned():
        for name in list(LITMUS)[::4]:
            classes = seen(name, Dpor())
            whole = (
                seen(name, DepthFirst(StateCache()))
                if classes is not None and len(classes) <= 3
                else None
            )
            if whole is not None:
                assert whole == classes, name
                compared += 1
    assert compared >= 6
