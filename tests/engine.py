"""Short runs of the thread engine for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import evolve

from mmu.runtime import Runtime
from stress.engines.session import Session
from stress.engines.threads import RunOutcome, ThreadEngine
from stress.mutants.case import Case
from stress.observe.close_calls import CLOSE_CALLS
from stress.observe.resources import Resources
from stress.runs.fanout.spread import Workers
from stress.scenario.types import (
    Budget,
    Count,
    Disturbances,
    Flag,
    Memory,
    Positive,
    Scenario,
    Seconds,
    VmSettings,
)
from stress.selftest.attempt import Attempt
from stress.selftest.jobs import Job, run_jobs
from tests.patience import PATIENCE

MEETINGS = {
    *CLOSE_CALLS,
    *(
        "stale_faults",
        "stale_io_faults",
        "io_faults_retried",
        "rcu_waits_with_reader",
        "srcu_waits_with_reader",
        "yields",
    ),
    *(
        "obsolete_zap_breaks",
        "flushes_mid_dma",
        "exports_refused",
        "vcpu_kicks",
        "fast_faults",
        "frozen_met",
    ),
}
"""Counters that move only when two tasks have met, which few schedules may bring about."""


BRIEF = Budget(
    duration_s=Seconds(0.2),
    until_met=Flag(True),
    cap_s=Seconds(PATIENCE),
    settle_s=Seconds(0.1),
)
"""As short as the machine allows: until the obligations are met."""


def small(**changes: Any) -> Scenario:
    """A scenario with everything in it, at real geometry, that runs until its obligations are
    met."""
    base = Scenario(
        vm=VmSettings(vcpus=Positive(2), frames=Positive(1 << 12)),
        memory=Memory(
            fixed_pages=Positive(64),
            churn_pages=Positive(32),
            smm_pages=Count(16),
            smm_churn_pages=Count(16),
        ),
        disturbances=Disturbances(stutter_every_s=Seconds(0.3)),
        budget=BRIEF,
    )
    return evolve(base, **changes)


class Watchful(ThreadEngine):
    """The engine, whose runs end when `enough` has happened, instead of after a time."""

    def __init__(
        self,
        session: Session,
        enough: Callable[[Session], bool],
        on_tick: Callable[[float], None] = lambda _: None,
    ) -> None:
        super().__init__(session, Resources(), on_tick)
        self._enough = enough

    def _budget_used(self, elapsed: float) -> bool:
        return elapsed >= PATIENCE or self._enough(self.session)


def run_scenario(
    scenario: Scenario, seed: int = 1, until: Callable[[Session], bool] | None = None
) -> tuple[Session, RunOutcome]:
    """Run `until` enough has happened, or as the scenario's budget says; the session holds what
    was found."""
    session = Session(scenario, seed, Runtime())
    if until is None:
        return session, ThreadEngine(session, Resources(), lambda _: None).run()
    return session, Watchful(session, until).run()


def counted(*counters: str, at_least: int = 1) -> Callable[[Session], bool]:
    """For `run_scenario`: until each of these counters has reached this much."""

    def enough(session: Session) -> bool:
        totals = session.totals()
        return all(totals[counter] >= at_least for counter in counters)

    return enough


def broken_run(scenario: Scenario, seed: int = 1) -> Attempt:
    """A run that has to find something, in a process of its own: what it breaks may leave threads
    that never end, and those would slow down every test after it."""
    made: list[Attempt] = []
    job = Job("", Case(""), scenario, "threads", seed, scenario.budget.longest_s)
    run_jobs([job], Workers(1), lambda _, attempt: made.append(attempt))
    return made[0]
