"""The pages of explorations, selftests, studies and comparisons: each of the plain data that is
stored."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cattrs
from attrs import frozen

from mmu.numbers.oracles import RULES
from stress.observe.rules_judged import JUDGED
from stress.report import certificate_text
from stress.report.charts import LEFT, RIGHT, WIDTH, Chart, Scale, Tick, line_chart
from stress.report.run_charts import Matrix
from stress.report.run_page import page
from stress.results.certificate import Certificate
from stress.scenario.counters import COUNTERS
from stress.scenario.errors import ResultError

EXPLANATION = "explanation-{}.json"

Data = Mapping[str, Any]


@frozen
class Failing:
    """A failure of an exploration: what is stored of it, its file, and the explanation of its
    schedule where there is one. `first` are the page tables before, `pictures` those after a step
    as (mark, line): "-" went, "+" came."""

    data: Data
    file: str
    story: Data | None
    first: Sequence[str]
    pictures: Mapping[int, Sequence[tuple[str, str]]]


def explored(data: Data, directory: Path | None = None) -> str:
    """The page of an exploration; explanations are read from its directory."""
    certificate = cattrs.structure(data["certificate"], Certificate)
    return page(
        "explore.html",
        data=data,
        certificate_heading=certificate_text.heading(certificate.verdict),
        certificate_parts=tuple(certificate_text.parts(certificate)),
        failures=tuple(
            _failing(each, number, directory) for number, each in enumerate(data["failures"], 1)
        ),
        charts=tuple(_search_charts(data)),
        counters=COUNTERS,
        judged=JUDGED,
    )


def selftest(data: Data) -> str:
    """The page of a selftest: the kill matrix."""
    return page("selftest.html", data=data, by_rule=_by_rule(data["mutants"]))


def study(data: Data) -> str:
    """The page of a study: what a delete costs along each axis, and where policies cross."""
    point = [
        cell
        for policy in data["policies"]
        for cell in data["cells"]
        if cell["policy"] == policy and cell["place"] == data["point"]
    ]
    return page("study.html", data=data, charts=tuple(_axes(data)), point=point)


def compared(data: Data) -> str:
    """The page of a comparison."""
    return page("compare.html", data=data)


def _read(file: Path) -> Data:
    try:
        data: Data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{file} cannot be read ({error}); the directory is damaged") from None
    return data


# Explorations.


def _failing(data: Data, number: int, directory: Path | None) -> Failing:
    file = f"schedule-{number}.json"
    story_file = directory / EXPLANATION.format(number) if directory is not None else None
    story = _read(story_file) if story_file is not None and story_file.is_file() else None
    shown = str(directory / file) if directory is not None else file
    if story is None:
        return Failing(data, shown, None, (), {})
    pictures = story["pictures"]
    return Failing(
        data, shown, story, pictures[0]["lines"] if pictures else (), dict(_changes(pictures))
    )


def _changes(pictures: Sequence[Data]) -> Iterator[tuple[int, tuple[tuple[str, str], ...]]]:
    """Each picture as what has changed since the one before; none where nothing has."""
    for before, after in itertools.pairwise(pictures):
        lines = [
            (line[0], line[2:])
            for line in difflib.ndiff(before["lines"], after["lines"])
            if line[0] != "?"
        ]
        if any(mark != " " for mark, _ in lines):
            yield after["step"], tuple(lines)


def _search_charts(data: Data) -> Iterator[Chart]:
    """How many distinct orders of events were met after how many schedules."""
    curve = data["curve"]
    if len(curve) >= 2:
        yield line_chart(
            "saturation",
            "Distinct orders of events",
            "By schedules run: where the curve flattens, new schedules repeat what was seen.",
            ("schedules", "orders of events"),
            [schedules for schedules, _ in curve],
            [("orders of events", [classes for _, classes in curve])],
            x_label=lambda value: f"{value:,.0f}",
            label=lambda value: f"{value:,.0f}",
        )


# Selftests.


def _by_rule(rows: Sequence[Data]) -> Matrix:
    """Mutant and engine by rule: in how many attempts it fired."""
    named = {rule for row in rows for rule in (*row["expects"], *row["fired"])}
    rules = tuple(rule for rule in RULES if rule in named)
    counts = tuple(
        (f"{row['name']}, {row['engine']}", tuple(row["fired"].get(rule, 0) for rule in rules))
        for row in rows
    )
    return Matrix(rules, counts, ())


# Studies.


def _axes(data: Data) -> Iterator[Chart]:
    """A chart an axis: the cost of a delete by policy, with intervals and crossovers."""
    cells = {
        (cell["policy"], json.dumps(cell["place"], sort_keys=True)): cell for cell in data["cells"]
    }
    for axis, values in data["axes"].items():
        if not all(isinstance(value, int | float) for value in values) or len(values) < 2:
            continue
        found = {
            policy: [
                cells.get((policy, json.dumps({**data["point"], axis: value}, sort_keys=True)))
                for value in values
            ]
            for policy in data["policies"]
        }
        present = {
            policy: each for policy, each in found.items() if any(cell is not None for cell in each)
        }
        crossings = [
            each for each in data["crossovers"] if each["axis"] == axis and each["at"] is not None
        ]
        yield _axis(axis, values, present, crossings)


def _axis(
    axis: str,
    values: Sequence[float],
    found: Mapping[str, Sequence[Data | None]],
    crossings: Sequence[Data],
) -> Chart:
    name = axis.rpartition(".")[2].replace("_", " ")
    log = min(values) > 0 and max(values) / min(values) >= 10
    scale = Scale(min(values), max(values), LEFT + 12, WIDTH - RIGHT - 8, log=log)
    return line_chart(
        f"axis-{axis.replace('.', '-')}",
        f"Along {axis}",
        "A delete by policy, in microseconds; uprights are 95 % intervals.",
        (name, "us a delete"),
        values,
        [
            (policy, [None if cell is None else cell["cost_us"][0] for cell in cells])
            for policy, cells in found.items()
        ],
        x_scale=scale,
        x_ticks=tuple(Tick(scale.at(value), f"{value:,g}") for value in values),
        x_label=lambda value: f"{value:g}",
        label=lambda value: f"{value:,.0f}",
        log=True,
        intervals=[
            [None if cell is None else (cell["cost_us"][1], cell["cost_us"][2]) for cell in cells]
            for cells in found.values()
        ],
        notes=[(each["at"], f"{each['policy']}: {each['at']:.3g}") for each in crossings],
    )
