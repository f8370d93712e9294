"""Agents: tasks of a worker in processes of their own, results unharmed by what tasks print, and an
end with the batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from stress.runs.fanout import remote
from stress.runs.fanout.identity import Identity, differences, identity
from stress.runs.fanout.remote import RemoteBatch, VersionSkew, carry_out_at, check, end
from stress.runs.fanout.task import FanoutTask, Trouble
from stress.scenario.errors import StressError
from tests.marks import Mark
from tests.patience import PATIENCE
from tests.unit.stress.runs.fanout import tasks

HERE = "tcp://here:1"
ROOT = Path(__file__).parents[5]


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteBatch]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    made = RemoteBatch("stress-test", identity(), {HERE: 4})
    monkeypatch.setattr(remote, "_POOL", remote._Pool())
    yield made
    end(made.name)


def test_one_agent_carries_out_task_after_task(batch: RemoteBatch) -> None:
    def ask(call: Any, *args: Any) -> Any:
        return carry_out_at(HERE, batch, FanoutTask(call, args, 5.0))

    assert ask(tasks.add, 2, 3) == 5
    (agent,) = remote._POOL._idle[batch.name]
    assert ask(tasks.shout, "x" * 1000) == 1000
    assert ask(tasks.fail, "oops") == Trouble("ValueError: oops")
    assert ask(tasks.slot) == 4
    assert remote._POOL._idle[batch.name] == [agent]
    end(batch.name)
    assert agent.process.returncode is not None
    with pytest.raises(StressError, match="batch is over"):
        ask(tasks.add, 2, 3)


def test_the_end_of_a_batch_ends_what_is_running(batch: RemoteBatch, tmp_path: Path) -> None:
    mark = Mark(tmp_path / "mark")
    found: list[Any] = []
    task = FanoutTask(tasks.hold, (str(mark.path),), 600.0)
    asking = threading.Thread(target=lambda: found.append(carry_out_at(HERE, batch, task)))
    asking.start()
    mark.wait_until_here(asking.is_alive)
    end(batch.name)
    mark.wait_until_gone()
    mark.close()
    asking.join(PATIENCE)
    assert found == [Trouble("the agent that carried it out ended with exit code -9")]


def test_a_worker_with_other_sources_is_refused_by_name(batch: RemoteBatch) -> None:
    wanted = evolve(batch, identity=evolve(batch.identity, sources="0" * 64))
    (problem,) = check(wanted)
    assert "with other sources" in problem
    with pytest.raises(VersionSkew, match=f"{HERE}: tdp-stress .* with other sources"):
        carry_out_at(HERE, wanted, FanoutTask(tasks.add, (1, 1), 5.0))


def test_the_same_program_has_nothing_to_complain_of(batch: RemoteBatch, tmp_path: Path) -> None:
    file = tmp_path / "idea.py"
    file.write_text("VARIANT = 1\n")
    wanted = evolve(batch, identity=identity((str(file),)))
    assert check(wanted) == ()
    file.write_text("VARIANT = 2\n")
    assert [text.split(" (")[0] for text in check(wanted)] == [f"another {file}"]
    file.unlink()
    assert check(wanted) == (
        f"no file {file}: variant files must be at the same place on every machine",
    )


def test_everything_that_decides_is_compared() -> None:
    here = Identity("1.0", "a" * 64, "CPython 3.11.7", False, (("attrs", "23.2"), ("rich", "13.7")))
    there = Identity("1.0", "a" * 64, "CPython 3.13.1", True, (("attrs", "24.1"),))
    assert list(differences(here, here)) == []
    assert list(differences(here, there)) == [
        "CPython 3.13.1, here it is CPython 3.11.7",
        "a free-threaded build of Python, here it is a GIL one",
        "attrs 24.1, here it is 23.2",
        "rich not installed, here it is 13.7",
    ]
    assert list(differences(here, evolve(here, version="1.1", sources="b" * 64))) == [
        "tdp-stress 1.1, here it is 1.0"
    ]
    assert list(differences(here, evolve(here, sources="b" * 64))) == [
        "tdp-stress 1.0 with other sources (bbbbbbbbbbbb, here aaaaaaaaaaaa)"
    ]
