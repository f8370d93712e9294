"""Two carriers, one engine: on greenlets every schedule is what it is on threads, to the letter of
its reports."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import evolve

from mmu.stack import NO_FRAMES, of_task, render
from mmu.task import current
from stress.engines import carrier_choice as carriers
from stress.engines.carrier import POOL
from stress.engines.carrier_choice import AUTO, GREENLETS, THREADS, VARIABLE, carrier_for, missing
from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, Program, ProgramTask, Run
from stress.engines.scenario_program import ScenarioProgram
from stress.scenario.errors import StressError
from stress.scenario.load import load
from stress.search.bounded import DepthFirst
from stress.search.exploration import named_steps
from stress.search.happens_before import class_of
from stress.search.races import races_of
from stress.search.random_walk import RandomWalk
from stress.search.replay import replay
from stress.search.schedule import Schedule
from stress.search.strategies import strategy_for
from stress.selftest.litmus.base import LitmusProgram
from stress.selftest.litmus.registry import LITMUS
from stress.testing.program import FunctionProgram
from tests.carriers import needs_greenlets
from tests.patience import PATIENCE
from tests.unit.stress.search.programs import PROTOCOL, Body, Small

ROOT: Final = Path(__file__).parents[4]
EXPLORE: Final = ROOT / "configs" / "explore"
SCENARIOS: Final = sorted(path.stem for path in EXPLORE.glob("*.toml"))
STRATEGIES: Final = (
    "random",
    "portfolio",
    "pct:3",
    "pos",
    "surw",
    "delay:2",
    "preemption:2",
    "dfs",
    "dpor",
)
SCHEDULES: Final = 3
BROKEN: Final = {
    "exported-root-invalidated": "delete-vs-dma",
    "importers-not-notified": "delete-vs-dma",
    "no-flush-after-exported-zap": "delete-vs-dma",
    "double-put-of-invalid-root": "two-deletes",
    "rcu-section-dropped": "fault-vs-delete",
    "table-freed-at-once": "two-vcpus",
    "r1-double-export": "exporters-race",
    "r17-gup-under-slots-lock": "userfault-vs-delete",
}
"""Mutants, each with a scenario in which random schedules find it: lockdep splats, deadlocks, stale
translations and more."""
HUNTED: Final = 12
"""Schedules of each mutant."""


def program_of(scenario: str, *variants: str) -> ScenarioProgram:
    loaded = load(EXPLORE / f"{scenario}.toml")
    return ScenarioProgram(scenario, evolve(loaded, vm=evolve(loaded.vm, variants=variants)))


def account_of(run: Run) -> dict[str, Any]:
    """Everything that anybody can learn of a schedule."""
    return {
        "steps": named_steps(run),
        "trace": run.trace,
        "extras": run.extras,
        "looks": run.looks,
        "blocked": run.blocked,
        "reports": [report.render() for report in run.reports],
        "signature": run.signature,
        "errors": run.errors,
        "outcome": run.outcome,
        "ends": (run.cut, run.limit_hit, run.completed),
        "class": class_of(run),
        "races": [report.render() for report in races_of(run)] if run.completed else None,
        "string": Schedule.of(run).encode(),
    }


def accounts(
    program: Program, strategy: str, schedules: int, seed: int = 1
) -> Iterator[tuple[Run, dict[str, Any]]]:
    executor, searching = Executor(program, keep_extras=True), strategy_for(strategy, seed)
    for number in range(schedules):
        if searching.exhausted:
            return
        run = executor.execute(searching, number)
        yield run, account_of(run)


class OnEach:
    """Runs the same on either carrier, and compares."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._setenv = monkeypatch.setenv

    def use(self, carrier: str) -> None:
        self._setenv(VARIABLE, carrier)

    def compare(self, program: Program, strategy: str, schedules: int) -> list[dict[str, Any]]:
        """The accounts of some schedules; a schedule of each carrier is also followed on the other
        one."""
        found: dict[str, list[dict[str, Any]]] = {}
        for carrier, other in ((THREADS, GREENLETS), (GREENLETS, THREADS)):
            self.use(carrier)
            runs = list(accounts(program, strategy, schedules))
            found[carrier] = [account for _, account in runs]
            self.use(other)
            last, account = [each for each in runs if not each[0].cut][-1]
            replayed = replay(program, Schedule.of(last), steps=account["steps"], predicted=True)
            assert replayed.divergence is None
            assert [report.render() for report in replayed.run.reports] == account["reports"]
        for threads, greenlets in zip(found[THREADS], found[GREENLETS], strict=True):
            assert greenlets == threads
        return found[THREADS]


