"""What a run or an exploration prints when it ends: a screen of 24 lines whose last ones are the
verdict, what was found, and what to do next. `--verbose` and `console.txt` have all of it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from stress.report import exploration_console, run_console
from stress.report.units import time_text
from stress.results.bounds import CONFIDENCE, percent
from stress.results.certificate import Bound, Certificate
from stress.results.exploration_record import ExplorationRecord, StoredFailure
from stress.results.run_record import RunRecord
from stress.results.store import LATEST

SHOWN = 5
"""So many findings, close calls or bounds are named; the others are counted."""
_TIMES = {"fault": "a fault", "memslot": "a memslot call", "grace_period": "a grace period"}
_INDENT = 14
_IN_A_FILE = 80


def of_run(record: RunRecord, directory: Path, width: int | None) -> str:
    """A run that was kept in `directory`, for a terminal of `width` columns, or for a file."""
    return _text(_run(record, directory, width))


def of_exploration(record: ExplorationRecord, directory: Path, width: int | None) -> str:
    """An exploration that was kept in `directory`, for a terminal of `width` columns, or for a
    file."""
    return _text(_exploration(record, directory, width))


def _run(record: RunRecord, directory: Path, width: int | None) -> Iterator[str]:
    environment = record.environment
    gil = "GIL" if environment.gil_enabled else "free-threaded"
    machine = f"Python {environment.python} ({gil}), {environment.cpus} CPUs"
    yield from _heading(record.name, record.scenario, record.variants, width)
    yield from _entry("seed", f"{record.seed}; {machine}", width)
    yield from _certificate(record.certified, width)
    yield from _entry("times", _times(record), width)
    if record.resources:
        last = record.resources[-1]
        memory = f"{last.rss / 2**20:.0f} MiB; CPU {last.cpu_s:.1f} s"
        yield from _entry("memory", memory, width)
    yield ""
    yield from _errors(record.harness_errors, width)
    yield from _wrapped(run_console.verdict_line(record), width)
    found = [f"{item.rule}  {item.headline}{_times_seen(item.count)}" for item in record.findings]
    yield from _findings(found, width)
    suspects = record.findings[0].suspects if record.findings else ()
    yield from (line for title in suspects for line in _entry("may be", title, width))
    yield f"results: {directory}"
    yield f"next:    {_next_of_run(record, _handy(directory))}"


def _exploration(record: ExplorationRecord, directory: Path, width: int | None) -> Iterator[str]:
    strategy = f"{record.strategy}, seed {record.seed}, {exploration_console.processes(record)}"
    memory = ", memory order x86-TSO" if record.scenario["explore"]["memory"] == "tso" else ""
    yield from _heading(record.name, record.scenario, record.variants, width)
    yield from _entry("strategy", strategy + memory, width)
    yield from _entry("schedules", _schedules(record), width)
    yield from _certificate(record.certificate, width)
    yield ""
    yield from _errors(record.harness_errors, width)
    yield from _wrapped(exploration_console.verdict_line(record), width)
    yield from _findings((f"{item.rule}  {item.headline}" for item in record.failures), width)
    if record.failures:
        yield from _first_failure(record.failures[0], _handy(directory), width)
        return
    yield f"results: {directory}"
    yield f"next:    stress results show {_handy(directory)}"


def _first_failure(failure: StoredFailure, directory: Path, width: int | None) -> Iterator[str]:
    """How the first one was found, and the commands for it; a command is never wrapped."""
    for title in failure.suspects:
        yield from _entry("may be", title, width)
    yield from _wrapped(exploration_console.how_found(failure), width)
    file = directory / failure.file
    yield f"replay:  stress replay {file}"
    yield f"next:    stress minimise {file}"


def _heading(
    name: str, scenario: dict[str, object], variants: Iterable[str], width: int | None
) -> Iterator[str]:
    vm = scenario["vm"]
    assert isinstance(vm, dict)
    yield from _wrapped(f"{name}: {scenario.get('title', '')}".rstrip(": "), width)
    design = f"policy {vm['policy']}, profile {vm['profile']}, kernel {vm['kernel']}"
    named = ", ".join(variants)
    yield from _entry("design", design + (f", variants {named}" if named else ""), width)


def _certificate(certificate: Certificate, width: int | None) -> Iterator[str]:
    """The parts of the certificate that a reader looks at first."""
    operations = ", ".join(f"{kind} {count:,}" for kind, count in certificate.operations if count)
    yield from _entry("happened", operations or "nothing", width)
    yield from _entry("judged", _judged(certificate), width)
    if certificate.verdict == "FAIL":
        return
    close = sorted(certificate.close_calls, key=lambda call: -call.seen)
    calls = [f"{call.name} {call.seen:,}" for call in close if call.seen]
    yield from _entry("close calls", _first(calls) or "none", width)
    yield from _entry("risk left", _risk(certificate), width)


def _judged(certificate: Certificate) -> str:
    judged = [rule for rule, count in certificate.judged if count]
    idle = [rule for rule, count in certificate.judged if not count]
    text = f"{len(judged)} of {len(certificate.judged)} rules"
    return text + (f"; nothing to decide for {', '.join(idle)}" if idle else "")


def _risk(certificate: Certificate) -> str:
    if certificate.proof:
        return certificate.proof
    if not certificate.bounds:
        return "not bounded by this run"
    bounds = sorted(certificate.bounds, key=lambda bound: -bound.upper)
    return (
        f"with {100 * CONFIDENCE:.0f} % confidence, a failure in fewer than "
        f"{_first(map(_bound, bounds))}"
    )


def _bound(bound: Bound) -> str:
    return f"{percent(bound.upper)} of {bound.what.partition(' (')[0]}"


def _handy(directory: Path) -> Path:
    """A shorter name of a result's directory, if it has one."""
    latest = directory.with_name(LATEST)
    return latest if latest.resolve() == directory.resolve() else directory


