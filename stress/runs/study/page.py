"""The page of a study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from stress.report import run_page
from stress.report.charts import LEFT, RIGHT, WIDTH, Chart, Scale, Tick, line_chart
from stress.runs.study.answer import Crossover
from stress.runs.study.study_record import StoredCell, StudyRecord


def page(record: StudyRecord) -> str:
    """The page of a study: what a delete costs along each axis, and where policies cross."""
    point = [
        cell
        for policy in record.policies
        for cell in record.cells
        if cell.policy == policy and cell.place == record.point
    ]
    return run_page.page("study.html", data=record, charts=tuple(_axes(record)), point=point)


def _axes(record: StudyRecord) -> Iterator[Chart]:
    """A chart an axis: the cost of a delete by policy, with intervals and crossovers."""
    cells = {(cell.policy, json.dumps(cell.place, sort_keys=True)): cell for cell in record.cells}
    for axis, values in record.axes.items():
        if not all(isinstance(value, int | float) for value in values) or len(values) < 2:
            continue
        found = {
            policy: [
                cells.get((policy, json.dumps({**record.point, axis: value}, sort_keys=True)))
                for value in values
            ]
            for policy in record.policies
        }
        present = {
            policy: each for policy, each in found.items() if any(cell is not None for cell in each)
        }
        crossings = [each for each in record.crossovers if each.axis == axis]
        yield _axis(axis, values, present, crossings)


def _axis(
    axis: str,
    values: Sequence[float],
    found: Mapping[str, Sequence[StoredCell | None]],
    crossings: Sequence[Crossover],
) -> Chart:
    log = min(values) > 0 and max(values) / min(values) >= 10
    scale = Scale(min(values), max(values), LEFT + 12, WIDTH - RIGHT - 8, log=log)
    return line_chart(
        f"axis-{axis.replace('.', '-')}",
        f"Along {axis}",
        "A delete by policy, in microseconds; uprights are 95 % intervals.",
        (axis, "us a delete"),
        values,
        [
            (policy, [None if cell is None else cell.cost_us[0] for cell in cells])
            for policy, cells in found.items()
        ],
        x_scale=scale,
        x_ticks=tuple(Tick(scale.at(value), f"{value:,g}") for value in values),
        x_label=lambda value: f"{value:g}",
        label=lambda value: f"{value:,.0f}",
        log=True,
        intervals=[
            [None if cell is None else cell.cost_us[1:] for cell in cells]
            for cells in found.values()
        ],
        notes=[
            (each.at, f"{each.policy}: {each.at:.3g}") for each in crossings if each.at is not None
        ],
    )
