"""A stored result of any kind, ready to be told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jinja2
from attrs import frozen

from stress.commands import selftest as selftest_command
from stress.report import cases, exploration_console, run_console
from stress.report.publish import publish_exploration, publish_run, publish_study
from stress.results import exploration_record
from stress.results.kinds import FILES, Kind, read_text
from stress.results.run_record import to_json
from stress.results.serialise import parsed
from stress.results.store import RunDirectory
from stress.scenario.errors import ResultError
from stress.selftest import cases as selftest_cases
from stress.selftest import stored as selftests

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
    place = RunDirectory(directory)
    if kind == "run":
        return _run(place)
    text, where = read_text(directory, FILES[kind]), str(directory / FILES[kind])
    return {"exploration": _exploration, "selftest": _selftest, "study": _study}[kind](
        place, text, where
    )


def _run(place: RunDirectory) -> Loaded:
    record = place.read()
    return Loaded(
        "run",
        place,
        publish=lambda: publish_run(place, record),
        summary=lambda: run_console.summary(record),
        as_json=lambda: to_json(record),
        suite=lambda: cases.of_run(record),
    )


def _exploration(place: RunDirectory, text: str, where: str) -> Loaded:
    record = exploration_record.from_json(text, where)
    return Loaded(
        "exploration",
        place,
        publish=lambda: publish_exploration(place, record),
        summary=lambda: exploration_console.summary(record, place.path),
        as_json=lambda: json.dumps(exploration_record.as_data(record), indent=1) + "\n",
        suite=lambda: cases.of_exploration(record),
    )


def _selftest(place: RunDirectory, text: str, where: str) -> Loaded:
    record = selftests.from_json(text, where)
    return Loaded(
        "selftest",
        place,
        publish=lambda: selftest_command.publish(place, record),
        summary=lambda: selftest_command.console_text(selftests.selftest_of(record)),
        as_json=lambda: json.dumps(selftests.as_data(record), indent=1) + "\n",
        suite=lambda: selftest_cases.of_selftest(record),
    )


def _study(place: RunDirectory, text: str, where: str) -> Loaded:
    """A study's page is made of its JSON; the rest is told by what it has written, or made of its
    runs by `stress study --resume`."""
    data = parsed(text, where)

    def cannot() -> NoReturn:
        hint = f"stress study --config FILE --resume {place.path}"
        raise ResultError(f"{place.path} is a study, whose reports are made of its runs: {hint}")

    return Loaded(
        "study",
        place,
        lambda: publish_study(place, data),
        lambda: read_text(place.path, "study.md"),
        lambda: text,
        cannot,
    )
