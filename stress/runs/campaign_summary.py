"""What all runs of a campaign say together: one verdict, the findings, and how rare failures
are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import frozen
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stress.results.bounds import percent, upper_bound
from stress.results.run_record import StoredFinding
from stress.results.serialise import Format
from stress.results.verdict import Verdict
from stress.runs.campaign import SeedOutcome

STYLES: Final = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}


@frozen
class CampaignRun:
    """One run: what came of it, and where it is kept."""

    seed: int
    verdict: str
    run_s: float
    findings: int
    told: str
    directory: str


@frozen
class CampaignFinding:
    """A finding, in how many runs it was seen, and the seeds of those."""

    signature: str
    rule: str
    headline: str
    seeds: tuple[int, ...]


@frozen
class CampaignRecord:
    """Everything known about a campaign: the worst verdict of its runs and why, the runs by seed,
    the findings, the most frequent first, the seeds that were not run, and why not (`stopped`).
    `at_most` is, where no run has failed, the largest probability of failure with which so many
    runs would all be free of one in one case of twenty."""

    name: str
    verdict: str
    reasons: tuple[str, ...]
    runs: tuple[CampaignRun, ...]
    findings: tuple[CampaignFinding, ...]
    missing: tuple[int, ...]
    stopped: str
    at_most: float | None


CAMPAIGN_FORMAT: Final = Format(CampaignRecord, 1, "stress-campaign")


def record_of(
    name: str, seeds: Sequence[int], made: Sequence[SeedOutcome], stopped: str
) -> CampaignRecord:
    """The campaign over these seeds, of which these runs were made."""
    runs = tuple(map(run_of, made))
    missing = tuple(seed for seed in seeds if seed not in {run.seed for run in runs})
    verdict = max([Verdict[run.verdict] for run in runs], default=Verdict.INCONCLUSIVE)
    if missing:
        verdict = max(verdict, Verdict.INCONCLUSIVE)
    judged = [run for run in runs if run.verdict == Verdict.PASS.name]
    return CampaignRecord(
        name=name,
        verdict=verdict.name,
        reasons=tuple(_reasons(runs, missing, stopped)),
        runs=runs,
        findings=tuple(findings_of(made)),
        missing=missing,
        stopped=stopped,
        at_most=upper_bound(len(judged)) if judged and verdict is not Verdict.FAIL else None,
    )


def run_of(made: SeedOutcome) -> CampaignRun:
    """One run in short."""
    record, trouble = made.record, made.trouble
    if record is None:
        return CampaignRun(made.seed, Verdict.HARNESS_ERROR.name, 0.0, 0, trouble, made.directory)
    verdict = Verdict[record.verdict]
    if trouble:
        verdict = max(verdict, Verdict.HARNESS_ERROR)
    told = "; ".join([*filter(None, [trouble]), *record.reasons])
    return CampaignRun(
        made.seed, verdict.name, record.run_s, len(record.findings), told, made.directory
    )


def findings_of(made: Sequence[SeedOutcome]) -> Iterator[CampaignFinding]:
    """Equal findings of all runs once, the most frequent first."""
    seen: dict[str, tuple[StoredFinding, list[int]]] = {}
    for each in made:
        for finding in each.record.findings if each.record is not None else ():
            seen.setdefault(finding.signature, (finding, []))[1].append(each.seed)
    for signature, (finding, seeds) in sorted(seen.items(), key=lambda item: -len(item[1][1])):
        yield CampaignFinding(signature, finding.rule, finding.headline, tuple(seeds))


def _reasons(runs: Sequence[CampaignRun], missing: Sequence[int], stopped: str) -> Iterator[str]:
    counts = Counter(run.verdict for run in runs)
    order = sorted(counts, key=lambda name: -Verdict[name])
    if runs:
        yield f"of {len(runs)} run{'s' if len(runs) > 1 else ''} " + ", ".join(
            f"{counts[name]} {name}" for name in order
        )
    if missing:
        yield f"{len(missing)} not made" + (f": {stopped}" if stopped else "")


def verdict_line(record: CampaignRecord) -> str:
    """The verdict in one line."""
    return f"{record.verdict}  {record.name}: {'; '.join(record.reasons)}"


def print_campaign(record: CampaignRecord, console: Console) -> None:
    """The campaign on the console: a table of the runs, the findings, the verdict."""
    console.print(_table(record))
    console.print()
    for line in lines(record):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def lines(record: CampaignRecord) -> Iterator[str]:
    """What is said below the table."""
    for finding in record.findings:
        yield (
            f"{finding.rule} in {len(finding.seeds)} of {len(record.runs)} runs (seed "
            f"{_some(finding.seeds)}): {finding.headline}"
        )
    if record.at_most is not None:
        passed = sum(run.verdict == Verdict.PASS.name for run in record.runs)
        yield (
            f"{passed} runs passed and none failed: fewer than {percent(record.at_most)} of such "
            "runs fail (95 % sure)"
        )
    if record.missing:
        yield f"not made: seed {_some(record.missing, 40)}"
    yield verdict_line(record)


def _table(record: CampaignRecord) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (
        ("seed", "right"),
        ("verdict", "left"),
        ("s", "right"),
        ("found", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("why", overflow="fold")
    table.add_column("directory", overflow="fold")
    for run in record.runs:
        verdict = Text(run.verdict, STYLES.get(run.verdict, "magenta"))
        table.add_row(
            str(run.seed),
            verdict,
            f"{run.run_s:.1f}",
            str(run.findings or ""),
            Text(run.told),
            Text(run.directory),
        )
    return table


def _some(seeds: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(map(str, seeds[:most]))
    return f"{shown}, ..." if len(seeds) > most else shown
