"""The index: always what the directories say, whatever becomes of its file, and whoever writes
beside us."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import psutil
import pytest
from attrs import evolve

from stress.results import index
from stress.results.index import INDEX
from stress.results.known_kills import known_kills
from stress.results.listing import ListedResult
from stress.results.run_record import RUN_FORMAT
from stress.scenario.errors import ResultError
from tests.records import record
from tests.stored import exploration, keep_exploration, keep_run, keep_selftest, selftest


def listed(results: Path) -> dict[str, ListedResult]:
    return {entry.directory: entry for entry in index.entries(results)}


def test_every_kind_is_listed(tmp_path: Path) -> None:
    run = keep_run(tmp_path, record(findings=2)).name
    explored = keep_exploration(tmp_path, exploration(failures=1)).name
    tested = keep_selftest(tmp_path, selftest(alive=True)).name
    found = listed(tmp_path)
    assert {
        name: (entry.kind, entry.verdict, entry.findings, entry.seed)
        for name, entry in found.items()
    } == {
        run: ("run", "FAIL", 2, 7),
        explored: ("exploration", "FAIL", 1, 1),
        tested: ("selftest", "FAIL", 3, 1),
    }
    assert [found[name].started for name in (run, explored, tested)] == [
        f"2026-11-22T{hour}:00:00Z" for hour in (12, 12, 13)
    ]
    assert found[run].python == "3.11.7"


def test_the_second_time_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        keep_run(tmp_path)
    before = listed(tmp_path)
    reads: list[str] = []
    read = index._read
    monkeypatch.setattr(
        index,
        "_read",
        lambda directory, kind: reads.append(directory.name) or read(directory, kind),
    )
    assert listed(tmp_path) == before
    assert reads == []
    fresh = keep_run(tmp_path).name
    assert listed(tmp_path).keys() == {*before, fresh}
    assert reads == [fresh]


def test_a_thousand_results_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directories share a small file, which is quick to make; the index knows them by their
    names."""
    whole = json.loads(
        RUN_FORMAT.text(evolve(record(), scenario={}, counters={}, latencies=(), lock_orders=()))
    )
    (tmp_path / "shared").write_text(json.dumps(whole))
    for number in range(1000):
        directory = f"{tmp_path}/2026-11-22T12-00-00Z-quick-s{number}-{number:06x}"
        os.mkdir(directory)
        os.link(tmp_path / "shared", f"{directory}/run.json")
    assert len(listed(tmp_path)) == 1000
    monkeypatch.setattr(
        index, "_read", lambda directory, kind: pytest.fail(f"{directory} is read again")
    )
    assert len(listed(tmp_path)) == 1000


def test_what_changes_and_what_goes_is_noticed(tmp_path: Path) -> None:
    changing, going, staying = (keep_run(tmp_path) for _ in range(3))
    assert len(listed(tmp_path)) == 3
    index_of = changing / "run.json"
    fresh = changing / "new"
    fresh.write_text(RUN_FORMAT.text(evolve(record(), verdict="HARNESS_ERROR")))
    times = index_of.stat()
    os.utime(fresh, ns=(times.st_atime_ns, times.st_mtime_ns))
    fresh.replace(index_of)
    shutil.rmtree(going)
    found = listed(tmp_path)
    assert found.keys() == {changing.name, staying.name}
    assert found[changing.name].verdict == "HARNESS_ERROR"


def spoil_text(path: Path) -> None:
    path.write_bytes(b"this is no database, but it is long enough to be looked at" * 10)


def spoil_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    path.write_bytes(bytes(data))


