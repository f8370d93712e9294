"""Results in one line: filters, moments, and how a user names a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stress.results.kinds import find, kind_of
from stress.results.listing import Filter, ListedResult, chosen, moment
from stress.scenario.errors import ResultError
from tests.stored import keep_exploration, keep_run, keep_selftest

NOW = 1_795_348_800.0  # 2026-11-22T12:00:00Z


def entry(number: int = 1, **changes: Any) -> ListedResult:
    usual: dict[str, Any] = {
        "directory": f"2026-11-{number:02}T12-00-00Z-quick-s{number}-abcdef",
        "kind": "run",
        "name": "quick",
        "verdict": "PASS",
        "status": "finished",
        "seed": number,
        "started": f"2026-11-{number:02}T12:00:00Z",
        "wall_s": 1.0,
        "findings": 0,
        "design": "",
        "told": "",
        "version": "0.1.0",
        "python": "3.11.7",
        "gil_enabled": True,
    }
    return ListedResult(**(usual | changes))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", "2026-11-15T12:00:00Z"),
        ("90m", "2026-11-22T10:30:00Z"),
        ("30s", "2026-11-22T11:59:30Z"),
        ("12h", "2026-11-22T00:00:00Z"),
        ("2w", "2026-11-08T12:00:00Z"),
        ("999999w", "1970-01-01T00:00:00Z"),
        ("2026-11-20", "2026-11-20T00:00:00Z"),
        ("2026-11-20 08:30", "2026-11-20T08:30:00Z"),
        ("2026-11-20T08:30:01Z", "2026-11-20T08:30:01Z"),
        ("2026-13-20", None),
        ("2026-02-30", None),
        ("7", None),
        ("d", None),
        ("-7d", None),
        ("yesterday", None),
    ],
)
def test_moments(text: str, expected: str | None) -> None:
    assert moment(text, NOW) == expected


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Filter(), [1, 2, 3, 4]),
        (Filter(names=("full",)), [2]),
        (Filter(names=("q*",)), [1, 3, 4]),
        (Filter(names=("full", "*-s4-*")), [2, 4]),
        (Filter(verdicts=("FAIL",)), [3]),
        (Filter(kinds=("selftest",)), [4]),
        (Filter(since="2026-11-03T12:00:00Z"), [3, 4]),
        (Filter(before="2026-11-03T12:00:00Z"), [1, 2]),
        (Filter(names=("quick",), verdicts=("PASS",), before="2026-11-02T00:00:00Z"), [1]),
    ],
)
def test_filters(wanted: Filter, numbers: list[int]) -> None:
    entries = [entry(4, kind="selftest"), entry(2, name="full"), entry(3, verdict="FAIL"), entry(1)]
    assert [each.seed for each in chosen(entries, wanted)] == numbers


def test_the_newest_come_last_and_may_be_all_that_is_wanted() -> None:
    entries = [entry(number) for number in (2, 3, 1)]
    assert [each.seed for each in chosen(entries, Filter(), 2)] == [2, 3]
    assert chosen(entries, Filter(), 0) == ()
    assert len(chosen(entries, Filter(), 9)) == 3


# Names.


def test_a_result_is_found_by_its_path_its_name_its_beginning_or_as_the_latest(
    tmp_path: Path,
) -> None:
    run, tested = keep_run(tmp_path), keep_selftest(tmp_path)
    assert find(str(run), Path("elsewhere")) == (run, "run")
    assert find(run.name, tmp_path) == (run, "run")
    assert find(run.name[:-2], tmp_path) == (run, "run")
    assert find("latest", tmp_path)[1] == "selftest"
    assert find("latest", tmp_path)[0].resolve() == tested


def test_a_beginning_that_several_have_names_them(tmp_path: Path) -> None:
    names = {keep_run(tmp_path).name, keep_exploration(tmp_path).name}
    with pytest.raises(ResultError, match="beginning of 2 results") as caught:
        find("20", tmp_path)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("what", ["nothing", "", "../.."])
def test_what_there_is_not_says_where_to_look(tmp_path: Path, what: str) -> None:
    keep_run(tmp_path / "results")
    with pytest.raises(ResultError, match=r"stress results list|holds no result"):
        find(what, tmp_path / "results")


def test_a_directory_without_a_result_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert kind_of(tmp_path / "empty") is None
    with pytest.raises(ResultError, match=r"run\.json, explore\.json, selftest\.json"):
        find("empty", tmp_path)
