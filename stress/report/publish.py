"""Every report of a stored result, written beside it: each is a pure function of the JSON file."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path

from stress.report import (
    cases,
    exploration_console,
    exploration_page,
    hlog,
    junit,
    markdown,
    run_console,
    run_page,
)
from stress.results.exploration_record import ExplorationRecord
from stress.results.run_record import RunRecord
from stress.results.schedule_file import EXPLANATION_FORMAT, EXPLANATION_JSON
from stress.results.store import CONSOLE_TXT, REPORT_HTML, RunDirectory
from stress.results.trace_events import TIMELINE
from stress.scenario.errors import ResultError
from stress.search.explain_data import Explanation

SUMMARY_MD = "summary.md"
JUNIT_XML = "junit.xml"
LATENCY_HLOG = "latency.hlog"


def publish_run(directory: RunDirectory, record: RunRecord) -> None:
    """The reports of a run."""
    directory.write_text(CONSOLE_TXT, run_console.summary(record))
    directory.write_text(
        REPORT_HTML, run_page.render(record, timeline=(directory.path / TIMELINE).is_file())
    )
    directory.write_text(SUMMARY_MD, markdown.of_run(record))
    directory.write_text(JUNIT_XML, junit.render(cases.of_run(record)))
    directory.write_text(LATENCY_HLOG, hlog.log(record))


def publish_exploration(
    directory: RunDirectory, record: ExplorationRecord, stories: Mapping[int, Explanation]
) -> None:
    """Write the reports of an exploration; `stories` explain failures, by their number from 1
    on."""
    directory.write_text(CONSOLE_TXT, exploration_console.summary(record, directory.path))
    directory.write_text(REPORT_HTML, exploration_page.render(record, directory.path, stories))
    directory.write_text(SUMMARY_MD, markdown.of_exploration(record))
    directory.write_text(JUNIT_XML, junit.render(cases.of_exploration(record)))


def stories_in(directory: Path, record: ExplorationRecord) -> dict[int, Explanation]:
    """The stored explanations of a stored exploration's failures."""
    numbered = (
        (number, directory / EXPLANATION_JSON.format(number))
        for number in range(1, len(record.failures) + 1)
    )
    return {number: EXPLANATION_FORMAT.load(path) for number, path in numbered if path.is_file()}


def publish_timeline(directory: RunDirectory, target: Path) -> None:
    """Copy a run's timeline, compressed if the name ends in .gz; raises `ResultError` where there
    is none."""
    source = directory.path / TIMELINE
    if not source.is_file():
        raise ResultError(
            f"there is no {source}: a run that was killed, or had observe.timeline = false, has no "
            "timeline"
        )
    try:
        content = source.read_bytes()
        target.write_bytes(content if target.suffix == ".gz" else gzip.decompress(content))
    except (OSError, EOFError, zlib.error) as error:
        raise ResultError(f"{source} cannot be written to {target}: {error}") from None