@pytest.fixture
def on_each(monkeypatch: pytest.MonkeyPatch) -> OnEach:
    return OnEach(monkeypatch)


@needs_greenlets
@pytest.mark.parametrize(
    ("scenario", "strategy"), [*zip(SCENARIOS, itertools.cycle(STRATEGIES), strict=False)]
)
def test_a_scenario_has_the_same_schedules(scenario: str, strategy: str, on_each: OnEach) -> None:
    found = on_each.compare(program_of(scenario), strategy, SCHEDULES)
    assert all(len(account["trace"]) > 20 for account in found)


@needs_greenlets
@pytest.mark.parametrize("mutant", BROKEN)
def test_a_mutant_has_the_same_findings_stacks_included(mutant: str, on_each: OnEach) -> None:
    found = on_each.compare(program_of(BROKEN[mutant], mutant), "random", HUNTED)
    reports = [text for account in found for text in account["reports"]]
    assert reports, "no schedule found anything"


@needs_greenlets
def test_litmus_programs_have_the_same_schedules(on_each: OnEach) -> None:
    """Under all strategies in turn; there are deadlocks, livelocks and lost wake-ups among them."""
    ends: set[tuple[bool, ...]] = set()
    shown: list[str] = []
    for litmus, strategy in zip(LITMUS.values(), itertools.cycle(STRATEGIES), strict=False):
        for account in on_each.compare(LitmusProgram(litmus), strategy, SCHEDULES):
            ends.add(account["ends"])
            shown.extend(account["reports"])
    assert (False, False, True) in ends
    deadlocks = [text for text in shown if "BUG: deadlock" in text]
    assert any("(stress/selftest/litmus/" in text.partition("stack of")[2] for text in deadlocks)


# Which carrier.


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody has asked for anything."""
    monkeypatch.delenv(VARIABLE, raising=False)
    return monkeypatch


def test_without_greenlets_there_are_threads_and_asking_for_greenlets_is_an_error(
    free: pytest.MonkeyPatch,
) -> None:
    free.setattr(carriers, "missing", lambda: "not here")
    assert carrier_for(AUTO, "atomic") == THREADS
    free.setenv(VARIABLE, GREENLETS)
    with pytest.raises(
        StressError, match="STRESS_CARRIER=greenlets: there are no greenlets: not here"
    ):
        Executor(PROTOCOL)


def test_a_carrier_that_there_is_not_is_an_error(free: pytest.MonkeyPatch) -> None:
    free.setenv(VARIABLE, "fibres")
    with pytest.raises(
        StressError,
        match="STRESS_CARRIER=fibres: there is no such carrier; there are auto, threads, greenlets",
    ):
        Executor(PROTOCOL)


@pytest.mark.parametrize(
    ("asked", "wanted", "granularity", "expected"),
    [
        ("", AUTO, "atomic", GREENLETS),
        ("", AUTO, "library", THREADS),
        ("", THREADS, "atomic", THREADS),
        (AUTO, AUTO, "atomic", GREENLETS),
        (THREADS, AUTO, "atomic", THREADS),
        (GREENLETS, AUTO, "library", GREENLETS),
        (GREENLETS, THREADS, "atomic", GREENLETS),
    ],
)
def test_with_greenlets_the_projects_own_programs_use_them_unless_somebody_says_otherwise(
    asked: str, wanted: str, granularity: str, expected: str, free: pytest.MonkeyPatch
) -> None:
    free.setattr(carriers, "missing", lambda: None)
    free.setenv(VARIABLE, asked)
    assert carrier_for(wanted, granularity) == expected


def test_a_free_threaded_build_never_looks_for_greenlets(free: pytest.MonkeyPatch) -> None:
    free.setattr(carriers.sysconfig, "get_config_var", lambda name: name == "Py_GIL_DISABLED")
    assert "the GIL" in (missing.__wrapped__() or "")


def test_code_that_the_project_does_not_know_stays_on_threads(free: pytest.MonkeyPatch) -> None:
    """It may keep things by thread: a user's test is what it is with plain threads."""
    free.setattr(carriers, "missing", lambda: None)
    here = threading.local()

    def program(sync: Any) -> None:
        def keep(number: int) -> None:
            here.number = number
            flag.value = True
            assert here.number == number

        flag = sync.cell("flag", False)
        sync.spawn(keep, 1)
        sync.spawn(keep, 2)

    executor = Executor(FunctionProgram(program))
    assert executor.carrier == THREADS
    assert not [
        run.reports for run, _ in accounts(FunctionProgram(program), "random", 10) if run.reports
    ]


