"""Short runs of the thread engine for tests."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from mmu.runtime import Runtime
from stress.engines.session import Session
from stress.engines.threads import Outcome, ThreadEngine
from stress.observe.resources import Resources
from stress.scenario.types import Budget, Count, Disturbances, Memory, Positive, Scenario, Seconds, Vm


def small(**changes: Any) -> Scenario:
    """A scenario of half a second with everything in it, at real geometry."""
    base = Scenario(
        vm=Vm(vcpus=Positive(2), frames=Positive(1 << 12)),
        memory=Memory(fixed_pages=Positive(64), churn_pages=Positive(32), smm_pages=Count(16), smm_churn_pages=Count(16)),
        disturbances=Disturbances(stutter_every_s=Seconds(0.3)),
        budget=Budget(duration_s=Seconds(0.8), settle_s=Seconds(0.1)),
    )
    return evolve(base, **changes)


def run_scenario(scenario: Scenario, seed: int = 1) -> tuple[Session, Outcome]:
    """Run to the end; the session holds what was found."""
    session = Session(scenario, seed, Runtime())
    outcome = ThreadEngine(session, Resources(), lambda _: None).run()
    return session, outcome
