"""The summary in GitHub-flavoured Markdown: for a CI job's summary page, an issue, or a mail (it
reads well as plain text)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from stress.observe.histograms import NUMBERS
from stress.report import certificate_text, exploration_console
from stress.report.run_console import verdict_line
from stress.results.certificate import Certificate
from stress.results.exploration_record import ExplorationRecord
from stress.results.run_record import Environment, RunRecord
from stress.results.store import was_killed
from stress.results.verdict import Obligation

MARKUP = re.compile(r"[\\`*\[\]<|~&]|(?<!\w)_|_(?!\w)")
"""What would be taken for markup; an underscore within a word is not."""
MOST_SPLATS = 10
"""So many findings are shown with their splats; GitHub takes a megabyte for the summary of a
step."""


def of_run(record: RunRecord) -> str:
    """The page of a run."""
    return "\n".join(_run_lines(record)) + "\n"


def of_exploration(record: ExplorationRecord) -> str:
    """The page of an exploration."""
    return "\n".join(_exploration_lines(record)) + "\n"


def _run_lines(record: RunRecord) -> Iterator[str]:
    yield from _head(record.name, record.verdict, was_killed(record), verdict_line(record))
    vm = record.scenario["vm"]
    yield from _facts(
        ("scenario", f"{record.name}, {record.scenario.get('title', '')}".rstrip(", ")),
        ("design", _design(vm, record.variants)),
        ("seed", str(record.seed)),
        ("time", f"{record.run_s:.1f} s, started {record.started}"),
        ("where", _where(record.environment)),
        ("result", record.id),
        ("command", f"`{record.command}`"),
    )
    findings = [
        (f"{finding.rule} {finding.headline}", finding.count, finding.splat)
        for finding in record.findings
    ]
    yield from _findings(findings)
    yield from _certificate(record.certified)
    yield from _obligations(record.obligations)
    yield from _listed("Harness errors", record.harness_errors)
    if record.latencies:
        yield from ("## Latency", "", "In microseconds; a number of SPTEs for walk_steps.", "")
        yield from table(
            ("operation", "count", "p50", "p99", "p99.9", "max"), _latencies(record), right=5
        )
    if record.figures:
        yield from ("## Measurements", "")
        rows = (
            (figure.number, figure.name, f"{figure.value:,.1f}", figure.unit)
            for figure in record.figures
        )
        yield from table(("M", "what", "value", "unit"), rows)


def _exploration_lines(record: ExplorationRecord) -> Iterator[str]:
    yield from _head(record.name, record.verdict, False, exploration_console.verdict_line(record))
    coverage = (
        "everything"
        if record.exhausted
        else f"{record.unseen_mass:.1%} of what such schedules meet was never seen"
    )
    yield from _facts(
        ("scenario", f"{record.name}, {record.scenario.get('title', '')}".rstrip(", ")),
        ("design", _design(record.scenario["vm"], record.variants)),
        (
            "strategy",
            f"{record.strategy}, seed {record.seed}, {exploration_console.processes(record)}",
        ),
        (
            "schedules",
            f"{record.schedules:,} of {record.steps:,} steps in {record.wall_s:.1f} s, started "
            f"{record.started}",
        ),
        ("classes", f"{record.classes:,} distinct orders of events"),
        ("coverage", coverage),
        ("where", _where(record.environment)),
        ("result", record.id),
        ("command", f"`{record.command}`"),
    )
    findings = []
    for failure in record.failures:
        how = (
            f"{exploration_console.how_found(failure)}\nreplay: stress replay "
            f"{failure.file}\nschedule: {failure.schedule}"
        )
        findings.append((f"{failure.rule} {failure.headline}", 1, f"{failure.splat}\n{how}"))
    yield from _findings(findings)
    yield from _certificate(record.certificate)
    needed = record.scenario.get("obligations", {})
    yield from _obligations(
        [Obligation(name, count, record.counters.get(name, 0)) for name, count in needed.items()]
    )
    yield from _listed("Harness errors", record.harness_errors)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> Iterator[str]:
    """A table whose last `right` columns are numbers, with an empty line after it."""
    marks = ["---"] * (len(head) - right) + ["--:"] * right
    yield f"| {' | '.join(map(escaped, head))} |"
    yield f"|{'|'.join(marks)}|"
    yield from (f"| {' | '.join(map(escaped, row))} |" for row in rows)
    yield ""


def escaped(text: str) -> str:
    """A text as it stands, in one line: nothing in it is markup, nor ends a cell. What is between
    back quotes stays as it is."""
    line = " ".join(text.split())
    if len(line) > 1 and line.startswith("`") and line.endswith("`"):
        return f"`{line[1:-1].replace('`', chr(39)).replace('|', chr(92) + '|')}`"
    return MARKUP.sub(r"\\\g<0>", line)


def fenced(text: str) -> Iterator[str]:
    """A block of text as it stands, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (f"{fence}text", *text.splitlines(), fence)


