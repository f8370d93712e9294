"""The store: what is written can be read, at any moment, and damage is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attrs import evolve

from stress.results.known import Known
from stress.results.run_record import RUN_FORMAT
from stress.results.store import NEW, RUN_JSON, RunDirectory, keep, was_killed
from stress.results.verdict import ExitCode, Verdict
from stress.scenario.errors import ResultError
from tests.records import record


def test_a_record_survives_the_round_trip() -> None:
    original = record(findings=2)
    assert RUN_FORMAT.read(RUN_FORMAT.text(original), "here") == original


def test_latest_points_to_the_newest_run(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, "one", 1).write(record())
    second = RunDirectory.create(tmp_path, "two", 2)
    assert not second.path.exists()
    second.write(record())
    assert (tmp_path / "latest").resolve() == second.path.resolve()
    assert "two-s2" in second.path.name


def test_a_directory_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="--results"):
        RunDirectory.create(tmp_path / "file", "x", 1)
    directory = RunDirectory.create(tmp_path / "there", "x", 1)
    (tmp_path / "there").rmdir()
    (tmp_path / "there").write_text("")
    with pytest.raises(ResultError, match="--results"):
        directory.write(record())


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


def test_a_directory_appears_with_its_first_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in between leaves nothing that would be taken for a result."""
    seen: list[list[str]] = []
    rename = Path.rename

    def watched(self: Path, target: Path) -> Path:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    directory = RunDirectory.create(tmp_path, "x", 1)
    assert list(tmp_path.iterdir()) == []
    directory.write(record())
    ((hidden,),) = seen
    assert hidden.startswith(NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == [directory.path.name, "latest"]
    assert directory.read() == record()


def test_whatever_cannot_be_kept_the_rest_is_and_the_verdict_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = RunDirectory(tmp_path / "gone")
    known = Known(bytearray(1 << 14))

    def reports() -> None:
        raise KeyError("a bug")

    for verdict, kept in (("PASS", "HARNESS_ERROR"), ("FAIL", "FAIL")):
        known.clear()
        worst, trouble = keep(
            directory, Verdict[verdict], ("run.json", "{}\n"), reports, {"other": b"x"}, known
        )
        assert worst is Verdict[kept]
        assert known.verdict is Verdict[kept]
        for part in ("run.json: No such file", "run.json is in", "other: No such", "KeyError"):
            assert part in trouble
    saved = [path.read_text() for path in tmp_path.glob("stress-*/run.json")]
    assert saved == ["{}\n", "{}\n"]


def test_what_is_stored_is_printable(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, "x", 1)
    directory.write_text("console.txt", "a\x1b[2Kb\u202ec\ud800\td\n")
    assert (directory.path / "console.txt").read_text() == "a\\x1b[2Kb\\u202ec\\ud800\td\n"


def test_what_is_known_outlives_a_process() -> None:
    known = Known(bytearray(1 << 14))
    known.share()
    assert (known.code, known.verdict, known.directory) == (None, None, None)
    assert known.code_or(ExitCode.INTERNAL) is ExitCode.INTERNAL
    pid = os.fork()
    if pid == 0:
        known.judged(Verdict.FAIL)
        known.judged(Verdict.PASS)
        known.keeps_in(Path("/a/b\udcff"))
        os._exit(0)
    os.waitpid(pid, 0)
    assert (known.code, known.verdict, known.directory) == (None, Verdict.FAIL, Path("/a/b\udcff"))
    assert known.code_or(ExitCode.INTERNAL) is ExitCode.FAIL
    known.ends_with(0)
    assert known.code == 0
