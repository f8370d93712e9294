"""A stored result of any kind, ready to be told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jinja2
from attrs import frozen

from stress.commands import selftest as selftest_command
from stress.report import cases, exploration_console, run_console
from stress.report.publish import publish_exploration, publish_run, stories_in
from stress.results.exploration_record import EXPLORATION_FORMAT, EXPLORE_JSON
from stress.results.kinds import FILES, Kind
from stress.results.run_record import RUN_FORMAT, completed
from stress.results.serialise import read_text
from stress.results.store import REPORT_HTML, RunDirectory
from stress.runs.study.page import page
from stress.runs.study.study_record import STUDY_FORMAT, STUDY_JSON
from stress.scenario.errors import ResultError
from stress.selftest.cases import of_selftest
from stress.selftest.stored import SELFTEST_FORMAT, SELFTEST_JSON, selftest_of

UNSHOWABLE = (
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    jinja2.TemplateError,
)
"""What a report may raise for a record whose parts have the right types, and make no sense."""


@frozen
class Loaded:
    """One result: `publish` writes its reports, the others tell it. They raise `ResultError` for a
    record that makes no sense."""

    kind: Kind
    directory: RunDirectory
    publish: Callable[[], None]
    summary: Callable[[], str]
    as_json: Callable[[], str]
    suite: Callable[[], cases.Suite]

    def guarded(self, *parts: Callable[[], object]) -> None:
        """Call each of `parts`, and turn what they raise for damage into a `ResultError`."""
        try:
            for part in parts:
                part()
        except UNSHOWABLE as error:
            place = self.directory.path
            raise ResultError(
                f"{place} holds a {self.kind} that cannot be shown ({error!r}); {FILES[self.kind]} "
                "is damaged"
            ) from None


def load(directory: Path, kind: Kind) -> Loaded:
    """The stored result in a directory; raises `ResultError` for damage."""
    loaders = {"run": _run, "exploration": _exploration, "selftest": _selftest, "study": _study}
    return loaders[kind](RunDirectory(directory))


def _run(place: RunDirectory) -> Loaded:
    stored = place.read()
    record = completed(stored)
    return Loaded(
        "run",
        place,
        publish=lambda: publish_run(place, record),
        summary=lambda: run_console.summary(record),
        as_json=lambda: RUN_FORMAT.text(stored),
        suite=lambda: cases.of_run(record),
    )


def _exploration(place: RunDirectory) -> Loaded:
    record = EXPLORATION_FORMAT.load(place.path / EXPLORE_JSON)
    return Loaded(
        "exploration",
        place,
        publish=lambda: publish_exploration(place, record, stories_in(place.path, record)),
        summary=lambda: exploration_console.summary(record, place.path),
        as_json=lambda: EXPLORATION_FORMAT.text(record),
        suite=lambda: cases.of_exploration(record),
    )


def _selftest(place: RunDirectory) -> Loaded:
    record = SELFTEST_FORMAT.load(place.path / SELFTEST_JSON)
    return Loaded(
        "selftest",
        place,
        publish=lambda: selftest_command.publish(place, record),
        summary=lambda: selftest_command.console_text(selftest_of(record)),
        as_json=lambda: SELFTEST_FORMAT.text(record),
        suite=lambda: of_selftest(record),
    )


def _study(place: RunDirectory) -> Loaded:
    """A study's page is made of its JSON; its other reports are what it has written, or made of its
    runs by `stress study --resume`."""
    record = STUDY_FORMAT.load(place.path / STUDY_JSON)

    def cannot() -> NoReturn:
        hint = f"stress study --config FILE --resume {place.path}"
        raise ResultError(f"{place.path} is a study, whose reports are made of its runs: {hint}")

    return Loaded(
        "study",
        place,
        publish=lambda: place.write_text(REPORT_HTML, page(record)),
        summary=lambda: read_text(place.path / "study.md"),
        as_json=lambda: STUDY_FORMAT.text(record),
        suite=cannot,
    )
