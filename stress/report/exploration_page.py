"""The page of an exploration."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from stress.observe.rules_judged import JUDGED
from stress.report import certificate_text
from stress.report.charts import Chart, line_chart
from stress.report.run_page import page
from stress.results.exploration_record import ExplorationRecord, StoredFailure
from stress.scenario.counters import COUNTERS
from stress.search.explain_data import Explanation, Picture


@frozen
class ShownFailure:
    """A failure of an exploration: what is stored of it, its file, and the explanation of its
    schedule if there is one. `first` are the page tables before, `pictures` those after a step as
    (mark, line): "-" went, "+" came."""

    data: StoredFailure
    file: Path
    story: Explanation | None
    first: Sequence[str]
    pictures: Mapping[int, Sequence[tuple[str, str]]]


def render(record: ExplorationRecord, directory: Path, stories: Mapping[int, Explanation]) -> str:
    """The page of an exploration stored in `directory`; `stories` explain failures, by their number
    from 1 on."""
    certificate = record.certificate
    return page(
        "explore.html",
        data=record,
        certificate_heading=certificate_text.heading(certificate.verdict),
        certificate_parts=tuple(certificate_text.parts(certificate)),
        failures=tuple(
            _shown(failure, directory / failure.file, stories.get(number))
            for number, failure in enumerate(record.failures, 1)
        ),
        charts=tuple(_search_charts(record)),
        counters=COUNTERS,
        judged=JUDGED,
    )


def _shown(failure: StoredFailure, file: Path, story: Explanation | None) -> ShownFailure:
    pictures = story.pictures if story is not None else ()
    first = pictures[0].lines if pictures else ()
    return ShownFailure(failure, file, story, first, dict(_changes(pictures)))


def _changes(pictures: Sequence[Picture]) -> Iterator[tuple[int, tuple[tuple[str, str], ...]]]:
    """Each picture as its differences from the one before; none for a picture without any."""
    for before, after in itertools.pairwise(pictures):
        lines = [
            (line[0], line[2:])
            for line in difflib.ndiff(before.lines, after.lines)
            if line[0] != "?"
        ]
        if any(mark != " " for mark, _ in lines):
            yield after.step, tuple(lines)


def _search_charts(record: ExplorationRecord) -> Iterator[Chart]:
    """How many distinct orders of events were met after how many schedules."""
    if len(record.curve) >= 2:
        yield line_chart(
            "saturation",
            "Distinct orders of events",
            "By schedules run: where the curve flattens, new schedules repeat what was seen.",
            ("schedules", "orders of events"),
            [schedules for schedules, _ in record.curve],
            [("orders of events", [classes for _, classes in record.curve])],
            x_label=lambda value: f"{value:,.0f}",
            label=lambda value: f"{value:,.0f}",
        )
