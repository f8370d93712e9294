"""Schedules as values: the string form, what is no schedule, and names of words."""

from __future__ import annotations

import base64
import contextlib
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stress.engines.controlled import ControlledRuntime
from stress.engines.program import Executor, ProgramTask, Run
from stress.engines.scheduler import Picker, Scheduler
from stress.search.exploration import named_steps
from stress.search.random_walk import RandomWalk
from stress.search.schedule import PREFIX, Schedule, ScheduleError, WordNames, check_of
from tests.unit.stress.search.programs import LOST_UPDATE, PROTOCOL, Body, Small

many = settings(max_examples=150)
TURNS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 300)), min_size=1, max_size=40)


@many
@given(st.integers(0, 1 << 64), TURNS, st.integers(0, (1 << 32) - 1))
def test_a_string_decodes_to_what_it_was_made_of(
    seed: int, turns: list[tuple[int, int]], check: int
) -> None:
    schedule = Schedule(seed, tuple(task for task, steps in turns for _ in range(steps)), check)
    text = schedule.encode()
    assert Schedule.decode(text) == schedule
    assert text.startswith(PREFIX)
    assert text.isascii()
    assert not set(text) & set(" \t\n+/=\"'$&;"), "one word in every shell and in every URL"


@pytest.mark.parametrize("steps", [1, 30, 31, 32, 127, 128, 20_000])
@pytest.mark.parametrize("task", [1, 6, 7, 8, 127, 128])
def test_turns_at_the_edges_of_the_encoding(task: int, steps: int) -> None:
    schedule = Schedule(1, (task,) * steps + (1, 2), 7)
    assert Schedule.decode(schedule.encode()) == schedule
    assert sum(length for _, length in schedule.turns()) == steps + 2


def test_a_long_schedule_is_a_short_string() -> None:
    assert len(Schedule(0, (1, 2) * 5_000, 0).encode()) < 150


def test_turns_are_runs_of_one_task() -> None:
    assert Schedule(0, (1, 1, 2, 1, 3, 3), 0).turns() == [(1, 2), (2, 1), (1, 1), (3, 2)]


@many
@given(st.text(max_size=60))
def test_any_text_is_a_schedule_or_an_error_that_says_so(text: str) -> None:
    for whole in (text, PREFIX + text):
        with contextlib.suppress(ScheduleError):
            assert all(Schedule.decode(whole).choices)


@many
@given(st.lists(st.sampled_from([*range(128), 7 << 5]), max_size=60))
def test_any_bytes_are_a_schedule_or_an_error(numbers: list[int]) -> None:
    data = bytes(numbers)
    for body in (data, b"z" + data, b"r" + data, b"z" + zlib.compress(data)):
        with contextlib.suppress(ScheduleError):
            Schedule.decode(PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("="))


def compressed() -> str:
    """A string long enough to be compressed, with the sum that comes with that."""
    text = Schedule(12345, (1, 2, 1, 1, 3, 2) * 40, 0xDEADBEEF).encode()
    assert base64.urlsafe_b64decode(text[len(PREFIX) :] + "==")[:1] == b"z"
    return text


@pytest.mark.parametrize("kept", range(len(compressed())))
def test_a_string_that_was_cut_off_is_damaged(kept: int) -> None:
    with pytest.raises(ScheduleError):
        Schedule.decode(compressed()[:kept])


def test_a_string_with_another_letter_is_damaged() -> None:
    text = compressed()
    whole = Schedule.decode(text)
    for position in range(len(PREFIX), len(text)):
        other = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
        with contextlib.suppress(ScheduleError):
            assert Schedule.decode(other) == whole, "the last letter has bits that nobody reads"


SHORT = Schedule(0, (1, 1, 1, 2, 2, 1), 12345).encode()


@pytest.mark.parametrize("kept", range(len(SHORT)))
def test_a_short_string_that_was_cut_off_is_damaged(kept: int) -> None:
    with pytest.raises(ScheduleError):
        Schedule.decode(SHORT[:kept])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"r",
        b"r\x00",
        b"r\x00\x00",
        b"r\x00\x00\x00",
        b"r\x00\x00\x02\x21",
        b"r\x00\x00\x01\x22",
        b"r\x00\x00\x00\xe0\x01\x00",
        b"r\x00\x00\x01\xe0\x00\x01",
        b"r\x00\x00\x01\xe0\x01\xff\xff\xff\xff\x7f",
    ],
    ids=[
        "empty",
        "no seed",
        "no sum",
        "no length",
        "no step",
        "too few",
        "too many",
        "no steps",
        "task 0",
        "billions of steps",
    ],
)
def test_bytes_that_are_no_schedule(data: bytes) -> None:
    with pytest.raises(ScheduleError, match="damaged"):
        Schedule.decode(PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("="))


@pytest.mark.parametrize("text", ["", "tdp", "tdp2-cgAA", "schedule-1.json", "TDP1-cgAA"])
def test_what_does_not_begin_like_one_is_none(text: str) -> None:
    with pytest.raises(ScheduleError, match="one begins with 'tdp1-'"):
        Schedule.decode(text)


