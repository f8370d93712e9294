"""Disturbances: steps that fail by shares, and delays at the chosen points; both follow from the
seed."""

from __future__ import annotations

from typing import Any

import pytest

from mmu.probe import Probe
from mmu.runtime import Runtime
from stress.observe.counts import Counts
from stress.observe.disturb import Delays, Failures
from stress.scenario.types import Disturbances, Seconds, Share
from tests.conftest import finish
from tests.unit.conftest import MakeMachine

STEPS = {
    "hwpt_attach": "fail_attach",
    "get_unused_fd": "fail_fd",
    "prepare_memory_region": "fail_prepare",
    "switch_root": "fail_switch",
}
EVERYTHING_FAILS = Disturbances(
    fail_attach=Share(1), fail_fd=Share(1), fail_prepare=Share(1), fail_switch=Share(1)
)


def in_task(name: str, failures: Failures, *steps: str) -> list[bool]:
    """What a task of that name is told of the steps."""
    runtime, answers = Runtime(), []
    assert failures.fail_function is not None
    fails = failures.fail_function
    finish(runtime, runtime.spawn(name, lambda: answers.extend(fails(step) for step in steps)))
    return answers


def failures_of(config: Disturbances, seed: int) -> Failures:
    runtime = Runtime()
    return Failures(
        runtime,
        config,
        seed,
        runtime.per_thread_counter("asked"),
        runtime.per_thread_counter("injected"),
    )


def test_without_a_share_nobody_is_even_asked() -> None:
    assert failures_of(Disturbances(), 1).fail_function is None


@pytest.mark.parametrize(("step", "key"), STEPS.items())
def test_a_share_is_that_of_its_own_step(step: str, key: str) -> None:
    failures = failures_of(Disturbances(**{key: Share(1.0)}), 1)
    assert in_task("device0", failures, *STEPS) == [other == step for other in STEPS]


def test_a_share_of_one_is_always() -> None:
    assert in_task("device0", failures_of(EVERYTHING_FAILS, 1), *(list(STEPS) * 20)) == [True] * 80


def test_nothing_fails_while_the_run_is_set_up() -> None:
    assert in_task("setup", failures_of(EVERYTHING_FAILS, 1), *(list(STEPS) * 20)) == [False] * 80


def test_a_step_that_no_share_is_for_does_not_fail() -> None:
    assert in_task("device0", failures_of(EVERYTHING_FAILS, 1), "something_else") == [False]


def test_failures_follow_from_the_seed_and_the_task() -> None:
    def choices(seed: int, task: str) -> list[bool]:
        return in_task(
            task, failures_of(Disturbances(fail_attach=Share(0.5)), seed), *(["hwpt_attach"] * 64)
        )

    assert choices(1, "device0") == choices(1, "device0")
    assert choices(1, "device0") != choices(2, "device0")
    assert choices(1, "device0") != choices(1, "device1")
    assert 10 < sum(choices(1, "device0")) < 54


class Clock(Runtime):
    """A runtime whose sleeps are written down."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def delays_of(**config: Any) -> tuple[Delays, Clock, Any]:
    clock, counter = Clock(), Runtime().per_thread_counter("delays")
    asked = Runtime().per_thread_counter("asked")
    return Delays(clock, Disturbances(**config), 1, asked, counter), clock, counter


@pytest.mark.parametrize("config", [{"delay_share": Share(0)}, {"points": ()}])
def test_without_a_share_or_a_point_nobody_observes(config: dict[str, Any]) -> None:
    probe = Probe()
    probe.attach(delays_of(**config)[0])
    assert probe.point is None


def test_a_delay_is_at_a_chosen_point_and_no_longer_than_it_may_be() -> None:
    delays, clock, counter = delays_of(
        delay_share=Share(1), delay_s=Share(0.5), points=("P4",), stutter_every_s=Seconds(1)
    )
    for _ in range(50):
        delays.point("P4")
        delays.point("P5")
    assert len(clock.slept) == counter.value == 50
    assert 0 <= min(clock.slept) < 0.1
    assert 0.4 < max(clock.slept) <= 0.5


def test_delays_come_by_their_share() -> None:
    delays, clock, _ = delays_of(delay_share=Share(0.25), points=("P4",))
    for _ in range(400):
        delays.point("P4")
    assert 60 < len(clock.slept) < 140


def test_the_steps_have_the_names_that_the_model_asks_for(make_machine: MakeMachine) -> None:
    asked: list[str] = []

    def fails(step: str) -> bool:
        asked.append(step)
        return False

    machine = make_machine(fail_function=fails)
    machine.add_slot(0, 16)
    _, hwpt = machine.attach(machine.export())
    hwpt.switch_root(machine.root())
    assert set(asked) == set(STEPS)


def test_a_point_may_have_a_share_of_its_own() -> None:
    delays, clock, _ = delays_of(
        delay_share=Share(0), points=("P4", "P5"), delay_at={"P16": Share(1), "P5": Share(1)}
    )
    for name in ("P4", "P5", "P16"):
        delays.point(name)
    assert len(clock.slept) == 2
    assert (
        Disturbances(
            delay_share=Share(0.5), points=("P4",), delay_at={"P4": Share(0)}
        ).delay_shares()
        == {}
    )


def test_attempts_are_counted_beside_hits() -> None:
    counts = Counts(Runtime())
    clock: Any = Clock()
    config = Disturbances(delay_share=Share(0.5), points=("P4",))
    delays = Delays(clock, config, 1, counts["delays_asked"], counts["delays"])
    for name in ["P4", "P5"] * 40:
        delays.point(name)
    assert counts["delays_asked"].value == 40
    assert counts["delays"].value == len(clock.slept) < 40


def test_a_step_that_was_made_fail_is_counted_with_those_that_might_have_been() -> None:
    runtime = Runtime()
    counts = Counts(runtime)
    failures = Failures(
        runtime,
        Disturbances(fail_attach=Share(0.5)),
        1,
        counts["failures_asked"],
        counts["failures_injected"],
    )
    answers = in_task("device0", failures, *(["hwpt_attach", "get_unused_fd"] * 30))
    assert counts["failures_asked"].value == 30
    assert counts["failures_injected"].value == sum(answers) > 0
