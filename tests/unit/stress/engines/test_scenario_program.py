"""A scenario as a program: built afresh for every schedule, judged as on real threads."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from mmu.errors import KvmError
from mmu.probe import Instrument, override
from stress.actors import performed
from stress.actors.vcpu import VcpuActor
from stress.engines.program import Executor, Run
from stress.engines.scenario_program import ScenarioProgram
from stress.scenario.load import load
from stress.scenario.types import Lines, Positive, Scenario
from stress.search.bounded import PreemptionBounded
from stress.search.exploration import Exploration, SearchBudget
from stress.search.happens_before import class_of
from stress.search.random_walk import RandomWalk

EXPLORE = Path(__file__).parents[4] / "configs" / "explore"
SCRIPTED = load(EXPLORE / "delete-vs-dma.toml")
DRAWN = load(EXPLORE / "two-vcpus.toml")


def once(
    scenario: Scenario, seed: int = 0, walk: int = 1, limit: int = 20_000, **options: Any
) -> Run:
    return Executor(ScenarioProgram("program", scenario, **options), limit=limit).execute(
        RandomWalk(walk), seed
    )


@pytest.mark.parametrize("scenario", [SCRIPTED, DRAWN], ids=["scripted", "drawn"])
def test_the_same_seeds_make_the_same_schedule(scenario: Scenario) -> None:
    one, two = once(scenario, 5), once(scenario, 5)
    assert one.trace == two.trace
    assert one.outcome == two.outcome
    assert class_of(one) == class_of(two)
    assert once(scenario, 5, walk=2).trace != one.trace


def test_a_schedule_leaves_no_vm_behind() -> None:
    """An exploration runs millions of them. What was last is still in the carriers' hands."""
    worlds = []
    for number in range(6):
        run = once(SCRIPTED, number)
        worlds.append(weakref.ref(run.instance.world))
        run.release()
    gc.collect()
    assert [world() for world in worlds[:-1]] == [None] * 5


def test_the_seed_of_the_program_decides_what_actors_draw() -> None:
    def operations(seed: int) -> dict[str, list[str]]:
        stage = once(DRAWN, seed, record_ops=True).instance.world.stage
        return {name: list(map(str, done)) for name, done in performed(stage).items()}

    assert operations(3) == operations(3)
    assert len({str(operations(seed)) for seed in range(4)}) > 1


def test_what_actors_have_done_is_recorded_only_when_wanted() -> None:
    stage = once(DRAWN, record_ops=True).instance.world.stage
    assert {name for name, done in performed(stage).items() if done} == {
        "vcpu0",
        "vcpu1",
        "device0",
        "memslot-worker",
    }
    assert not any(performed(once(DRAWN).instance.world.stage).values())


def test_a_script_is_done_once() -> None:
    done = performed(once(SCRIPTED, record_ops=True).instance.world.stage)
    assert {name: tuple(map(str, ops)) for name, ops in done.items() if ops} == {
        name: tuple(part) for name, part in SCRIPTED.script.items() if name != "setup"
    }


def test_rounds_are_how_often_actors_draw() -> None:
    def length(rounds: int) -> int:
        return len(
            once(evolve(DRAWN, explore=evolve(DRAWN.explore, rounds=Positive(rounds)))).trace
        )

    assert length(1) < length(3) < length(9)


def test_a_schedule_ends_with_the_checks_and_the_destruction_of_the_vm() -> None:
    run = once(SCRIPTED)
    assert run.completed
    assert run.errors == ()
    assert run.reports == ()
    assert run.instance.totals()["quiescent_checks"] == 1
    assert run.instance.totals()["memslot_deletes"] == 1
    assert run.instance.world.vm.destroyed.value
    assert "teardown" in run.names
    assert not any(run.names[task - 1] == "teardown" for task, _, _ in run.trace)


def test_steps_before_the_start_are_not_explored() -> None:
    longer = evolve(
        SCRIPTED,
        script={**SCRIPTED.script, "setup": Lines((*SCRIPTED.script["setup"], "vcpu0: read 0x0"))},
    )
    strategy = PreemptionBounded(0)
    runs = [
        Executor(ScenarioProgram("program", scenario)).execute(strategy)
        for scenario in (SCRIPTED, longer)
    ]
    assert len(runs[1].trace) <= len(runs[0].trace)


def test_a_broken_variant_is_judged_as_on_threads() -> None:
    run = once(
        load(EXPLORE / "delete-vs-dma.toml", ['vm.variants=["no-flush-after-exported-zap"]'])
    )
    assert run.failed
    assert run.reports[0].rule == "O1"
    assert run.signature == run.reports[0].signature


class Counting(Instrument):
    """An observer of every schedule."""

    def __init__(self) -> None:
        self.flushes = 0

    @override
    def flush_end(self, *_: object) -> None:
        self.flushes += 1


def test_observers_see_every_schedule_and_cost_no_step() -> None:
    seen = Counting()
    executor = Executor(ScenarioProgram("program", SCRIPTED, observers=[seen]))
    walk = RandomWalk(1)
    first = executor.execute(walk)
    before = seen.flushes
    executor.execute(walk)
    assert seen.flushes > before > 0
    assert first.trace == once(SCRIPTED).trace


class Failing(Instrument):
    """An observer with a mistake."""

    @override
    def flush_end(self, *_: object) -> None:
        raise ValueError("oops")


def test_an_observer_that_raises_is_an_error_of_the_harness() -> None:
    run = once(SCRIPTED, observers=[Failing()])
    assert run.reports == ()
    assert "an observer raised in flush_end: ValueError('oops')" in run.errors[0]


def test_an_actor_that_raises_is_an_error_of_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: VcpuActor, *_: object) -> None:
        raise KvmError(14, "oops")

    monkeypatch.setattr(VcpuActor, "run", fails)
    run = once(SCRIPTED)
    assert run.reports == ()
    assert run.errors[0].startswith("task vcpu0/1 raised KvmError")
    assert "Traceback" in run.errors[0]


def test_a_schedule_that_hits_its_limit_says_so_and_may_still_end_with_fair_turns() -> None:
    run = once(SCRIPTED, limit=30)
    assert run.limit_hit
    assert run.completed
    assert len(run.trace) > 30


def test_progress_moves_with_the_actors() -> None:
    run = once(SCRIPTED)
    assert run.instance.progress() > 0
    assert dict(run.outcome)["device0"] > 0


def test_what_a_broken_variant_breaks_is_no_error_of_the_harness() -> None:
    scenario = load(EXPLORE / "fault-vs-delete.toml", ['vm.variants=["srcu-wait-skipped"]'])
    exploration = Exploration(ScenarioProgram("program", scenario), PreemptionBounded(2))
    tally = exploration.run(SearchBudget(schedules=300, stop_at_failure=False))
    assert tally.failures
    assert tally.errors == []
