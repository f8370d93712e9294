"""The result of `stress trace check` as text and as data."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stress.trace.checker import CheckResult
from stress.trace.facts import Check
from stress.trace.ledger import CheckTally
from stress.trace.record import recorded
from stress.trace.summary import ROWS

MOST_SHOWN = 10
"""Splats on the console; --json has all that were kept."""


def verdict_line(result: CheckResult) -> str:
    """The verdict in one line."""
    return (
        f"{result.judgement.verdict.name}  {result.origin}: {'; '.join(result.judgement.reasons)}"
    )


def text(result: CheckResult, width: int = 100) -> str:
    """Everything for the console: what was read, what was checked, what broke, what happened, the
    verdict."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False, highlight=False)
    counts = result.counts
    console.print(
        Text(f"{result.origin}: {counts.lines:,} lines, {counts.events:,} events{_losses(result)}")
    )
    console.print(Text(f"SPTE layout: kernel {result.layout}, {result.vendor}"))
    for clue in result.clues:
        console.print(Text(f"  line {clue.line}: {clue.text}"))
    console.print()
    console.print(_checks(result))
    console.print(_provable(result))
    for line, why in result.gaps[:MOST_SHOWN]:
        console.print(Text(f"line {line}: {why}"))
    for line, why in result.notes[:MOST_SHOWN]:
        console.print(Text(f"line {line}: passed over: {why}"))
    console.print(_happened(result))
    for report in result.reports[:MOST_SHOWN]:
        console.print(Text(report.render()), soft_wrap=True)
    more = (
        len(result.reports) - MOST_SHOWN + result.dropped_reports
        if len(result.reports) > MOST_SHOWN
        else result.dropped_reports
    )
    if more > 0:
        console.print(Text(f"and {more} more violations (--json lists them)"))
    console.print(Text(verdict_line(result)), soft_wrap=True)
    return out.getvalue()


def _losses(result: CheckResult) -> str:
    counts = result.counts
    losses = [
        (counts.lost, "lost by the kernel"),
        (counts.overwritten, "overwritten"),
        (counts.damaged, "damaged lines"),
        (counts.disordered, "places out of order"),
    ]
    return "".join(f", {count:,} {what}" for count, what in losses if count)


def state_of(check: Check, tally: CheckTally, missing: dict[str, str]) -> str:
    """One word for what a check has come to."""
    if tally.broken:
        return "BROKEN"
    if check.name in missing:
        return "not recorded"
    if tally.unsure:
        return "unsure"
    return "held" if tally.held else "nothing to check"


def _checks(result: CheckResult) -> Table:
    table = Table(
        "check",
        "oracle",
        "state",
        "times",
        "what was checked",
        title="checks",
        title_justify="left",
    )
    table.columns[3].justify = "right"
    for check in result.checks:
        tally = result.tallies[check.name]
        state = state_of(check, tally, result.missing)
        held = sorted(tally.held.items(), key=lambda item: -item[1])
        what = "\n".join(f"{count:,} {what}" for what, count in held)
        if check.name in result.missing:
            what = f"needs {result.missing[check.name]}"
        for fact, unknown in tally.unsure.items():
            what += f"\n{unknown.count:,} cannot tell: {fact} (line {unknown.line})"
        times = tally.broken if tally.broken else sum(tally.held.values())
        table.add_row(check.name, check.rule, state, f"{times:,}", what.strip())
    return table


def _provable(result: CheckResult) -> Table:
    """Which rules this recording can prove, beside what each level of `stress trace record`
    could."""
    table = Table(
        "rule", "here", "1", "2", "3", title="what can be proved, here and at each level",
        title_justify="left",
    )  # fmt: skip
    levels = [recorded(level) for level in (1, 2, 3)]
    for check in result.checks:
        for rule in check.rules:
            cells = ["yes" if not rule.missing(have) else "-" for have in levels]
            lacks = rule.missing(set(result.have))
            here = "yes" if not lacks else f"not seen: {', '.join(fact.name for fact in lacks)}"
            table.add_row(f"{rule.oracle} {rule.title}", here, *cells)
    return table


def _happened(result: CheckResult) -> Table:
    table = Table("figure", "count", "what", title="what happened", title_justify="left")
    table.columns[1].justify = "right"
    for name, count in result.summary.items():
        table.add_row(name, f"{count:,}", ROWS[name])
    return table


def as_data(result: CheckResult) -> dict[str, Any]:
    """The result as JSON data."""
    counts = result.counts
    return {
        "file": result.origin,
        "verdict": result.judgement.verdict.name,
        "reasons": list(result.judgement.reasons),
        "lines": counts.lines,
        "events": counts.events,
        "lost": counts.lost,
        "overwritten": counts.overwritten,
        "damaged": counts.damaged,
        "out_of_order": counts.disordered,
        "not_looked_at": dict(counts.skipped.most_common()),
        "layout": {
            "kernel": result.layout,
            "vendor": result.vendor,
            "evidence": [
                {"line": clue.line, "shows": clue.text, "kernels": sorted(clue.kernels)}
                for clue in result.clues
            ],
        },
        "checks": {check.name: _check_data(result, check) for check in result.checks},
        "happened": result.summary,
        "gaps": [{"line": line, "why": why} for line, why in result.gaps],
        "notes": [{"line": line, "why": why} for line, why in result.notes],
        "violations": [
            {
                "line": line,
                "rule": report.rule,
                "code": report.code,
                "headline": report.headline,
                "source": report.source,
                "task": report.task,
                "lines": [row for part in report.sections for row in part.lines],
            }
            for line, report in zip(result.lines, result.reports, strict=True)
        ],
        "violations_not_listed": result.dropped_reports,
    }


def _check_data(result: CheckResult, check: Check) -> dict[str, Any]:
    tally = result.tallies[check.name]
    return {
        "oracle": check.rule,
        "title": check.title,
        "state": state_of(check, tally, result.missing),
        "held": dict(tally.held),
        "broken": tally.broken,
        "cannot_tell": [
            {"fact": fact, "times": unknown.count, "line": unknown.line}
            for fact, unknown in tally.unsure.items()
        ],
        "rules": [
            {
                "code": rule.code,
                "oracle": rule.oracle,
                "title": rule.title,
                "needs": [fact.name for fact in rule.needs],
                "missing": [fact.name for fact in rule.missing(set(result.have))],
            }
            for rule in check.rules
        ],
        "needs": result.missing.get(check.name, ""),
    }
