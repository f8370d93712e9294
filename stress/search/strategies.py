"""Strategies by name, as the command line and schedule files give them."""

from __future__ import annotations

from collections.abc import Callable

from stress.engines.program import Strategy
from stress.scenario.errors import StressError
from stress.search.bounded import DelayBounded, DepthFirst, PreemptionBounded, Sweep, Systematic
from stress.search.dpor import Dpor
from stress.search.happens_before import class_of
from stress.search.pct import Pct
from stress.search.portfolio import Portfolio
from stress.search.pos import Pos
from stress.search.random_walk import RandomWalk
from stress.search.state_cache import StateCache
from stress.search.surw import Surw

STRATEGIES: dict[str, tuple[str, Callable[[int, int], Strategy]]] = {
    "portfolio": (
        "all random strategies, and first a sweep; the budget moves to what still finds new "
        "classes",
        lambda seed, _: Portfolio(seed, classify=class_of, sweeps=True),
    ),
    "random": ("uniform random walk", lambda seed, _: RandomWalk(seed)),
    "pct": ("probabilistic concurrency testing; pct:D is of depth D, 1 to 5", Pct),
    "pos": ("partial order sampling", lambda seed, _: Pos(seed)),
    "surw": ("selectively uniform random walk over contended words", lambda seed, _: Surw(seed)),
    "delay": ("exhaustive up to a number of delays: delay:N", lambda _, bound: DelayBounded(bound)),
    "sweep": (
        "exhaustive up to a number of delays, with any task as the first: sweep:N",
        lambda _, bound: Sweep(bound),
    ),
    "preemption": (
        "exhaustive up to a number of preemptions: preemption:N",
        lambda _, bound: PreemptionBounded(bound),
    ),
    "dfs": ("every interleaving, one after another", lambda _seed, _bound: DepthFirst()),
    "dpor": (
        "exhaustive, one execution for each happens-before class",
        lambda _seed, _bound: Dpor(),
    ),
}
"""Each name with what it is and its constructor from (seed, parameter)."""

EVERYTHING = ("dpor", "dfs")
"""Strategies that end when every order of events was seen."""
EXHAUSTIVE = (*EVERYTHING, "delay", "sweep", "preemption")
"""Those that end at all: the others of them when everything within a bound was."""
DEFAULT_PARAMETER = {"pct": 3, "delay": 2, "sweep": 1, "preemption": 2}


def is_exhaustive(text: str) -> bool:
    """Whether the strategy called `name` or `name:parameter` comes to an end."""
    return text.partition(":")[0] in EXHAUSTIVE


def strategy_for(text: str, seed: int, states: int = 0, *, drawn: bool = False) -> Strategy:
    """The strategy called `name` or `name:parameter`; raises `StressError` for what there is not.
    One that repeats itself (dfs and those with a bound) remembers up to so many `states`. A program
    that is `drawn` anew now and then cannot be swept."""
    name, _, parameter = text.partition(":")
    known = STRATEGIES.get(name)
    if known is None:
        raise StressError(f"there is no strategy {name!r}: there are {', '.join(STRATEGIES)}")
    if parameter and (
        name not in DEFAULT_PARAMETER or not (parameter.isascii() and parameter.isdecimal())
    ):
        takes = name in DEFAULT_PARAMETER
        wrong = "a number is needed after the colon" if takes else f"{name} takes no parameter"
        raise StressError(f"strategy {text!r}: {wrong}")
    value = int(parameter) if parameter else DEFAULT_PARAMETER.get(name, 0)
    if name == "pct" and not 1 <= value <= 5:
        raise StressError(f"strategy {text!r}: the depth of pct is 1 to 5")
    if name == "portfolio" and drawn:
        return Portfolio(seed, classify=class_of)
    strategy = known[1](seed, value)
    if states and isinstance(strategy, Systematic):
        strategy.states = StateCache(states)
    return strategy
