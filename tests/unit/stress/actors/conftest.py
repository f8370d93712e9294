"""A session that is set up and not running: its actors do a step when a test says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from attrs import evolve

from mmu.runtime import Runtime
from stress.engines.session import Session
from stress.scenario.types import (
    ActorSettings,
    Count,
    Disturbances,
    Memory,
    Positive,
    Scenario,
    Share,
    VmSettings,
)
from tests.conftest import forget_held_locks

HUGE = VmSettings(
    vcpus=Positive(1), entries=Positive(16), frames=Positive(1 << 12), huge_2m=Count(32)
)
"""Sixteen entries a table, and huge pages of sixteen frames."""


class MakeStage(Protocol):
    """The fixture `staged`."""

    def __call__(
        self,
        vm: VmSettings = HUGE,
        memory: Memory | None = None,
        disturbances: Disturbances | None = None,
        **actors: Any,
    ) -> Session: ...


@pytest.fixture
def staged() -> Iterator[MakeStage]:
    """Make a session with these actors, set up. Nothing may have been found when the test ends."""
    made: list[Session] = []

    def make(
        vm: VmSettings = HUGE,
        memory: Memory | None = None,
        disturbances: Disturbances | None = None,
        **actors: Any,
    ) -> Session:
        small = Memory(
            fixed_pages=Positive(64),
            churn_slots=Count(1),
            churn_pages=Positive(16),
            smm_pages=Count(8),
            smm_churn_pages=Count(0),
        )
        quiet = disturbances or Disturbances(delay_share=Share(0))
        scenario = Scenario(
            vm=vm,
            memory=memory or small,
            actors=evolve(ActorSettings(), **actors),
            disturbances=quiet,
        )
        session = Session(scenario, 1, Runtime())
        session.set_up()
        made.append(session)
        return session

    forget_held_locks()
    yield make
    forget_held_locks()
    for session in made:
        session.vm.kvm.rcu.shutdown()
        assert [finding.report.render() for finding in session.findings()] == []
        assert session.errors() == ()


def the(session: Session, name: str) -> Any:
    """The actor of that name."""
    (actor,) = [actor for actor in session.actors if actor.name == name]
    return actor
