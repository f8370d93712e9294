"""What came of `stress trace conform`, for people: plain text that a terminal or a mail can
hold."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import zip_longest

from stress.trace.conform import Conformance, by_kind, not_recorded, reason_of
from stress.trace.conform_director import Difference
from stress.trace.conform_values import KINDS

SHOWN = 12
"""Differences that are shown in full."""
LINES = 8
"""Lines of a difference that are shown of each side."""
WIDTH = 58
"""Columns of the kernel's side."""


def render(result: Conformance, *, everything: bool = False) -> str:
    """The whole report; `everything` shows all differences, however many."""
    return "\n".join(_lines(result, everything)) + "\n"


def _lines(result: Conformance, everything: bool) -> Iterator[str]:
    yield from _head(result)
    yield from _operations(result)
    yield from _compared(result)
    yield from _explained(result)
    yield from _differences(result, everything)
    yield ""
    yield verdict_line(result)


def verdict_line(result: Conformance) -> str:
    """The verdict in one line."""
    return f"{result.verdict.name}  {result.origin}: {'; '.join(result.reasons)}"


def _head(result: Conformance) -> Iterator[str]:
    script = result.script
    yield (
        f"{result.origin}: {script.lines:,} lines, model of kernel {result.kernel}, "
        f"{script.vendor.name}"
    )
    for clue in script.clues:
        yield f"  {clue}"
    yield ""


def _operations(result: Conformance) -> Iterator[str]:
    yield f"{'operations':<16} {'all':>8} {'matched':>9} {'explained':>10} {'unexplained':>12}"
    for kind, counts in by_kind(result.outcomes).items():
        total = sum(counts.values())
        yield (
            f"{kind:<16} {total:>8,} {counts['matched']:>9,} {counts['explained']:>10,} "
            f"{counts['unexplained']:>12,}"
        )
    running = [outcome for outcome in result.outcomes if outcome.operation.running]
    bad = sum(outcome.difference is not None for outcome in running)
    if running:
        yield (
            f"{len(running):,} of them ran while others did: {1 - bad / len(running):.2%} of these "
            "match"
        )
    yield ""


def _compared(result: Conformance) -> Iterator[str]:
    counts = ", ".join(f"{count:,} {name}" for name, count in result.compared().items() if count)
    yield from textwrap.wrap(
        f"compared and equal: {counts or 'nothing'}", 110, subsequent_indent="  "
    )
    yield f"entries to the guest with every request served: {result.tally.entries:,}"
    if result.tally.hardware:
        yield f"leaves whose A or D bit the CPU had set in between: {result.tally.hardware:,}"
    unseen = result.tally.unseen
    missing = [
        f"{KINDS[kind]} ({kind}, the model: {unseen[kind]:,})"
        for kind in not_recorded(result.script)
        if unseen[kind]
    ]
    if missing:
        yield from textwrap.wrap(
            f"never in the recording, so not compared: {', '.join(missing)}",
            110,
            subsequent_indent="  ",
        )


def _explained(result: Conformance) -> Iterator[str]:
    for rule, count in result.tally.explained.items():
        reason, source = reason_of(rule)
        yield ""
        yield f"explained {count:,} times: {rule}"
        yield from textwrap.wrap(
            f"{reason} [{source}]", 106, initial_indent="  ", subsequent_indent="  "
        )


def _differences(result: Conformance, everything: bool) -> Iterator[str]:
    differences = [
        outcome.difference for outcome in result.outcomes if outcome.difference is not None
    ]
    shown = differences if everything else differences[:SHOWN]
    for difference in shown:
        yield ""
        yield from _difference(
            difference, len(difference.kernel) + len(difference.model) if everything else LINES
        )
    if len(shown) < len(differences):
        yield ""
        yield f"... and {len(differences) - len(shown)} more (--all shows them)"


def _difference(difference: Difference, limit: int) -> Iterator[str]:
    operation = difference.operation
    yield (
        f"DIFFERENCE at line {difference.line}: {operation.name}, task {operation.pid}, step "
        f"{operation.step!r}"
    )
    if difference.note:
        yield f"  {difference.note}"
    if difference.kernel or difference.model:
        yield f"  {'kernel':<{WIDTH}} model"
    rows = list(zip_longest(difference.kernel, difference.model, fillvalue="-"))
    for kernel, model in rows[:limit]:
        yield f"  {kernel:<{WIDTH}} {model}"
    if len(rows) > limit:
        yield f"  ... {len(rows) - limit} more"