def _schedules(record: ExplorationRecord) -> str:
    rate = record.schedules / max(record.wall_s, 1e-9)
    text = (
        f"{record.schedules:,} in {record.wall_s:.1f} s, {rate:,.0f} a second; "
        f"{record.classes:,} distinct orders of events"
    )
    return f"{text}, which are all within the strategy" if record.exhausted else text


def _times(record: RunRecord) -> str:
    rows = {row.operation: row for row in record.latencies}
    return "; ".join(
        f"{what} {time_text(rows[name].p50)} (p99 {time_text(rows[name].p99)})"
        for name, what in _TIMES.items()
        if name in rows
    )


def _next_of_run(record: RunRecord, directory: Path) -> str:
    if record.verdict == "PASS":
        return "stress selftest  # would it have noticed?"
    return f"stress results show {directory}"


def _errors(errors: Iterable[str], width: int | None) -> Iterator[str]:
    for error in errors:
        yield from _wrapped(f"harness error: {error.splitlines()[0]}", width)


def _findings(titles: Iterable[str], width: int | None) -> Iterator[str]:
    found = list(titles)
    for title in found[:SHOWN]:
        yield from _wrapped(title, width, "  ")
    if len(found) > SHOWN:
        yield f"  and {len(found) - SHOWN} more"


def _times_seen(count: int) -> str:
    return f" ({count:,} times)" if count > 1 else ""


def _first(names: Iterable[str]) -> str:
    every = list(names)
    others = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + others


def _entry(name: str, text: str, width: int | None) -> list[str]:
    if not text:
        return []
    return textwrap.wrap(
        f"{name:<{_INDENT - 2}}{text}",
        width or _IN_A_FILE,
        initial_indent="  ",
        subsequent_indent=" " * _INDENT,
        break_on_hyphens=False,
    )


def _wrapped(text: str, width: int | None, indent: str = "") -> list[str]:
    """Lines for a terminal; in a file one, for those who search it."""
    if width is None:
        return [indent + text]
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + "    ",
        break_on_hyphens=False,
    )


def _text(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"
