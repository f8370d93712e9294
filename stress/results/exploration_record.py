"""The stored form of an exploration (explore.json): one frozen value that every report of it is a
pure function of."""

from __future__ import annotations

from typing import Any, Final

from attrs import field, frozen

from stress.results.certificate import Certificate
from stress.results.inputs import VariantFile
from stress.results.run_record import Environment
from stress.results.serialise import Format

EXPLORE_JSON: Final = "explore.json"


@frozen
class StoredFailure:
    """A failing schedule, as it is kept: what was found first and its splat, what else (`others` by
    signature, `also` as rule and headline), the schedule as text with its number of steps and
    turns, the file that replays it, how soon it was found and by which strategy. `suspects` are the
    known defects of this build that break its rule."""

    signature: str
    rule: str
    code: str
    others: tuple[str, ...]
    headline: str
    also: tuple[str, ...]
    predicted: bool
    schedule: str
    steps: int
    turns: int
    after_schedules: int
    after_s: float
    strategy: str
    file: str
    splat: str
    suspects: tuple[str, ...] = ()


@frozen
class RequestedBudget:
    """How much was asked for: schedules, seconds (null: no bound); `exhaustive`: to the end, or it
    proves nothing; `keep_going`: on after a failure; `jobs`: processes, where the search can be
    shared."""

    schedules: int | None
    seconds: float | None
    exhaustive: bool
    keep_going: bool
    jobs: int = 1


@frozen
class ExplorationRecord:
    """Everything known about an exploration.

    `curve` is (schedules, classes) at growing distances, `unseen_mass` the Good-Turing estimate of
    what was never met, `cut` how many schedules a strategy gave up as repetitions, `states` how
    many states it remembered for that, as many as it may when `states_full`, `unfinished` how many
    hit the limit of steps, `remaining` the estimated number of schedules that an exhaustive search
    has left. `members` are the parts of a portfolio, `counters` what all schedules together did,
    `judged` how often each rule had something to decide, `points` the preemption points that were
    reached, `harness_errors` what went wrong with the harness. `status` is running, finished,
    interrupted or crashed, `pid` and `pid_started` identify the process that wrote it.
    """

    id: str
    name: str
    verdict: str
    reasons: tuple[str, ...]
    strategy: str
    seed: int
    jobs: int
    asked: RequestedBudget
    command: str
    started: str
    variant_files: tuple[VariantFile, ...]
    variants: tuple[str, ...]
    expected_rules: tuple[str, ...]
    expected_seen: tuple[str, ...]
    wall_s: float
    schedules: int
    schedules_per_s: float
    steps: int
    steps_per_s: int
    classes: int
    unseen_mass: float
    curve: tuple[tuple[int, int], ...]
    cut: int
    unfinished: int
    exhausted: bool
    remaining: float | None
    failing: int
    members: dict[str, dict[str, int]]
    counters: dict[str, int]
    judged: dict[str, int]
    points: tuple[str, ...]
    certificate: Certificate
    failures: tuple[StoredFailure, ...]
    environment: Environment
    scenario: dict[str, Any]
    harness_errors: tuple[str, ...] = field(default=())
    states: int = 0
    states_full: bool = False
    status: str = "finished"
    pid: int = 0
    pid_started: float = 0.0


EXPLORATION_FORMAT = Format(ExplorationRecord, 2, "stress-exploration")
