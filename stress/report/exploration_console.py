"""The console summary of a stored exploration."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from stress.report import certificate_text
from stress.results.exploration_record import ExplorationRecord, StoredFailure
from stress.search.strategies import EVERYTHING, is_exhaustive


def summary(record: ExplorationRecord, directory: Path | None) -> str:
    """The whole summary as text; `directory` is where the schedule files are."""
    return "\n".join(lines(record, directory)) + "\n"


def verdict_line(record: ExplorationRecord) -> str:
    """The verdict in one line."""
    expected = ""
    if record.expected_rules:
        seen = record.expected_seen
        expected = (
            f"; expected {' or '.join(record.expected_rules)}: "
            f"{'seen ' + ', '.join(seen) if seen else 'NOT seen'}"
        )
    return (
        f"{record.verdict}  {record.name}, {record.strategy}, seed {record.seed}: "
        f"{'; '.join(record.reasons)}{expected}"
    )


def lines(record: ExplorationRecord, directory: Path | None = None) -> Iterator[str]:
    """The summary, line by line."""
    vm = record.scenario["vm"]
    yield f"{record.name}: {record.scenario.get('title', '')}".rstrip(": ")
    variants = f", variants {', '.join(record.variants)}" if record.variants else ""
    yield f"policy {vm['policy']}, profile {vm['profile']}, kernel {vm['kernel']}{variants}"
    memory = ", memory order x86-TSO" if record.scenario["explore"]["memory"] == "tso" else ""
    yield f"strategy {record.strategy}, seed {record.seed}, {processes(record)}{memory}"
    yield ""
    rate = max(record.wall_s, 1e-9)
    per_schedule = record.steps / max(1, record.schedules)
    yield (
        f"schedules  {record.schedules:,} in {record.wall_s:.2f} s, {record.schedules / rate:,.0f} "
        "a second"
    )
    yield (
        f"steps      {record.steps:,}, {record.steps / rate:,.0f} a second, {per_schedule:,.0f} a "
        "schedule"
    )
    yield f"classes    {record.classes:,} distinct orders of events"
    if record.states:
        full = (
            ", as many as explore.states allows: later ones were not" if record.states_full else ""
        )
        yield (
            f"states     {record.states:,} remembered{full}; {record.cut:,} schedules were cut "
            "where an earlier one had been"
        )
    yield from _coverage(record)
    for name, counts in record.members.items():
        yield (
            f"  {name:<10} {counts.get('schedules', 0):>9,} schedules "
            f"{counts.get('classes', 0):>9,} new classes"
        )
    yield ""
    for failure in record.failures:
        yield from _failure(failure, directory)
    yield verdict_line(record)
    yield from certificate_text.lines(record.certificate)


def processes(record: ExplorationRecord) -> str:
    """How many processes there were, and why not more."""
    count, asked = record.jobs, record.asked.jobs
    why = f" (not {asked}: {record.strategy} cannot be shared)" if count < asked else ""
    return f"{count} process{'es' if count > 1 else ''}{why}"


def how_found(failure: StoredFailure) -> str:
    """By which strategy, how soon, and how long the schedule is."""
    how = (
        "a race that did no harm in it"
        if failure.predicted
        else f"{failure.steps} steps, {failure.turns} turns"
    )
    return (
        f"found by {failure.strategy} in schedule {failure.after_schedules:,}, after "
        f"{failure.after_s:.2f} s: {how}"
    )


def _coverage(record: ExplorationRecord) -> Iterator[str]:
    if record.exhausted:
        what = (
            "every order of events"
            if record.strategy in EVERYTHING
            else f"everything within the bound of {record.strategy}"
        )
        yield f"coverage   EXHAUSTED: {what}; {record.cut:,} schedules were given up as repetitions"
        return
    if is_exhaustive(record.strategy):
        left = (
            "unknown"
            if record.remaining is None
            else f"about {record.remaining:,.0f} (an estimate that tends to grow)"
        )
        yield f"coverage   not exhausted; schedules left: {left}"
    else:
        yield (
            f"coverage   {record.unseen_mass:.1%} of what such schedules meet was never seen "
            "(Good-Turing)"
        )
    points = record.curve[:: max(1, len(record.curve) // 6)] if record.curve else ()
    yield "saturation " + ", ".join(
        f"{classes:,} after {schedules:,}" for schedules, classes in points
    )


def _failure(failure: StoredFailure, directory: Path | None) -> Iterator[str]:
    yield failure.splat
    if failure.suspects:
        yield f"known defects of this build that break rule {failure.rule}:"
        yield from (f"  {title}" for title in failure.suspects)
    yield from (f"also: {other}" for other in failure.also)
    yield how_found(failure)
    if directory is not None:
        yield f"replay:   stress replay {directory / failure.file}"
        yield f"minimise: stress minimise {directory / failure.file}"
    yield from textwrap.wrap(
        f"schedule: {failure.schedule}", 100, subsequent_indent="  ", break_on_hyphens=False
    )
    yield ""
