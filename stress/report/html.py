"""The HTML report: one offline page, a pure function of the stored run."""

from __future__ import annotations

import jinja2

from mmu.report import RULES
from stress.observe.counters import COUNTERS
from stress.observe.histograms import NUMBERS, OPERATIONS
from stress.observe.judged import JUDGED
from stress.report import certificate_text
from stress.report.certificate import certificate_of
from stress.report.console import GROUPS, verdict_line
from stress.results.record import RunRecord
from stress.results.store import was_killed


def _microseconds(ns: int) -> str:
    return f"{ns / 1e3:,.1f}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f}"


_environment = jinja2.Environment(
    loader=jinja2.PackageLoader("stress.report", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(us=_microseconds, mib=_mebibytes, thousands=lambda number: f"{number:,}")


def render(record: RunRecord) -> str:
    """The page."""
    certificate = certificate_of(record)
    return _environment.get_template("run.html").render(
        run=record,
        killed=was_killed(record),
        verdict_line=verdict_line(record),
        groups=GROUPS,
        counters=COUNTERS,
        operations=OPERATIONS,
        numbers=NUMBERS,
        rules=RULES,
        memory=_memory_path(record),
        certificate=certificate,
        certificate_heading=certificate_text.heading(certificate.verdict),
        certificate_parts=tuple(certificate_text.parts(certificate)),
        judged=JUDGED,
    )


def _memory_path(record: RunRecord) -> str:
    """Resident memory over time as the points of an SVG polyline in a 600 x 80 box."""
    samples = record.resources
    if len(samples) < 2:
        return ""
    end = max(sample.at_s for sample in samples) or 1
    top = max(sample.rss for sample in samples) or 1
    return " ".join(f"{600 * sample.at_s / end:.1f},{80 - 76 * sample.rss / top:.1f}" for sample in samples)
