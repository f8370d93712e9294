"""The last selftest: the newest that can be read counts, and what cannot be understood is left
out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stress.results.known_kills import Kill, KnownKills, known_kills

MUTANTS: list[Any] = [
    {
        "name": "stale-check-skipped",
        "engine": "threads",
        "scenario": "BUSTED/stale-check-skipped",
        "killed": 3,
        "of": 3,
        "median_s": 0.5,
    },
    {
        "name": "put-before-zap",
        "engine": "threads",
        "scenario": "quick",
        "killed": 3,
        "of": 3,
        "median_s": 12.0,
    },
    {
        "name": "rare-one",
        "engine": "threads",
        "scenario": "quick",
        "killed": 1,
        "of": 3,
        "median_s": None,
    },
    {
        "name": "stale-check-skipped",
        "engine": "explore",
        "scenario": "explore/fault-vs-delete",
        "killed": 3,
        "of": 3,
        "median_s": 0.1,
    },
]


def leave(results: Path, name: str, data: object, age: int = 0) -> Path:
    """A result directory with a selftest, `age` seconds old."""
    path = results / name / "selftest.json"
    path.parent.mkdir(parents=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def selftest(*mutants: Any, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "mutants": list(mutants or MUTANTS),
        "date": "2026-11-22",
        "version": "0.1.0",
        **changes,
    }


def seen(results: Path, engine: str = "threads", seconds: float = 10.0) -> KnownKills:
    known = known_kills(results, engine, "quick", seconds)
    assert known is not None
    return known


def test_where_there_is_none_nothing_is_known(tmp_path: Path) -> None:
    assert known_kills(tmp_path / "nowhere", "threads", "quick", 10.0) is None
    assert known_kills(tmp_path, "threads", "quick", 10.0) is None


def test_a_run_sees_its_own_engine_scenario_and_time(tmp_path: Path) -> None:
    leave(tmp_path, "one", selftest())
    known = seen(tmp_path)
    assert (known.tried, known.killed, known.slowest_s, known.within) == (3, 2, 12.0, 1)
    assert known.here == (
        Kill("put-before-zap", "threads", "quick", 3, 3, 12.0),
        Kill("rare-one", "threads", "quick", 1, 3, None),
    )
    assert (known.date, known.version, known.directory) == ("2026-11-22", "0.1.0", "one")


def test_the_controlled_engine_may_be_called_explore(tmp_path: Path) -> None:
    leave(tmp_path, "one", selftest())
    known = seen(tmp_path, "controlled")
    assert (known.tried, known.killed, known.here) == (1, 1, ())


def test_the_newest_that_can_be_read_counts(tmp_path: Path) -> None:
    leave(tmp_path, "old", selftest(date="old"), age=100)
    leave(tmp_path, "new", selftest(date="new"), age=50)
    leave(tmp_path, "damaged", "{", age=10)
    leave(tmp_path, "other", selftest(date="other", schema=2), age=5)
    leave(tmp_path, "odd", [1], age=4)
    leave(tmp_path, "odder", {"schema": 1, "mutants": {}}, age=3)
    assert seen(tmp_path).date == "new"


def test_the_link_to_the_latest_run_is_no_directory_of_its_own(tmp_path: Path) -> None:
    leave(tmp_path, "one", selftest())
    (tmp_path / "latest").symlink_to("one")
    assert seen(tmp_path).directory == "one"


@pytest.mark.parametrize(
    "entry",
    [
        None,
        3,
        {},
        {"name": "x", "engine": "abacus", "killed": 1, "of": 1},
        {"name": "x", "engine": "threads"},
    ],
)
def test_an_entry_that_cannot_be_understood_is_left_out(tmp_path: Path, entry: object) -> None:
    leave(tmp_path, "one", selftest(entry, MUTANTS[0]))
    assert seen(tmp_path).tried == 1


def test_what_was_missed_once_is_not_caught(tmp_path: Path) -> None:
    leave(tmp_path, "one", selftest({**MUTANTS[0], "killed": 2}, MUTANTS[1]))
    assert (seen(tmp_path).tried, seen(tmp_path).killed) == (2, 1)


def test_what_was_not_tried_is_neither_caught_nor_missed(tmp_path: Path) -> None:
    leave(
        tmp_path,
        "one",
        selftest(MUTANTS[0], {**MUTANTS[1], "of": 0, "killed": 0, "median_s": None}),
    )
    assert (seen(tmp_path).tried, seen(tmp_path).killed) == (1, 1)


def test_a_selftest_with_a_rule_off_says_nothing_of_the_whole_harness(tmp_path: Path) -> None:
    leave(tmp_path, "one", selftest(date="whole", off=[]), age=10)
    leave(tmp_path, "two", selftest(date="blind", off=["O1"]))
    assert seen(tmp_path).date == "whole"
