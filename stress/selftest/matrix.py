"""The kill matrix: a finished selftest as a Markdown page, and as tables for the console."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmu.numbers.oracles import RULES
from stress.selftest.selftest import MatrixRow, Selftest, judgement_of, summary

WORK = {"controlled": "schedules", "threads": "steps"}
"""What an engine counts until the kill."""
STYLES = {"killed": "green", "silent": "green", "not tried": "yellow"}
"""Everything else is red."""
HEAD = (
    "mutant",
    "engine",
    "result",
    "fired",
    "expected",
    "time to kill",
    "work to kill",
    "found by",
)


def rules_of(test: Selftest) -> list[str]:
    """The rules that some mutant expects or that fired, in the order of the catalogue."""
    named = {rule for row in test.rows for rule in (*row.expects, *row.fired())}
    return [rule for rule in RULES if rule in named]


def seconds(row: MatrixRow) -> str:
    """Median and range over the seeds."""
    return _spread(row.seconds, lambda value: f"{value:.2f}", " s")


def work(row: MatrixRow) -> str:
    """Likewise for the schedules or the actors' steps."""
    return _spread(row.work, lambda value: f"{value:,.0f}", f" {WORK[row.engine]}")


def result(row: MatrixRow) -> str:
    """The state in words, with the share of the seeds where that is not all."""
    share = (
        f" {row.killed}/{len(row.attempts)}"
        if row.kind == "mutant" and row.attempts and row.killed < len(row.attempts)
        else ""
    )
    return f"{row.state}{share}"


def fired(row: MatrixRow) -> str:
    """The rules that fired, those that were expected first."""
    counts = row.fired()
    wanted = [rule for rule in row.expects if rule in counts]
    return " ".join([*wanted, *(f"({rule})" for rule in counts if rule not in wanted)])


def cells(row: MatrixRow) -> tuple[str, ...]:
    """A line of the table."""
    return (
        row.name,
        row.engine,
        result(row),
        fired(row),
        " ".join(row.expects),
        seconds(row),
        work(row),
        " ".join(
            f"{name}:{count}" if count > 1 else name
            for name, count in row.found_by().most_common(3)
        ),
    )


def console_tables(test: Selftest, console: Console) -> None:
    """The matrix on the console, ending with the verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in HEAD:
        table.add_column(
            title, justify="right" if title.endswith("kill") else "left", overflow="fold"
        )
    for row in test.of_kind("mutant"):
        name, engine, state, *others = cells(row)
        table.add_row(name, engine, Text(state, STYLES.get(row.state, "red")), *others)
    if table.row_count:
        console.print(table)
        console.print()
    for line in _silent_lines(test):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in (*_cannot_lines(test), *holes(test), verdict_line(test)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def verdict_line(test: Selftest) -> str:
    """The verdict in one line."""
    judgement = judgement_of(test)
    counts = summary(test)
    reasons = [reason for reason in judgement.reasons if reason != counts]
    return (
        f"{judgement.verdict.name}  selftest, {test.wall_s:.0f} s: {'; '.join([*reasons, counts])}"
    )


def _silent_lines(test: Selftest) -> Iterator[str]:
    """What had to stay silent: each control, and the correct model by engine and policy.
    Before them, the detectors' own self-tests and the agreement of the engines."""
    if test.detectors:
        wrong = [result.test.name for result in test.detectors if result.problems]
        told = (
            f"WRONG: {', '.join(wrong)}"
            if wrong
            else "injected mistakes and stalls reported once, with their stacks; half a limit never"
        )
        yield f"detector self-tests ({len(test.detectors)}): {told}"
    if test.agreements:
        yield _agreement_line(test)
    for row in test.of_kind("control"):
        yield f"control {row.name}, {row.engine}, {row.scenario}: {_outcome([row])}"
    groups: dict[tuple[str, str], list[MatrixRow]] = {}
    for row in test.of_kind("correct"):
        groups.setdefault((row.engine, row.name), []).append(row)
    for (engine, policy), rows in groups.items():
        where = f"{len(rows)} scenarios" if len(rows) > 1 else rows[0].scenario
        yield f"correct model, {engine}, policy {policy}, {where}: {_outcome(rows)}"


def _agreement_line(test: Selftest) -> str:
    """Whether the engines agree, and how much each has done."""
    found = test.agreements
    wrong = [f"{each.state} on {each.scenario}" for each in found if each.state != "agree"]
    steps = sum(each.steps for each in found)
    schedules = sum(each.schedules for each in found)
    return (
        f"engines ({len(found)} scenarios): "
        f"{', '.join(wrong) or 'whatever threads have shown was seen under control'} "
        f"({steps:,} {WORK['threads']}, {schedules:,} {WORK['controlled']})"
    )


def _outcome(rows: Sequence[MatrixRow]) -> str:
    """Whether rows that had to stay silent did, over how much work."""
    loud = [f"{row.state} {fired(row)} on {row.scenario}" for row in rows if row.state != "silent"]
    made, wanted = sum(len(row.attempts) for row in rows), sum(row.wanted for row in rows)
    tried = f"{made} of {wanted} runs" if made < wanted else f"{made} runs"
    return (
        f"{', '.join(loud) or 'silent'} ({tried}, {sum(row.done for row in rows):,} "
        f"{WORK[rows[0].engine]})"
    )


def _cannot_lines(test: Selftest) -> Iterator[str]:
    for name, why in test.cannot.items():
        yield f"threads cannot show {name}: {why}"


def holes(test: Selftest) -> Iterator[str]:
    """With rules off: the mutants that nothing else catches."""
    if test.options.off:
        alive = [
            row.name
            for row in test.of_kind("mutant", "controlled")
            if row.attempts and not row.killed
        ]
        held = (
            f"{len(alive)} mutants that nothing else catches: {', '.join(alive)}"
            if alive
            else "no mutant needs it"
        )
        yield f"without {', '.join(test.options.off)}: {held}"


def markdown(test: Selftest) -> str:
    """The whole selftest as a page."""
    environment = test.environment
    lines = [
        "# Selftest",
        "",
        verdict_line(test),
        "",
        f"{test.date}, version {environment.version}, Python {environment.python}"
        f" ({'GIL' if environment.gil_enabled else 'free-threaded'}), {environment.cpus} CPUs. "
        "Times are medians over the seeds with the"
        " range; rules in brackets fired beside the expected ones.",
        "",
        *_table(HEAD, (cells(row) for row in test.of_kind("mutant"))),
        "## Which rule catches what",
        "",
        *_table(*_by_rule(test)),
        "## Detectors, and what must stay silent",
        "",
        *(f"* {line}" for line in _silent_lines(test)),
        "",
    ]
    if test.cannot:
        lines += [
            "## What real threads cannot show",
            "",
            *(f"* {name}: {why}" for name, why in test.cannot.items()),
            "",
        ]
    return "\n".join(lines)


def _by_rule(test: Selftest) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    """Mutant by rule and engine: in how many attempts each rule fired."""
    rules = rules_of(test)

    def lines() -> Iterator[Sequence[str]]:
        for row in test.of_kind("mutant"):
            counts = row.fired()
            marks = [
                f"**{counts[rule]}**"
                if rule in row.expects and counts[rule]
                else str(counts[rule] or "")
                for rule in rules
            ]
            yield (row.name, row.engine, *marks)

    return ("mutant", "engine", *rules), lines()


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _spread(values: Sequence[float], number: Callable[[float], str], unit: str) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return number(values[0]) + unit
    return f"{number(statistics.median(values))} ({number(values[0])}-{number(values[-1])}){unit}"