# What the tasks of either are to themselves and others.


def test_every_task_is_current_whenever_it_runs(carrier: str) -> None:
    """After every switch, and in whatever order the turns come."""
    seen: set[tuple[str, str]] = set()

    def make(runtime: ControlledRuntime) -> Body:
        word = runtime.counter("word")
        record = runtime.local(lambda: [current.task.name])

        def body(name: str) -> None:
            for _ in range(5):
                word.fetch_add(1)
                seen.add((name, current.task.name))
                assert record.mine == [name]

        return Body(
            [ProgramTask(name, lambda name=name: body(name)) for name in ("one", "two", "three")]
        )  # type: ignore[misc]

    for run, _ in accounts(Small("names", make), "random", 20):
        assert run.completed
        assert not run.errors
    assert seen == {("one", "one"), ("two", "two"), ("three", "three")}


def test_a_task_that_waits_shows_its_own_stack(carrier: str) -> None:
    """To another task, while the schedule goes on; to itself, too."""
    stacks: dict[str, list[str]] = {}

    def make(runtime: ControlledRuntime) -> Body:
        go = runtime.cell("go", False)

        def wait_for_it() -> None:
            runtime.wait_until("it", lambda: go.value)

        def look_at_it() -> None:
            waiter, looker = runtime.tasks()
            stacks["of the one that waits"] = render(of_task(waiter))
            stacks["its own"] = render(of_task(looker))
            go.value = True

        return Body([ProgramTask("waits", wait_for_it), ProgramTask("looks", look_at_it)])

    executor = Executor(Small("stacks", make))
    run = executor.execute(DepthFirst())
    assert run.completed
    assert not run.errors
    assert [
        line.partition(" (")[0].rpartition(".")[2] for line in stacks["of the one that waits"]
    ] == ["wait_for_it"]
    assert [line.partition(" (")[0].rpartition(".")[2] for line in stacks["its own"]] == [
        "look_at_it"
    ]


def test_a_task_that_has_not_begun_shows_none(carrier: str) -> None:
    shown = []

    def make(runtime: ControlledRuntime) -> Body:
        def look() -> None:
            shown.append(render(of_task(runtime.tasks()[1])))

        return Body([ProgramTask("looks", look), ProgramTask("is told later", lambda: None)])

    for _ in range(2):  # on a carrier that is new, and on one that was used before
        Executor(Small("idle", make)).execute(DepthFirst())
    assert shown == [NO_FRAMES] * 2


def test_carriers_are_used_again(carrier: str) -> None:
    executor = Executor(PROTOCOL)
    executor.execute(RandomWalk(1))
    threads = POOL.threads()
    hub = POOL.hub
    for _ in range(20):
        executor.execute(RandomWalk(1))
    assert POOL.threads() == threads
    assert POOL.hub is hub
    assert executor.carrier == carrier
    assert all(thread.daemon for thread in threads)


CHILD = """
import os, sys
from stress.engines.program import Executor
from stress.search.random_walk import RandomWalk
from tests.unit.stress.search.programs import PROTOCOL
executor = Executor(PROTOCOL)
before = executor.execute(RandomWalk(7)).trace
child = os.fork()
same = executor.execute(RandomWalk(7)).trace == before
if not child:
    os._exit(0 if same else 1)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_forked_child_explores_on_carriers_of_its_own_and_both_end_quietly(carrier: str) -> None:
    """The child has none of its parent's threads; and a process ends although tasks are parked for
    ever."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDEVMODE": "1"}
    # 3.12 on: fork with threads
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", CHILD]
    done = subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
