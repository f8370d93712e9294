"""The way of one run and of one explored failure: a certificate is made once, and what is explained
does not take the way over the disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from attrs import evolve

from stress.commands.command_line import invoke
from stress.results.certificate import certify
from stress.results.run_record import RUN_FORMAT, Uncertified
from stress.results.schedule_file import EXPLANATION_FORMAT, read
from stress.results.store import RunDirectory
from stress.results.verdict import ExitCode
from stress.runs.explore_store import EXPLAINING_TRIES
from stress.runs.replay import explain_stored
from tests.records import record
from tests.stored import keep_exploration, keep_run

CONFIGS = Path(__file__).parents[4] / "configs"
BROKEN = ["explore", "--config", CONFIGS / "explore" / "fault-vs-delete.toml"]
BROKEN += ["--set", 'vm.variants=["table-freed-at-once"]', "--schedules", 200, "--seed", 1]


def calls(function: Callable[..., Any], *arguments: object) -> tuple[int, int]:
    """How often the main thread calls `function` while it carries out a command, and the command's
    exit code."""
    code: CodeType = function.__code__
    count = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code is code

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        done = invoke(list(map(str, arguments)))
    finally:
        sys.setprofile(before)
    return count, done


def test_a_run_has_its_certificate_made_once(tmp_path: Path) -> None:
    command = ["run", "--config", CONFIGS / "quick.toml", "--set", "budget.duration_s=0.2"]
    made, code = calls(certify, *command, "--seed", 1, "--results", tmp_path)
    assert made == 1
    stored = RunDirectory(tmp_path / "latest").read()
    assert stored.certified.verdict == stored.verdict == ExitCode(code).name


def test_an_exploration_has_its_certificate_made_once(tmp_path: Path) -> None:
    assert calls(certify, *BROKEN, "--results", tmp_path) == (1, ExitCode.FAIL)


def test_a_stored_certificate_is_not_made_again(tmp_path: Path) -> None:
    for directory in (keep_run(tmp_path), keep_exploration(tmp_path)):
        assert calls(certify, "report", directory) == (0, ExitCode.PASS)


def test_the_certificate_of_a_killed_run_is_made_once_when_it_is_read(tmp_path: Path) -> None:
    going_on = evolve(record(), status="running", verdict="INCONCLUSIVE", certificate=Uncertified())
    killed = keep_run(tmp_path, going_on)
    before = (killed / "run.json").read_text()
    assert calls(certify, "report", killed) == (1, ExitCode.PASS)
    assert "what this run has done" in (killed / "console.txt").read_text()
    assert (
        (killed / "run.json").read_text() == before == RUN_FORMAT.text(RunDirectory(killed).read())
    )


def test_what_is_explained_is_the_failure_and_not_its_file(tmp_path: Path) -> None:
    assert calls(read, *BROKEN, "--results", tmp_path) == (0, ExitCode.FAIL)
    directory = tmp_path / "latest"
    from_file = explain_stored(read(directory / "schedule-1.json"), tries=EXPLAINING_TRIES)
    assert EXPLANATION_FORMAT.load(directory / "explanation-1.json") == from_file