def test_the_schedule_of_a_run_says_who_ran() -> None:
    run = Executor(LOST_UPDATE).execute(RandomWalk(3), seed=9)
    schedule = Schedule.of(run)
    assert schedule.seed == 9
    assert schedule.choices == tuple(task for task, _, _ in run.trace)
    assert schedule.check == check_of(run.trace)


def test_the_sum_depends_on_every_step() -> None:
    trace = Executor(PROTOCOL).execute(RandomWalk(3)).trace
    for position, (task, kind, word) in enumerate(trace):
        for other in ((task + 1, kind, word), (task, kind + 1, word), (task, kind, word + 1)):
            assert check_of([*trace[:position], other, *trace[position + 1 :]]) != check_of(trace)
    assert check_of(trace[:-1]) != check_of(trace)


# Names.


def _making(runtime: ControlledRuntime) -> Body:
    """Two tasks that make words and tables of the same names while others are in use, and write to
    what they have made."""
    shared = runtime.cell("shared", 0)

    def make() -> None:
        for number in range(3):
            own = runtime.cell("own", 0)
            table = runtime.table(4, "table")
            own.value = number
            table.store(number, 1)
            shared.value = number

    return Body([ProgramTask("one", make), ProgramTask("two", make)])


class Noting:
    """A random walk that notes, at every step, what each task has announced, as it is called at
    that time."""

    name = "noting"
    exhausted = False

    def __init__(self, seed: int) -> None:
        self._walk = RandomWalk(seed)
        self.early: list[tuple[int, int, int, str]] = []

    def begin(self, scheduler: Scheduler) -> Picker:
        inner = self._walk.begin(scheduler)

        def pick() -> object:
            names = WordNames(scheduler)
            for task in scheduler.tasks:
                self.early.append((task.index, task.kind, task.word, names.announced(task)))
            return inner()

        return pick  # type: ignore[return-value]

    def end(self, run: Run) -> None:
        """Nothing is learnt."""


@pytest.mark.parametrize("seed", range(3))
def test_later_objects_do_not_change_the_names_of_earlier_ones(seed: int) -> None:
    noting = Noting(seed)
    run = Executor(Small("making", _making)).execute(noting)
    assert run.scheduler is not None
    names = WordNames(run.scheduler)
    for index, kind, word, early in noting.early:
        assert names.event((index, kind, word)) == early


def test_objects_of_one_name_are_numbered_and_tables_have_indices() -> None:
    run = Executor(Small("making", _making)).execute(RandomWalk(1))
    said = {operation for _, operation in named_steps(run)}
    assert {"store own", *(f"store own#{number}" for number in range(2, 7))} <= said
    tables = sorted(operation for operation in said if operation.startswith("store table"))
    assert [operation.partition("[")[0] for operation in tables] == [
        "store table#2",
        *(f"store table#{n}" for n in range(3, 7)),
        "store table",
    ]
    assert sorted(operation[-3:] for operation in tables) == [
        "[0]",
        "[0]",
        "[1]",
        "[1]",
        "[2]",
        "[2]",
    ]
    assert "store shared" in said
    assert "start" in said


def test_words_are_found_again_with_their_objects() -> None:
    run = Executor(Small("making", _making)).execute(RandomWalk(1))
    assert run.scheduler is not None
    names = WordNames(run.scheduler)
    for first, thing in run.scheduler.registry:
        assert names.thing(first) == (thing, 0)
        if getattr(thing, "name", "") == "table":
            assert names.thing(first + 3) == (thing, 3)
            assert names.word(first + 3).endswith("[3]")


def test_a_better_name_may_be_given() -> None:
    run = Executor(Small("making", _making)).execute(RandomWalk(1))
    assert run.scheduler is not None
    names = WordNames(run.scheduler, lambda thing: "mine" if thing.name == "own" else None)
    words = [names.word(first) for first, _ in run.scheduler.registry]
    assert words.count("mine") == 1
    assert {"mine#6", "shared", "table#6[0]"} <= set(words)


def test_every_step_has_a_task_and_an_operation() -> None:
    run = Executor(LOST_UPDATE).execute(RandomWalk(1))
    steps = named_steps(run)
    assert len(steps) == len(run.trace)
    assert {task for task, _ in steps} == {"one", "two"}
    assert {"load counter", "store counter"} <= {operation for _, operation in steps}


def packed(data: bytes) -> str:
    return "tdp1-" + base64.urlsafe_b64encode(b"z" + zlib.compress(data, 9)).decode().rstrip("=")


@pytest.mark.parametrize(
    ("data", "reason"),
    [(bytes(1 << 28), "far too long"), (b"\xff" * (1 << 20), "a number that is too large")],
    ids=["a bomb", "a number without end"],
)
def test_a_small_string_does_not_fill_the_memory(data: bytes, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        Schedule.decode(packed(data))


def test_what_is_left_out_of_a_packed_schedule_is_missed() -> None:
    text = packed(b"\1\1\1\x20")
    body = base64.urlsafe_b64decode(text[5:] + "==")[:-3]
    with pytest.raises(ScheduleError, match="cut off"):
        Schedule.decode("tdp1-" + base64.urlsafe_b64encode(body).decode().rstrip("="))
