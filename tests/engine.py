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
    Memory,
    Positive,
    Scenario,
    Seconds,
    VmSettings,
)
from stress.selftest.attempt import Attempt
from stress.selftest.jobs import Job, run_jobs

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


def small(**changes: Any) -> Scenario:
    """A scenario of half a second with everything in it, at real geometry."""
    base = Scenario(
        vm=VmSettings(vcpus=Positive(2), frames=Positive(1 << 12)),
        memory=Memory(
            fixed_pages=Positive(64),
            churn_pages=Positive(32),
            smm_pages=Count(16),
            smm_churn_pages=Count(16),
        ),
        disturbances=Disturbances(stutter_every_s=Seconds(0.3)),
        budget=Budget(duration_s=Seconds(0.8), settle_s=Seconds(0.1)),
    )
    return evolve(base, **changes)


class Watchful(ThreadEngine):
    """The engine, which ends a run also when `enough` has happened in it."""

    def __init__(self, session: Session, enough: Callable[[Session], bool]) -> None:
        super().__init__(session, Resources(), lambda _: None)
        self._enough = enough

    def _found_enough(self) -> bool:
        return super()._found_enough() or self._enough(self.session)


def run_scenario(
    scenario: Scenario, seed: int = 1, until: Callable[[Session], bool] = lambda _: False
) -> tuple[Session, RunOutcome]:
    """Run to the end, or `until` enough has happened; the session holds what was found."""
    session = Session(scenario, seed, Runtime())
    return session, Watchful(session, until).run()


def broken_run(scenario: Scenario, seed: int = 1) -> Attempt:
    """A run that has to find something, in a process of its own: what it breaks may leave threads
    that never end, and those would slow down every test after it."""
    made: list[Attempt] = []
    job = Job("", Case(""), scenario, "threads", seed, scenario.budget.duration_s)
    run_jobs([job], Workers(1), lambda _, attempt: made.append(attempt))
    return made[0]
