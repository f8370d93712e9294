"""Shipped scenarios are found by their names, from anywhere."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from stress.scenario.shipped import configs_root, found

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("quick", "quick.toml"),
        ("quick.toml", "quick.toml"),
        ("configs/quick.toml", "quick.toml"),
        ("explore/two-vcpus", "explore/two-vcpus.toml"),
        ("fault-vs-delete", "explore/fault-vs-delete.toml"),
        ("put-before-zap", "BUSTED/put-before-zap.toml"),
        ("R22", "rfc-v1/R22-exported-zap-after-break.toml"),
    ],
)
def test_a_name_stands_for_the_shipped_scenario(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert found(Path(name)) == configs_root() / file


def test_a_file_of_the_user_s_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quick").write_text("")
    assert found(Path("quick")) == Path("quick")


@pytest.mark.parametrize("name", ["quik", "fault", "/quick", "BUSTED/quick", "rfc-v1"])
def test_what_stands_for_nothing_stays_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert found(Path(name)) == Path(name)


def test_of_two_with_one_name_it_is_the_one_that_lies_higher() -> None:
    names = [path.name for path in configs_root().rglob("*.toml")]
    (twice, *_) = (name for name in names if names.count(name) > 1)
    places = sorted(configs_root().rglob(twice), key=lambda place: len(place.parts))
    assert found(Path(twice)) == places[0] != places[1]


def test_every_folder_of_scenarios_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed = {
        Path(place).relative_to("share/tdp-stress/configs")
        for place in project["tool"]["setuptools"]["data-files"]
    }
    there = {path.parent.relative_to(configs_root()) for path in configs_root().rglob("*.toml")}
    assert there == installed