def spoil_version(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.execute("DROP TABLE results")
    connection.execute("CREATE TABLE results (something TEXT)")
    connection.commit()
    connection.close()


def spoil_rows(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE results SET entry = '[1, 2]'")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("spoil", [Path.unlink, spoil_text, spoil_pages, spoil_version, spoil_rows])
def test_an_index_that_is_missing_damaged_or_from_elsewhere_is_made_anew(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    for _ in range(3):
        keep_run(tmp_path)
    before = listed(tmp_path)
    spoil(tmp_path / INDEX)
    assert listed(tmp_path) == before
    assert listed(tmp_path) == before


def test_a_place_where_no_index_can_be_is_listed_without_one(tmp_path: Path) -> None:
    keep_run(tmp_path)
    (tmp_path / INDEX).mkdir()
    assert len(listed(tmp_path)) == 1
    assert (tmp_path / INDEX).is_dir()


def test_an_interpreter_without_sqlite_lists_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_run(tmp_path)
    monkeypatch.setattr(index, "CAN_REMEMBER", False)
    assert len(listed(tmp_path)) == 1
    assert not (tmp_path / INDEX).exists()


def test_damage_is_listed_and_not_hidden(tmp_path: Path) -> None:
    cut, other = keep_run(tmp_path), keep_selftest(tmp_path)
    (cut / "run.json").write_text('{"schema": "tdp-stress/run/1", "id": ')
    (other / "selftest.json").write_text("[]")
    found = listed(tmp_path)
    assert {entry.verdict for entry in found.values()} == {"damaged"}
    assert "run.json is damaged" in found[cut.name].told
    assert (found[cut.name].name, found[cut.name].seed) == ("quick", 7)
    assert found[cut.name].started[:4] == cut.name[:4]


def test_what_is_no_result_is_left_out(tmp_path: Path) -> None:
    kept = keep_run(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "run.json").write_text("{}")
    assert (tmp_path / "latest").is_symlink()
    assert listed(tmp_path).keys() == {kept.name}


def test_a_directory_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="--results"):
        index.entries(tmp_path / "nothing")


def test_a_run_that_goes_on_and_one_that_was_killed_are_told_apart(tmp_path: Path) -> None:
    mine = psutil.Process()
    going = keep_run(
        tmp_path, evolve(record(), status="running", pid=mine.pid, pid_started=mine.create_time())
    )
    killed = keep_run(tmp_path, evolve(record(), status="running", pid=mine.pid, pid_started=1.0))
    assert [listed(tmp_path)[path.name].status for path in (going, killed)] == ["running", "killed"]


# Many at once.

WRITERS = 4
ROUNDS = 6


def write_and_list(results: Path, start: Barrier, number: int) -> None:
    """One of many processes: keeps a run and lists, then deletes one of its own and lists, all at
    the same time as the others."""
    mine: list[Path] = []
    for _ in range(ROUNDS):
        start.wait(300)
        mine.append(keep_run(results, evolve(record(), seed=number)))
        assert mine[-1].name in listed(results)
        start.wait(300)
        if len(mine) > 2:
            shutil.rmtree(mine.pop(0))
        assert {path.name for path in mine} <= listed(results).keys()
    start.wait(300)


def test_processes_that_write_list_and_delete_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.stored"])
    start = context.Barrier(WRITERS)
    writers = [
        context.Process(target=write_and_list, args=(tmp_path, start, number))
        for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(600)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    there = {path.name for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()}
    assert len(there) == 2 * WRITERS
    assert listed(tmp_path).keys() == there
    connection = sqlite3.connect(tmp_path / INDEX)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = connection.execute("SELECT directory FROM results")
    assert {json.loads(name) for (name,) in rows} == there
    connection.close()


@pytest.mark.parametrize(
    "text",
    [
        '"run_s": 1' + "0" * 400,
        '"run_s": Infinity',
        '"seed": Infinity',
        '"seed": NaN',
        '"pid": -1',
        '"pid": 1' + "0" * 400,
        '"findings": 7',
        '"environment": []',
    ],
)
def test_one_bad_result_hides_no_other(tmp_path: Path, text: str) -> None:
    good, bad = keep_run(tmp_path), keep_run(tmp_path)
    content = (bad / "run.json").read_text()
    key = text.partition(":")[0]
    (bad / "run.json").write_text(content.replace(key + ":", text + ', "unused":', 1))
    for _ in range(2):
        found = listed(tmp_path)
        assert found.keys() == {good.name, bad.name}
        assert found[good.name].verdict == "PASS"


def test_a_pipe_in_the_place_of_a_result_is_none(tmp_path: Path) -> None:
    """Nobody writes to it: reading it would never end."""
    good = keep_run(tmp_path)
    for name in ("run.json", "selftest.json"):
        (tmp_path / f"pipe-{name}").mkdir()
        os.mkfifo(tmp_path / f"pipe-{name}" / name)
    assert listed(tmp_path).keys() == {good.name}
    assert known_kills(tmp_path, "threads", "quick", 1.0) is None


def test_a_directory_whose_name_is_no_utf_8_is_listed_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep_run(tmp_path)
    odd = path.rename(path.with_name(path.name + os.fsdecode(b"\xff")))
    assert listed(tmp_path).keys() == {odd.name}
    monkeypatch.setattr(index, "_read", None)
    assert listed(tmp_path).keys() == {odd.name}
    monkeypatch.undo()
    shutil.rmtree(odd)
    assert listed(tmp_path) == {}
