"""Time counts only while the process is served: by beats that come when they are due."""

from __future__ import annotations

import os

import pytest

from mmu.pulse import BEAT_S, SLACK_NS, WORTH_NS, Pulse, Stopwatch
from mmu.runtime import Runtime
from mmu.sync.waiting import Patience
from stress.selftest.detectors.clock import ClockRuntime
from tests.conftest import eventually


class Times:
    """A clock that says what it was told to."""

    def __init__(self, *times: int) -> None:
        self.times = list(times)

    def __call__(self) -> int:
        return self.times.pop(0)


def test_beats_that_come_when_they_are_due_count_in_full() -> None:
    due = round(BEAT_S * 1e9)
    pulse = Pulse(Times(due, 2 * due, 3 * due))
    for _ in range(3):
        pulse.beat()
    assert pulse._served == 3 * due


def test_a_beat_that_comes_late_counts_as_what_it_is_worth() -> None:
    pulse = Pulse(Times(3_600_000_000_000, 3_600_000_000_005))
    pulse.beat()
    pulse.beat()
    assert pulse._served == WORTH_NS + 5


def test_the_process_has_a_pulse_once_somebody_asks() -> None:
    runtime = Runtime()
    first = runtime.served()
    eventually(lambda: runtime.served() > first, "the pulse to beat")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_process_gets_a_pulse_of_its_own() -> None:
    runtime = Runtime()
    runtime.served()
    child = os.fork()
    if not child:
        try:
            first = runtime.served()
            eventually(lambda: runtime.served() > first, "the pulse to beat")
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize(
    ("share", "seconds"), [(1.0, 100.0), (0.5, 50.0 + SLACK_NS / 1e9), (0.0, SLACK_NS / 1e9)]
)
def test_a_stopwatch_leaves_out_what_the_process_has_not_got(share: float, seconds: float) -> None:
    clock = ClockRuntime(share)
    clock.advance(7)
    watch = Stopwatch(clock)
    clock.advance(100)
    assert watch.seconds() == pytest.approx(seconds)


def test_a_wait_that_is_late_is_told_how_long_the_process_was_served() -> None:
    clock, told = ClockRuntime(0.1), list[float]()
    over: list[int] = []
    clock.after(20, lambda: over.append(1))
    clock.wait_until("the end", lambda: bool(over), on_late=told.append)
    assert len(told) == 80, "four times a second"
    assert told[-1] == pytest.approx(2.0 + SLACK_NS / 1e9)


# Patience: what a wait for a lock does.


def tried(clock: ClockRuntime, limit: float, timeout: float) -> tuple[list[float], Patience, bool]:
    """The attempts, in seconds, of a wait that gets nothing."""
    attempts: list[float] = []

    def fail(seconds: float) -> bool:
        attempts.append(seconds)
        clock.advance(seconds)
        return False

    wait = Patience(clock, limit, timeout)
    got = wait.acquire(fail)
    return attempts, wait, got


def test_whoever_is_served_waits_once_and_loses_patience() -> None:
    attempts, wait, got = tried(ClockRuntime(), 10, -1)
    assert (attempts, got) == ([10], False)
    assert wait.left == float("inf")


def test_whoever_is_starved_goes_on_until_it_had_its_share() -> None:
    clock = ClockRuntime(0.25)
    attempts, _, _ = tried(clock, 10, -1)
    assert len(attempts) > 3
    assert clock.served() / 1e9 == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_a_timeout_is_one_whether_anybody_is_served_or_not(share: float) -> None:
    clock = ClockRuntime(share)
    attempts, wait, got = tried(clock, 10, 3)
    assert (attempts, got, wait.left) == ([3], False, 0)


def test_a_timeout_goes_on_after_patience_is_lost() -> None:
    _, wait, got = tried(ClockRuntime(), 10, 25)
    assert (got, wait.left) == (False, 15)


def test_what_is_got_is_got() -> None:
    assert Patience(ClockRuntime(), 10, 0).acquire(lambda seconds: seconds == 0)
