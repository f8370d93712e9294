"""`stress explore` as a function: what it may claim, what it keeps, and that several processes add
up."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

import stress.runs.explore as exploring
from mmu.numbers.oracles import RULES
from stress.report import certificate_text
from stress.report.exploration_console import verdict_line
from stress.results import schedule_file
from stress.results.exploration_record import EXPLORATION_FORMAT
from stress.results.index import entries
from stress.results.verdict import Judgement, Verdict
from stress.runs.ends import crashed, ended_exploration, interrupted
from stress.runs.explore import exploration_for, explore, explore_share, shares
from stress.runs.explore_request import ExplorationResult, ExploreRequest, judgement_of
from stress.runs.explore_store import ExplorationKeeper, record_of
from stress.runs.fanout.spread import INTERRUPTED, Workers
from stress.runs.fanout.task import Trouble
from stress.scenario.counters import COUNTERS
from stress.scenario.errors import ResultError
from stress.scenario.load import load
from stress.scenario.types import Amount, Expect, Positive
from stress.search.exploration import ExplorationTally, Failure
from stress.search.schedule import Schedule
from tests.stored import console
from tests.unit.stress.search.programs import broken

EXPLORE = Path(__file__).parents[4] / "configs" / "explore"
SMALL = load(EXPLORE / "fault-vs-delete.toml")
BROKEN = load(EXPLORE / "fault-vs-delete.toml", ['vm.variants=["table-freed-at-once"]'])
DRAWN = load(EXPLORE / "two-vcpus.toml")
FAILURE = Failure(
    broken("O1", "stale-tlb"), (), Schedule(0, (1,), 0), (("vcpu0", "start"),), 3, 0.1, "random"
)


def asked(**changes: Any) -> ExploreRequest:
    return evolve(ExploreRequest(SMALL, "small", 1, "portfolio", schedules=10), **changes)


def tallied(**changes: Any) -> ExplorationTally:
    tally = ExplorationTally(
        schedules=10,
        steps=100,
        counters=dict.fromkeys(SMALL.obligations, 10),
        judged={"O5": 10},
    )
    for name, value in changes.items():
        setattr(tally, name, value)
    return tally


def result_of(request: ExploreRequest, tally: ExplorationTally) -> ExplorationResult:
    return ExplorationResult(request, tally, judgement_of(request, tally), "", 1.0)


def judged(request: ExploreRequest | None = None, **changes: Any) -> Judgement:
    return judgement_of(request or asked(), tallied(**changes))


# What may be claimed.


def test_a_budget_that_was_used_with_all_obligations_met_passes() -> None:
    assert judged() == Judgement(
        Verdict.PASS, (f"all {len(SMALL.obligations)} obligations met, no finding",)
    )


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({"failures": {"a": FAILURE}}, Verdict.FAIL, "1 finding"),
        ({"errors": ["ValueError: oops\nTraceback"]}, Verdict.HARNESS_ERROR, "ValueError: oops"),
        ({"errors": ["oops"], "failures": {"a": FAILURE}}, Verdict.FAIL, "oops"),
        (
            {"counters": {"memslot_deletes": 10, "vcpu_faults": 10}},
            Verdict.INCONCLUSIVE,
            "fast_zaps: 0, at least 1 needed",
        ),
        ({"counters": {}}, Verdict.INCONCLUSIVE, "memslot_deletes: 0"),
        ({"unfinished": 1}, Verdict.INCONCLUSIVE, "not every actor came to its end"),
        ({"unfinished": 10}, Verdict.INCONCLUSIVE, "never checked at a quiescent point"),
        ({"cut": 10}, Verdict.INCONCLUSIVE, "never checked at a quiescent point"),
        ({"schedules": 9}, Verdict.INCONCLUSIVE, "before its budget was used"),
        ({"schedules": 0}, Verdict.INCONCLUSIVE, "before its budget was used"),
    ],
)
def test_what_is_missing_is_no_pass(changes: dict[str, Any], verdict: Verdict, reason: str) -> None:
    judgement = judged(**changes)
    assert judgement.verdict is verdict
    assert any(reason in each for each in judgement.reasons)


@pytest.mark.parametrize(
    ("strategy", "exhaustive", "exhausted", "verdict"),
    [
        ("dpor", True, True, Verdict.PASS),
        ("dpor", True, False, Verdict.INCONCLUSIVE),
        ("dpor", False, False, Verdict.INCONCLUSIVE),
        ("dfs", False, False, Verdict.INCONCLUSIVE),
        ("random", True, False, Verdict.INCONCLUSIVE),
        ("delay:2", False, False, Verdict.PASS),
        ("portfolio", False, False, Verdict.PASS),
    ],
)
def test_a_search_for_everything_must_come_to_its_end(
    strategy: str, exhaustive: bool, exhausted: bool, verdict: Verdict
) -> None:
    judgement = judged(asked(strategy=strategy, exhaustive=exhaustive), exhausted=exhausted)
    assert judgement.verdict is verdict
    assert (
        judgement.reasons
        == ("the search did not come to its end: what it has not seen may be broken",)
    ) is (verdict is not Verdict.PASS)


def test_a_finding_is_a_finding_wherever_the_search_has_ended() -> None:
    request = asked(strategy="dpor", exhaustive=True)
    assert judged(request, failures={"a": FAILURE}).verdict is Verdict.FAIL
    assert (
        judged(request, failures={"a": FAILURE}, unfinished=3, counters={}).verdict is Verdict.FAIL
    )


def test_an_exhausted_search_needs_no_other_budget() -> None:
    request = asked(strategy="dpor", schedules=None, exhaustive=True)
    assert judged(request, exhausted=True, schedules=3).verdict is Verdict.PASS
    assert judged(request, exhausted=False, schedules=3).verdict is Verdict.INCONCLUSIVE


def test_time_that_was_used_is_a_budget_too() -> None:
    request = asked(schedules=None, seconds=2.0)
    assert judged(request, seconds=2.01).verdict is Verdict.PASS
    assert judged(request, seconds=1.0).verdict is Verdict.INCONCLUSIVE


def test_without_obligations_nothing_is_proven() -> None:
    assert judged(asked(scenario=evolve(SMALL, obligations={}))).verdict is Verdict.INCONCLUSIVE


def test_what_is_expected_must_be_seen() -> None:
    request = asked(scenario=evolve(SMALL, expect=Expect(rules=("O12",))))
    assert judged(request).verdict is Verdict.INCONCLUSIVE
    other = judged(request, failures={"a": FAILURE})
    assert other.verdict is Verdict.FAIL
    assert "none of the expected rules fired: O12" in other.reasons
    second = evolve(FAILURE, others=(broken("O12", "obsolete"),))
    assert judged(request, failures={"a": second}).reasons == ("1 finding",)


# Exploring.


@pytest.fixture(scope="module")
def failed() -> ExplorationResult:
    return explore(asked(scenario=BROKEN))


def test_what_passes() -> None:
    progress: list[int] = []
    result = explore(asked(schedules=12), lambda tally: progress.append(tally.schedules))
    assert result.judgement.verdict is Verdict.PASS
    assert result.tally.schedules == 12
    assert set(SMALL.obligations) <= set(result.tally.counters) <= set(COUNTERS)
    assert set(result.tally.judged) <= set(RULES)
    assert "P9" in result.tally.points
    assert all(0 < each <= 12 for each in progress)


def test_obligations_that_are_too_much_are_not_met() -> None:
    scenario = evolve(SMALL, obligations={"memslot_deletes": Amount(1_000)})
    assert explore(asked(scenario=scenario, schedules=3)).judgement.reasons == (
        "memslot_deletes: 3, at least 1000 needed",
    )


def test_a_limit_that_is_too_low_is_no_pass() -> None:
    scenario = evolve(
        DRAWN, explore=evolve(DRAWN.explore, rounds=Positive(300), max_steps=Positive(20))
    )
    result = explore(asked(scenario=scenario, schedules=1))
    assert result.tally.unfinished == 1
    assert result.judgement.verdict is not Verdict.PASS


def test_equal_requests_have_equal_results() -> None:
    one, two, other = (explore(asked(schedules=15, seed=seed)).tally for seed in (3, 3, 4))
    assert (one.steps, one.seen, one.members) == (two.steps, two.seen, two.members)
    assert one.seen != other.seen


@pytest.mark.parametrize(
    ("scenario", "strategy", "seeds"),
    [
        (SMALL, "portfolio", [0, 0, 0]),
        (DRAWN, "portfolio", [7, 7, 8]),
        (DRAWN, "dpor", [7, 7, 7]),
        (SMALL, "dpor", [0, 0, 0]),
    ],
)
def test_what_actors_draw_changes_now_and_then(
    scenario: Any, strategy: str, seeds: list[int]
) -> None:
    exploration = exploration_for(asked(scenario=scenario, strategy=strategy), 7)
    assert [
        exploration._seeds(number) for number in (0, exploring.PROGRAMS - 1, exploring.PROGRAMS)
    ] == seeds


# Several processes.


def pieces(
    request: ExploreRequest, elapsed: Callable[[], float] = lambda: 0.0
) -> list[ExploreRequest]:
    return [task.args[0] for task in shares(request, elapsed)]


def test_pieces_are_together_what_was_asked_for_with_seeds_of_their_own() -> None:
    found = pieces(asked(schedules=1203))
    assert [piece.schedules for piece in found] == [151] * 7 + [146]
    assert len({piece.seed for piece in found}) == 8
    assert found[0].seed == 1
    assert [piece.schedules for piece in pieces(asked(schedules=70))] == [50, 20]
    assert {piece.schedules for piece in pieces(asked(schedules=16_000))} == {1000}


def test_who_shares_the_work_does_not_change_it() -> None:
    two = pieces(asked(schedules=900, jobs=2))
    nine = pieces(asked(schedules=900, jobs=9))
    assert [(piece.seed, piece.schedules) for piece in two] == [
        (piece.seed, piece.schedules) for piece in nine
    ]


def test_pieces_of_a_search_that_is_bounded_by_time_end_with_it() -> None:
    clock = iter([0.0, 2.0, 4.0, 5.9, 5.999])
    found = pieces(asked(schedules=None, seconds=6.0), lambda: next(clock))
    assert [piece.seconds for piece in found] == [2.5, 2.5, 2.0, pytest.approx(0.1)]
    assert {piece.schedules for piece in found} == {None}


def test_both_bounds_hold_for_every_piece() -> None:
    clock = iter([0.0, 2.0, 6.5])
    found = pieces(asked(schedules=100_000, seconds=6.0), lambda: next(clock))
    assert [(piece.schedules, piece.seconds) for piece in found] == [(1000, 6.0), (1000, 4.0)]


def test_pieces_draw_programs_of_their_own() -> None:
    one, two = (
        explore_share(piece)
        for piece in pieces(asked(scenario=DRAWN, schedules=60, keep_going=True))
    )
    assert (one.schedules, two.schedules) == (50, 10)
    assert not one.seen.keys() & two.seen.keys()


def test_two_processes_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exploring, "SMALLEST_SHARE", 5)
    result = explore(asked(schedules=9, jobs=2))
    assert result.tally.schedules == 9
    assert result.judgement.verdict is Verdict.PASS, result.judgement.reasons
    assert sum(result.tally.seen.values()) == result.tally.schedules
    assert sum(counts["schedules"] for counts in result.tally.members.values()) == 9


class Spread:
    """Carries out tasks here, one after another; `answers` says what comes of some instead, `why`
    why it ended early."""

    def __init__(self, answers: dict[int, Any] | None = None, why: str = "") -> None:
        self.answers, self.why, self.where = answers or {}, why, Workers()

    def __call__(self, tasks: Any, where: Workers, on_done: Any) -> str:
        self.where = where
        for number, task in enumerate(tasks):
            on_done(number, self.answers.get(number) or task.call(*task.args))
            if self.why:
                break
        return self.why


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Spread]:
    def use(*arguments: Any) -> Spread:
        made = Spread(*arguments)
        monkeypatch.setattr(exploring, "spread", made)
        monkeypatch.setattr(exploring, "SMALLEST_SHARE", 5)
        return made

    return use


def test_a_cluster_is_asked_whatever_the_number_of_jobs(spread: Callable[..., Spread]) -> None:
    made = spread()
    assert explore(asked(jobs=1, scheduler="tcp://there:1")).tally.schedules == 10
    assert made.where == Workers(1, "tcp://there:1")


def test_a_piece_that_is_lost_for_good_is_a_harness_error(spread: Callable[..., Spread]) -> None:
    spread({1: Trouble("the process ended with exit code 9")})
    result = explore(asked(jobs=2))
    assert result.judgement.verdict is Verdict.HARNESS_ERROR
    assert result.tally.schedules == 5


def test_a_failure_ends_the_search_for_all(spread: Callable[..., Spread]) -> None:
    spread({0: ExplorationTally(schedules=3, failures={"a": FAILURE})})
    assert explore(asked(schedules=500, jobs=2)).tally.schedules == 3
    assert explore(asked(schedules=20, jobs=2, keep_going=True)).tally.schedules == 18


@pytest.mark.parametrize(
    ("why", "verdict"),
    [
        (INTERRUPTED, Verdict.INCONCLUSIVE),
        ("the connection to the Dask scheduler was lost", Verdict.HARNESS_ERROR),
    ],
)
def test_what_was_explored_before_it_was_cut_short_is_kept(
    spread: Callable[..., Spread], why: str, verdict: Verdict
) -> None:
    spread({}, why)
    result = explore(asked(schedules=20, jobs=2))
    assert result.tally.schedules == 5
    assert result.judgement.verdict is verdict


def test_an_exhaustive_search_runs_in_one_process_and_says_so() -> None:
    result = explore(asked(schedules=9, jobs=3, strategy="preemption:1"))
    assert (
        "strategy preemption:1, seed 1, 1 process (not 3: preemption:1 cannot be shared)"
        in console(result)
    )
    assert record_of(result, "made-up").jobs == 1
    assert result.tally.schedules == 9


def test_several_processes_say_how_many_they_are() -> None:
    request = asked(jobs=3)
    assert "strategy portfolio, seed 1, 3 processes" in console(result_of(request, tallied()))


# What is kept.


def test_the_result_is_kept_with_a_file_for_each_failure(
    tmp_path: Path, failed: ExplorationResult
) -> None:
    keeper = ExplorationKeeper(failed.request, tmp_path)
    record, verdict, trouble = keeper.finish(failed)
    directory = keeper.directory
    assert (verdict, trouble) == (Verdict.FAIL, "")
    assert {path.name for path in directory.path.iterdir()} == {
        "explore.json",
        "console.txt",
        "report.html",
        "summary.md",
        "junit.xml",
        "schedule-1.json",
        "explanation-1.json",
    }
    assert (tmp_path / "latest").resolve() == directory.path.resolve()
    recorded = schedule_file.read(directory.path / "schedule-1.json")
    assert recorded.scenario == BROKEN
    assert recorded.signatures[0] in failed.tally.failures
    assert EXPLORATION_FORMAT.load(directory.path / "explore.json") == record
    assert record.id == directory.path.name
    text = (directory.path / "console.txt").read_text()
    assert f"stress replay {directory.path / 'schedule-1.json'}" in text
    assert text.endswith(
        "\n".join([verdict_line(record), *certificate_text.lines(record.certificate)]) + "\n"
    )


def test_results_that_cannot_be_kept_say_so(tmp_path: Path, failed: ExplorationResult) -> None:
    keeper = ExplorationKeeper(failed.request, tmp_path / "file")
    (tmp_path / "file").rmdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultError, match="--results"):
        keeper.look(ExplorationTally())
    keeper.look(failed.tally)
    _, verdict, trouble = keeper.finish(failed)
    assert verdict is Verdict.FAIL
    assert "explore.json: File exists; choose another place with --results" in trouble
    assert (tmp_path / "file").read_text() == "in the way"
    (saved,) = re.findall(r"explore.json is in (\S+);", trouble)
    record = EXPLORATION_FORMAT.load(Path(saved) / "explore.json")
    assert record.verdict == "FAIL"
    shutil.rmtree(saved)


def test_a_search_is_kept_from_the_first_look_on(tmp_path: Path, failed: ExplorationResult) -> None:
    """A kill at any time leaves a result that is listed, with every failure that was shown."""
    keeper = ExplorationKeeper(failed.request, tmp_path)
    assert list(tmp_path.iterdir()) == []
    keeper.look(tallied(seconds=0.2))
    (entry,) = entries(tmp_path)
    assert (entry.verdict, entry.status, entry.findings) == ("INCONCLUSIVE", "running", 0)
    keeper.look(tallied(seconds=0.3))
    found = evolve(failed.tally, seconds=0.4)
    keeper.look(found)
    (entry,) = entries(tmp_path)
    assert (entry.verdict, entry.findings) == ("FAIL", 1)
    path = keeper.directory.path
    assert schedule_file.read(path / "schedule-1.json").scenario == BROKEN
    record = EXPLORATION_FORMAT.load(path / "explore.json")
    ended = ended_exploration(record, crashed("its process was ended by SIGKILL"))
    assert (ended.verdict, ended.status) == ("FAIL", "crashed")
    assert ended.reasons == ("1 finding", "its process was ended by SIGKILL")
    silent = evolve(record, failures=())
    assert ended_exploration(silent, crashed("x")).verdict == "HARNESS_ERROR"
    assert ended_exploration(silent, interrupted("x")).verdict == "INCONCLUSIVE"


def test_an_interrupt_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, as in many."""
    looks = iter(range(3))

    def impatient(_: ExplorationTally) -> None:
        if next(looks) == 1:
            raise KeyboardInterrupt

    explored = explore(asked(schedules=10**9), impatient)
    assert explored.status == "interrupted"
    assert explored.tally.schedules > 0
    assert explored.judgement.verdict is Verdict.INCONCLUSIVE
    assert "interrupted" in explored.judgement.reasons[0]


def test_the_console_tells_coverage_and_failures(failed: ExplorationResult) -> None:
    text = "\n".join(console(failed))
    for part in (
        "policy keep-valid, profile hardened",
        "variants table-freed-at-once",
        "Good-Turing",
        "saturation",
        "schedule: tdp1-",
    ):
        assert part in text
    whole = explore(asked(schedules=3))
    assert "of what such schedules meet was never seen" in "\n".join(console(whole))


def test_the_verdict_line_says_what_was_expected() -> None:
    scenario = evolve(SMALL, expect=Expect(codes=("stale-tlb",)))
    request = asked(scenario=scenario)
    for failures, end in (({"a": FAILURE}, "seen stale-tlb"), ({}, "NOT seen")):
        record = record_of(result_of(request, tallied(failures=failures)), "made-up")
        assert verdict_line(record).endswith(f"expected stale-tlb: {end}")
