"""Attempts in processes: every job is answered, whatever becomes of its process."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest

from stress.mutants.case import Case
from stress.runs.fanout import local
from stress.runs.fanout.spread import Workers
from stress.selftest.attempt import Attempt, Engine
from stress.selftest.jobs import Job, run_jobs
from stress.selftest.registry import all_mutants, scenario_of


class Deadly:
    """A scenario that ends the process that looks at it."""

    @property
    def budget(self) -> object:
        """Does not return."""
        os._exit(7)


class Stuck:
    """A scenario that nobody gets past."""

    @property
    def budget(self) -> object:
        """Does not return either."""
        threading.Event().wait()
        raise AssertionError


def job(scenario: Any, engine: Engine = "threads", limit_s: float = 0.1) -> Job:
    return Job("x", Case("explore/move"), scenario, engine, 5, limit_s)


def answers(
    *given: Job, processes: int = 2, until: float | None = None
) -> tuple[list[Attempt], int]:
    found: list[Attempt] = []
    left, why = run_jobs(given, Workers(processes), lambda _, attempt: found.append(attempt), until)
    assert why == ""
    return found, left


def test_a_process_that_dies_is_an_error_and_the_others_go_on() -> None:
    mutant = all_mutants()["exported-zap-under-read-lock"]
    good = Job(
        mutant.name,
        mutant.controlled,
        scenario_of(mutant.controlled, mutant),
        "controlled",
        1,
        10.0,
    )
    found, left = answers(job(Deadly()), good, job(None))
    assert left == 0
    by_name = {attempt.name if attempt.killed else attempt.errors[0]: attempt for attempt in found}
    assert set(by_name) == {
        "exported-zap-under-read-lock",
        "the process ended with exit code 7",
        "AttributeError: 'NoneType' object has no attribute 'budget'",
    }
    assert by_name["exported-zap-under-read-lock"].rules()[0] == "O5"


def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.4)
    found, _ = answers(job(Stuck()))
    assert [attempt.errors for attempt in found] == [("the process took longer than 0 s",)]


def test_when_the_time_is_up_nothing_new_begins() -> None:
    found, left = answers(job(None), job(None), job(None), until=time.monotonic() - 1)
    assert (found, left) == ([], 3)
