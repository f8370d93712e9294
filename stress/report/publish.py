"""Every report of a stored result, written beside it: each is a pure function of the JSON file."""

from __future__ import annotations

from stress.report import cases, console, explored, hgrm, html, junit, markdown
from stress.results.exploration import ExplorationRecord
from stress.results.record import RunRecord
from stress.results.store import CONSOLE_TXT, REPORT_HTML, RunDirectory

SUMMARY_MD = "summary.md"
JUNIT_XML = "junit.xml"
LATENCY_HLOG = "latency.hlog"
LATENCIES = "latency"
"""Folder of the percentile tables, where they are asked for."""


def publish_run(directory: RunDirectory, record: RunRecord) -> None:
    """The reports of a run."""
    directory.write_text(CONSOLE_TXT, console.summary(record))
    directory.write_text(REPORT_HTML, html.render(record))
    directory.write_text(SUMMARY_MD, markdown.of_run(record))
    directory.write_text(JUNIT_XML, junit.render(cases.of_run(record)))
    directory.write_text(LATENCY_HLOG, hgrm.log(record))


def publish_exploration(directory: RunDirectory, record: ExplorationRecord) -> None:
    """The reports of an exploration."""
    directory.write_text(CONSOLE_TXT, explored.summary(record, directory.path))
    directory.write_text(SUMMARY_MD, markdown.of_exploration(record))
    directory.write_text(JUNIT_XML, junit.render(cases.of_exploration(record)))


def publish_percentiles(directory: RunDirectory, record: RunRecord) -> None:
    """The latencies of a run as percentile tables, one file an operation."""
    (directory.path / LATENCIES).mkdir(exist_ok=True)
    folder = RunDirectory(directory.path / LATENCIES)
    for latency in record.latencies:
        folder.write_text(f"{latency.operation}.hgrm", hgrm.percentiles(latency))
