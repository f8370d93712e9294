"""Tasks in processes here: asked for as there is room, ended with whoever wanted them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stress.runs.fanout import spread as spreading
from stress.runs.fanout.local import run_local
from stress.runs.fanout.spread import INTERRUPTED, Workers, spread
from stress.runs.fanout.task import FanoutTask, startable
from tests.command import environment
from tests.marks import Mark
from tests.patience import PATIENCE
from tests.unit.stress.runs.fanout import tasks

PARENT = """
import sys
from stress.runs.fanout.local import run_local
from stress.runs.fanout.task import FanoutTask
from tests.unit.stress.runs.fanout import tasks

if __name__ == "__main__":
    run_local([FanoutTask(tasks.hold, (sys.argv[1],), 600.0)], 1, print)
"""


def adding(count: int) -> Iterator[FanoutTask]:
    return (FanoutTask(tasks.add, (number, 1), 5.0) for number in range(count))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Mark]:
    made = Mark(tmp_path / "mark")
    yield made
    made.close()


def test_tasks_are_asked_for_as_there_is_room() -> None:
    asked: list[int] = []
    done: dict[int, Any] = {}
    ahead: list[int] = []

    def made() -> Iterator[FanoutTask]:
        for number, task in enumerate(adding(4)):
            asked.append(number)
            yield task

    def note(number: int, result: Any) -> None:
        done[number] = result
        ahead.append(len(asked) - len(done))

    run_local(made(), 2, note)
    assert done == {0: 1, 1: 2, 2: 3, 3: 4}
    assert max(ahead) <= 1


def test_every_process_knows_its_place() -> None:
    found: list[int] = []
    run_local(
        [FanoutTask(tasks.slot, (), 5.0)] * 2, 2, lambda _, slot: found.append(slot), first_slot=5
    )
    assert sorted(found) == [5, 6]


def test_what_is_raised_where_results_arrive_ends_what_is_running(mark: Mark) -> None:
    class Enough(Exception):
        pass

    def done(_: int, result: Any) -> None:
        mark.wait_until_here()
        raise Enough

    with pytest.raises(Enough):
        run_local(
            [FanoutTask(tasks.hold, (str(mark.path),), 600.0), FanoutTask(tasks.add, (1, 2), 5.0)],
            2,
            done,
        )
    mark.wait_until_gone()


def test_a_task_ends_with_the_process_that_wants_its_result(tmp_path: Path, mark: Mark) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, script, mark.path], env=environment())
    try:
        mark.wait_until_here(lambda: parent.poll() is None)
        parent.kill()
        mark.wait_until_gone()
    finally:
        parent.kill()
        parent.wait(PATIENCE)


def test_an_interrupt_is_told_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spreading, "run_local", interrupted)
    assert spread([], Workers(), lambda *_: None) == INTERRUPTED


def test_nothing_is_begun_when_the_time_is_up() -> None:
    waiting = iter(enumerate(adding(3)))
    assert [number for number, _ in startable(waiting, 2, None)] == [0, 1]
    assert list(startable(waiting, 2, time.monotonic() - 1)) == []
    assert [number for number, _ in startable(waiting, 2, time.monotonic() + 60)] == [2]
