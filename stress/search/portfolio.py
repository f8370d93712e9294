"""A portfolio of strategies: the budget goes to whoever still finds new behaviour.

A multi-armed bandit whose arms wear out: the estimates forget (Garivier and Moulines, "On
Upper-Confidence Bound Policies for Switching Bandit Problems", ALT 2011), and a fixed share of the
budget is dealt evenly, so that no member starves. If it sweeps, then until every schedule with one
delay was run, whichever task begins, every fourth schedule is one of those: what one switch of
tasks at the right step can break is found in each seed alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from attrs import define, frozen

from stress.engines.program import Run, Strategy
from stress.engines.scheduler import Picker, Scheduler
from stress.search.bounded import Sweep
from stress.search.pct import Pct
from stress.search.pos import Pos
from stress.search.random_walk import RandomWalk
from stress.search.surw import Surw

_EVEN_SHARE = 0.5
_SWEEP_EVERY = 4
_MEMORY = 1 / 32
_NEW_CLASS = 1.0
_NEW_FAILURE = 10.0


@frozen
class Share:
    """What one member of the portfolio did."""

    name: str
    schedules: int
    classes: int
    """How many happens-before classes it saw first."""
    failures: int
    """How many different failures it saw first."""


@define
class _Member:
    strategy: Strategy
    gain: float = _NEW_CLASS
    schedules: int = 0
    classes: int = 0
    failures: int = 0


def default_strategies(seed: int) -> list[Strategy]:
    """Random walk, PCT of depth 1 to 4, POS and SURW, with seeds drawn from `seed`."""
    dice = random.Random(seed)
    depths = [Pct(dice.getrandbits(64), depth) for depth in range(1, 5)]
    return [
        RandomWalk(dice.getrandbits(64)),
        *depths,
        Pos(dice.getrandbits(64)),
        Surw(dice.getrandbits(64)),
    ]


class Portfolio:
    """Runs each schedule with one of its strategies. `classify` names the happens-before class of a
    run."""

    name = "portfolio"

    def __init__(
        self,
        seed: int,
        classify: Callable[[Run], int],
        strategies: Sequence[Strategy] | None = None,
        *,
        sweeps: bool = False,
    ) -> None:
        """With `sweeps` the program must be the same in every schedule."""
        self._dice = random.Random(seed)
        self._classify = classify
        chosen = (
            default_strategies(self._dice.getrandbits(64)) if strategies is None else strategies
        )
        self._sweep = [_Member(Sweep(1))] if sweeps else []
        self._members = [*self._sweep, *(_Member(strategy) for strategy in chosen)]
        self._classes: set[int] = set()
        self._failures: set[str] = set()
        self._turn = self._members[0]
        self._begun = 0

    @property
    def member(self) -> str:
        """Who chose the last schedule."""
        return self._turn.strategy.name

    @property
    def exhausted(self) -> bool:
        """Whether every member is."""
        return not self._open()

    def begin(self, scheduler: Scheduler) -> Picker:
        """Choose the member whose turn it is."""
        members = self._open() or self._members
        sweep = [member for member in self._sweep if not member.strategy.exhausted]
        self._turn = (
            sweep[0] if sweep and self._begun % _SWEEP_EVERY == 0 else self._choose(members)
        )
        self._begun += 1
        return self._turn.strategy.begin(scheduler)

    def end(self, run: Run) -> None:
        """Credit the member with what is new in the run."""
        member = self._turn
        member.strategy.end(run)
        member.schedules += 1
        member.gain += (self._reward(member, run) - member.gain) * _MEMORY

    def report(self) -> list[Share]:
        """What each member did so far."""
        return [
            Share(each.strategy.name, each.schedules, each.classes, each.failures)
            for each in self._members
        ]

    def _open(self) -> list[_Member]:
        return [member for member in self._members if not member.strategy.exhausted]

    def _choose(self, members: Sequence[_Member]) -> _Member:
        if self._dice.random() < _EVEN_SHARE:
            return self._dice.choice(members)
        best = max(member.gain for member in members)
        return self._dice.choice([member for member in members if member.gain >= best])

    def _reward(self, member: _Member, run: Run) -> float:
        reward = 0.0
        seen = self._classify(run)
        if seen not in self._classes:
            self._classes.add(seen)
            member.classes += 1
            reward = _NEW_CLASS
        if run.failed and run.signature not in self._failures:
            self._failures.add(run.signature)
            member.failures += 1
            reward += _NEW_FAILURE
        return reward