def _head(name: str, verdict: str, killed: bool, verdict_line: str) -> Iterator[str]:
    shown = f"{verdict} (killed)" if killed else verdict
    yield from (f"# {shown}: {escaped(name)}", "", escaped(verdict_line), "")


def _facts(*facts: tuple[str, str]) -> Iterator[str]:
    yield from table(("what", "value"), facts)


def _findings(findings: Sequence[tuple[str, int, str]]) -> Iterator[str]:
    """Each finding: its headline and how often it was seen, its splat folded away."""
    if not findings:
        return
    yield from (f"## Findings ({len(findings)})", "")
    for headline, count, story in findings[:MOST_SPLATS]:
        seen = f", seen {count:,} times" if count > 1 else ""
        yield from (
            "<details>",
            f"<summary>{_html(headline)}{seen}</summary>",
            "",
            *fenced(story),
            "",
            "</details>",
            "",
        )
    left = findings[MOST_SPLATS:]
    yield from (f"* {escaped(headline)}" for headline, _, _ in left)
    if left:
        yield ""


def _certificate(certificate: Certificate) -> Iterator[str]:
    """What the verdict rests on."""
    yield from (f"## Certificate: {escaped(certificate_text.heading(certificate.verdict))}", "")
    yield from table(("what", "value"), certificate_text.parts(certificate))


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _obligations(obligations: Sequence[Obligation]) -> Iterator[str]:
    if obligations:
        yield from ("## Obligations", "")
        rows = (
            (item.counter, f"{item.needed:,}", f"{item.reached:,}", "yes" if item.met else "**NO**")
            for item in obligations
        )
        yield "| counter | needed | reached | met |"
        yield "|---|--:|--:|---|"
        yield from (
            f"| {escaped(counter)} | {needed} | {reached} | {met} |"
            for counter, needed, reached, met in rows
        )
        yield ""


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield from (f"## {title}", "")
        for line in lines:
            yield from (*fenced(line), "")


def _latencies(record: RunRecord) -> Iterator[tuple[str, ...]]:
    for row in record.latencies:
        scale = 1.0 if row.operation in NUMBERS else 1e3
        yield (
            row.operation,
            f"{row.count:,}",
            *(f"{value / scale:,.1f}" for value in (row.p50, row.p99, row.p999, row.max)),
        )


def _design(vm: dict[str, object], variants: Sequence[str]) -> str:
    with_variants = f", variants {', '.join(variants)}" if variants else ""
    return f"policy {vm['policy']}, profile {vm['profile']}, kernel {vm['kernel']}{with_variants}"


def _where(environment: Environment) -> str:
    gil = "GIL" if environment.gil_enabled else "free-threaded"
    return (
        f"tdp-stress {environment.version}, Python {environment.python} ({gil}), "
        f"{environment.cpus} CPUs, {environment.platform}"
    )
