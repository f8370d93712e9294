"""Pruning: only what was chosen goes, never what is going on, what was renamed, or what stress did
not make."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
from attrs import evolve

from stress.results import index, prune
from stress.results.listing import Filter, ListedResult, chosen
from stress.results.store import NEW
from stress.scenario.errors import ResultError
from tests.records import record
from tests.stored import keep_run


def everything(results: Path) -> tuple[ListedResult, ...]:
    return chosen(index.entries(results), Filter())


def dated(results: Path, day: int, **changes: object) -> Path:
    """A run that was started on a day of November."""
    path = keep_run(results, evolve(record(), started=f"2026-11-{day:02}T12:00:00Z", **changes))
    return path.rename(results / f"2026-11-{day:02}{path.name[10:]}")


def names(results: Path) -> set[str]:
    return {path.name for path in results.iterdir() if path.is_dir() and not path.is_symlink()}


def test_all_but_the_newest_go(tmp_path: Path) -> None:
    runs = [dated(tmp_path, day) for day in (3, 1, 2)]
    planned = prune.plan(tmp_path, everything(tmp_path), keep=1)
    assert [entry.directory for entry in planned.going] == [runs[1].name, runs[2].name]
    assert planned.spared == (("the newest", 1),)
    assert planned.total == sum(prune.size_of(run) for run in runs[1:]) > 1000
    assert names(tmp_path) == {run.name for run in runs}, "a plan deletes nothing"
    assert prune.carry_out(tmp_path, planned) == 2
    assert names(tmp_path) == {runs[0].name}


def test_a_run_that_goes_on_stays_and_so_does_one_that_wrote_just_now(tmp_path: Path) -> None:
    mine = psutil.Process()
    going = dated(tmp_path, 1, status="running", pid=mine.pid, pid_started=mine.create_time())
    elsewhere = dated(tmp_path, 2, status="running", pid=mine.pid, pid_started=1.0)
    planned = prune.plan(tmp_path, everything(tmp_path), keep=0)
    assert planned.going == ()
    assert planned.spared == (("going on", 2),)
    later = (elsewhere / "run.json").stat().st_mtime + prune.STILL_WRITING_S + 1
    planned = prune.plan(tmp_path, everything(tmp_path), keep=0, now=later)
    assert [entry.directory for entry in planned.going] == [elsewhere.name]
    assert prune.carry_out(tmp_path, planned) == 1
    assert names(tmp_path) == {going.name}


def test_the_example_and_what_somebody_has_renamed_stay(tmp_path: Path) -> None:
    for name in ("example", "before-the-fix", "2026-11-22-quick"):
        keep_run(tmp_path).rename(tmp_path / name)
    planned = prune.plan(tmp_path, everything(tmp_path), keep=0)
    assert planned.going == ()
    assert planned.spared[0][1] == 3


def test_latest_leads_to_the_newest_that_is_left(tmp_path: Path) -> None:
    old, new = dated(tmp_path, 1), dated(tmp_path, 2)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to(new.name)
    (newest,) = [entry for entry in everything(tmp_path) if entry.directory == new.name]
    prune.carry_out(tmp_path, prune.plan(tmp_path, (newest,), keep=0))
    assert (tmp_path / "latest").resolve() == old
    prune.carry_out(tmp_path, prune.plan(tmp_path, everything(tmp_path), keep=0))
    assert not (tmp_path / "latest").is_symlink()
    assert names(tmp_path) == set()


def test_what_somebody_else_has_pruned_already_is_not_counted(tmp_path: Path) -> None:
    gone, there = dated(tmp_path, 1), dated(tmp_path, 2)
    planned = prune.plan(tmp_path, everything(tmp_path), keep=0)
    shutil.rmtree(gone)
    assert prune.carry_out(tmp_path, planned) == 1
    assert not there.exists()


def test_a_prune_that_was_killed_is_tidied_up_and_not_listed(tmp_path: Path) -> None:
    kept = dated(tmp_path, 1)
    dated(tmp_path, 2).rename(tmp_path / f"{prune.GOING}left")
    assert [entry.directory for entry in everything(tmp_path)] == [kept.name]
    prune.sweep(tmp_path)
    assert names(tmp_path) == {kept.name}


def test_what_may_not_be_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = dated(tmp_path, 1)
    planned = prune.plan(tmp_path, everything(tmp_path), keep=0)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ResultError, match=f"{run.name}: Permission denied; 0 were deleted"):
        prune.carry_out(tmp_path, planned)
    assert run.exists()


def test_a_result_whose_process_is_there_stays(tmp_path: Path) -> None:
    """Its reports come after its last record."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        started = psutil.Process(other.pid).create_time()
        made = dated(tmp_path, 1, status="finished", pid=other.pid, pid_started=started)
        planned = prune.plan(tmp_path, everything(tmp_path), keep=0)
        assert planned.spared == (("going on", 1),)
        other.kill()
    planned = prune.plan(tmp_path, everything(tmp_path), keep=0)
    assert [entry.directory for entry in planned.going] == [made.name]


def test_what_was_killed_before_its_first_record_is_swept(tmp_path: Path) -> None:
    old, new = tmp_path / f"{NEW}1", tmp_path / f"{NEW}2"
    old.mkdir()
    new.mkdir()
    os.utime(old, (1, 1))
    assert everything(tmp_path) == ()
    prune.sweep(tmp_path)
    assert not old.exists()
    assert new.exists()
