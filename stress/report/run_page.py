"""The HTML reports: each one offline page, a pure function of what is stored."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

import jinja2
import markupsafe
from attrs import frozen

from mmu.numbers.oracles import RULES
from stress.observe.histograms import NUMBERS, OPERATIONS
from stress.observe.rules_judged import JUDGED
from stress.report import certificate_text, lock_order, run_charts
from stress.report.run_console import GROUPS
from stress.results.run_record import RunRecord, StoredFinding
from stress.results.store import was_killed
from stress.scenario.counters import COUNTERS

_GROUPED = {name for _, names in GROUPS for name in names}
ALL_GROUPS = (*GROUPS, ("others", tuple(name for name in COUNTERS if name not in _GROUPED)))
"""Every counter, those of the console first."""
FULL = 40
"""Findings that a page shows with all that is known of them."""
LISTED = 400
"""Further ones in a line each; the rest is in the JSON only, so that a page opens at once whatever
a run has found."""


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
_environment.filters.update(
    us=_microseconds, mib=_mebibytes, thousands=lambda number: f"{number:,}"
)
_script: Final = (resources.files("stress.report") / "templates" / "report.js").read_text("utf-8")
_digest: Final = base64.b64encode(hashlib.sha256(_script.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; script-src 'sha256-{_digest}'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
"""What a page may do: run its own script and nothing else, load nothing, send nothing."""
_environment.globals.update(
    shade=run_charts.shade,
    highest=run_charts.highest,
    script=markupsafe.Markup(_script),  # noqa: S704 - a file of ours
    policy=markupsafe.Markup(POLICY),  # noqa: S704 - made of that file
)


@frozen
class Findings:
    """What a page shows of a run's findings: in full, in a line each, and how many there are of
    each rule."""

    full: Sequence[StoredFinding]
    listed: Sequence[StoredFinding]
    unlisted: int
    by_rule: Sequence[tuple[str, int]]

    @classmethod
    def of(cls, found: Sequence[StoredFinding]) -> Findings:
        """The first ones are the best evidence: what follows may be a consequence."""
        by_rule = Counter(finding.rule for finding in found).most_common()
        return cls(
            found[:FULL], found[FULL : FULL + LISTED], max(0, len(found) - FULL - LISTED), by_rule
        )


def page(template: str, **content: Any) -> str:
    """A template filled in."""
    return _environment.get_template(template).render(**content)


def render(record: RunRecord, *, timeline: bool = False) -> str:
    """The page of a run; `timeline` says whether there is a timeline beside it."""
    certificate = record.certified
    orders = lock_order.orders_of(record.lock_orders)
    return page(
        "run.html",
        run=record,
        killed=was_killed(record),
        groups=ALL_GROUPS,
        counters=COUNTERS,
        operations=OPERATIONS,
        numbers=NUMBERS,
        rules=RULES,
        judged=JUDGED,
        findings=Findings.of(record.findings),
        certificate=certificate,
        certificate_heading=certificate_text.heading(certificate.verdict),
        certificate_parts=tuple(certificate_text.parts(certificate)),
        latency_charts=tuple(run_charts.latency_charts(record)),
        time_charts=(*run_charts.time_charts(record), *run_charts.resource_charts(record)),
        orders=orders,
        graph=lock_order.graph_of(orders),
        lives=run_charts.life_lines(record.roots),
        states=run_charts.state_matrix(record.coverage),
        orders_seen=run_charts.order_matrix(record.coverage),
        timeline=timeline,
    )
