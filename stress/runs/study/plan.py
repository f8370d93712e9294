"""What a study asks for: its file, and the runs that follow from it."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from mmu.export.policies import POLICIES
from stress.runs.study.costs import PRICES, Costs
from stress.scenario.errors import ConfigError, Problem
from stress.scenario.load import MOST_SECONDS, SECONDS, key_lines, load
from stress.scenario.names import nearest
from stress.scenario.types import Scenario

KEYS = (
    "title",
    "scenario",
    "policies",
    "seeds",
    "duration_s",
    "settings",
    "point",
    "axes",
    "costs",
)
Values = dict[str, Any]
MOST_SEEDS: Final = 100_000
MOST_US: Final = 1e12
"""The highest price, in microseconds: some days."""


@frozen
class Study:
    """A study's file. `settings` are set for every run, `point` is where the `axes` cross; all by
    dotted keys of scenarios."""

    name: str
    path: Path
    title: str
    scenario: Path
    policies: tuple[str, ...]
    seeds: int
    duration_s: float
    settings: Values = field(factory=dict)
    point: Values = field(factory=dict)
    axes: dict[str, tuple[Any, ...]] = field(factory=dict)
    costs: Costs = field(factory=Costs)


@frozen
class GridPoint:
    """A place in the grid: the values of all axes' keys."""

    values: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """A name for directories: the last part of each key with its value."""
        parts = ((key.rpartition(".")[2], value) for key, value in self.values)
        return "-".join(f"{_plain(key)}{_plain(value)}" for key, value in parts)


@frozen
class PlannedRun:
    """One run of a study."""

    place: GridPoint
    policy: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Where it is kept, below the study's directory."""
        return f"{self.place.name}/{self.policy}/s{self.seed}"


def _plain(value: object) -> str:
    """The text of a key or value as a part of a file's name; another one where it cannot be that as
    it is."""
    text = str(value)
    plain = re.sub(r"[^A-Za-z0-9_.+-]", "_", text).lstrip(".")
    if plain == text:
        return text
    return f"{plain}~{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:6]}"


def places(study: Study) -> list[GridPoint]:
    """Every place, each once: the point, and every value of every axis with the others at the
    point."""
    found = [GridPoint(tuple(study.point.items()))]
    for key, values in study.axes.items():
        found += [GridPoint(tuple({**study.point, key: value}.items())) for value in values]
    return list(dict.fromkeys(found))


def along(study: Study, axis: str) -> list[tuple[Any, GridPoint]]:
    """The places of one axis, in order."""
    return [
        (value, GridPoint(tuple({**study.point, axis: value}.items())))
        for value in study.axes[axis]
    ]


def planned(study: Study) -> Iterator[PlannedRun]:
    """Every run: seed by seed, so that an unfinished study has something of everything, and
    policies next to each other."""
    for seed in range(1, study.seeds + 1):
        for place in places(study):
            for policy in study.policies:
                yield PlannedRun(place, policy, seed, overrides(study, place, policy))


def overrides(study: Study, place: GridPoint, policy: str) -> tuple[str, ...]:
    """What is set on top of the scenario."""
    values = {
        **study.settings,
        **dict(place.values),
        "vm.policy": policy,
        "budget.duration_s": study.duration_s,
    }
    return (*(f"{key}={_toml(value)}" for key, value in values.items()), "obligations={}")


def scenario_of(study: Study, run: PlannedRun) -> Scenario:
    """The scenario of one run, with an obligation that something happened."""
    return load(study.scenario, (*run.overrides, "obligations.memslot_deletes=1"))


def read_study(path: Path, changes: Values | None = None) -> Study:
    """The study in `path`, with `changes` of its top-level keys; raises `ConfigError` with every
    problem."""
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            [
                Problem(
                    str(path),
                    "file",
                    str(error),
                    "a readable TOML study, such as configs/studies/keep-valid.toml",
                )
            ]
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([Problem(str(path), "syntax", str(error), "valid TOML")]) from None
    data.update(changes or {})
    places_of = {key: f"{path}:{line}" for key, line in key_lines(text).items()}
    problems = list(_problems(data, path, places_of))
    if problems:
        raise ConfigError(problems)
    study = Study(
        name=path.stem,
        path=path,
        title=data.get("title", ""),
        scenario=path.parent / data["scenario"],
        policies=tuple(data["policies"]),
        seeds=data["seeds"],
        duration_s=float(data["duration_s"]),
        settings=data.get("settings", {}),
        point=data.get("point", {}),
        axes={key: tuple(values) for key, values in data.get("axes", {}).items()},
        costs=Costs(**{name: float(value) for name, value in data.get("costs", {}).items()}),
    )
    for place in places(study):  # a wrong key shows with any policy
        scenario_of(
            study,
            PlannedRun(place, study.policies[0], 1, overrides(study, place, study.policies[0])),
        )
    return study


def _problems(data: Values, path: Path, places_of: dict[str, str]) -> Iterator[Problem]:
    def at(key: str, found: object, expected: str, hint: str = "") -> Problem:
        return Problem(places_of.get(key, str(path)), key, f"found {found!r}", expected, hint)

    yield from (
        at(key, key, f"one of {', '.join(KEYS)}", nearest(key, KEYS))
        for key in data
        if key not in KEYS
    )
    checks: tuple[tuple[str, Callable[[Any], Any], str], ...] = (
        (
            "scenario",
            lambda value: isinstance(value, str),
            "the path of a scenario, relative to the study",
        ),
        ("policies", lambda value: isinstance(value, list) and value, "a list of policies"),
        ("title", lambda value: isinstance(value, str | None), "a text"),
        (
            "seeds",
            lambda value: type(value) is int and 1 <= value <= MOST_SEEDS,
            f"a whole number from 1 to {MOST_SEEDS:,}",
        ),
        (
            "duration_s",
            lambda value: type(value) in (int, float) and 0 < value <= MOST_SECONDS,
            SECONDS,
        ),
        *(
            (key, lambda value: isinstance(value, dict), "a table")
            for key in ("settings", "point", "axes", "costs")
            if key in data
        ),
    )
    for key, holds, expected in checks:
        if not holds(data.get(key)):
            yield at(key, data.get(key), expected)
    for policy in data.get("policies") or () if isinstance(data.get("policies"), list) else ():
        if policy not in POLICIES:
            yield at("policies", policy, f"one of {', '.join(POLICIES)}", nearest(policy, POLICIES))
    yield from _grid_problems(data, at)


def _grid_problems(data: Values, at: Any) -> Iterator[Problem]:
    axes, point, costs = (
        {} if not isinstance(data.get(key, {}), dict) else data.get(key, {})
        for key in ("axes", "point", "costs")
    )
    for key, value in point.items():
        if not _is_scalar(value):
            yield at(f"point.{key}", value, "a number, a text, true or false")
    for key, values in axes.items():
        if (
            not isinstance(values, list)
            or len(values) < 2
            or not all(map(_is_scalar, values))
            or len(set(map(str, values))) < len(values)
        ):
            yield at(f"axes.{key}", values, "a list of two or more different values")
        if key not in point:
            yield at(f"axes.{key}", key, "a key that [point] has, too: there the axes cross")
    for name, value in costs.items():
        if name not in PRICES:
            yield at(f"costs.{name}", name, f"one of {', '.join(PRICES)}", nearest(name, PRICES))
        elif type(value) not in (int, float) or not 0 <= value <= MOST_US:
            yield at(f"costs.{name}", value, f"microseconds, from 0 to {MOST_US:g}")


def _is_scalar(value: object) -> bool:
    return isinstance(value, bool | int | float | str)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else str(value)
