"""The store: what is written can be read, at any moment, and damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from stress.results.run_record import RUN_FORMAT
from stress.results.store import RUN_JSON, RunDirectory, was_killed
from stress.scenario.errors import ResultError
from tests.records import record


def test_a_record_survives_the_round_trip() -> None:
    original = record(findings=2)
    assert RUN_FORMAT.read(RUN_FORMAT.text(original), "here") == original


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, "one", 1)
    second = RunDirectory.create(tmp_path, "two", 2)
    assert (tmp_path / "latest").resolve() == second.path.resolve()
    assert "two-s2" in second.path.name


def test_a_directory_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="--results"):
        RunDirectory.create(tmp_path / "file", "x", 1)


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "x", 1)
    directory.write(record())
    directory.write(evolve(record(), status="finished"))
    assert directory.read().status == "finished"
    assert sorted(path.name for path in directory.path.iterdir()) == [RUN_JSON]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "has schema None"),
        ('{"schema": "tdp-stress/run/99"}', "this version reads schema 'tdp-stress/run/2'"),
        ('{"schema": "tdp-stress/run/2", "id": 3}', "does not fit"),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, reason: str) -> None:
    directory = RunDirectory.create(tmp_path, "x", 1)
    directory.write_text(RUN_JSON, text)
    with pytest.raises(ResultError, match=reason):
        directory.read()


def test_a_missing_run_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="results/latest"):
        RunDirectory(tmp_path / "nothing").read()


def test_a_run_whose_process_is_gone_was_killed() -> None:
    assert was_killed(evolve(record(), status="running", pid=1, pid_started=1.0))
    assert not was_killed(evolve(record(), status="finished", pid=1, pid_started=1.0))
