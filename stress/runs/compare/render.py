"""A comparison as console text and as a page."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from stress.report import run_page
from stress.runs.compare.comparison import Comparison, Contrast, sentence
from stress.runs.compare.comparison_record import ComparisonRecord


def page(comparison: ComparisonRecord) -> str:
    """The page of a comparison."""
    return run_page.page("compare.html", data=comparison)


def print_comparison(
    comparison: Comparison, console: Console, threshold: float | None = None
) -> None:
    """Table, then the claims as sentences; with a threshold, what became worse by more than
    that."""
    for line in _head(comparison):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for group in comparison.groups[1:]:
        console.print(_table(comparison, group.label))
        console.print()
    for line in conclusions(comparison, threshold):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _head(comparison: Comparison) -> Iterator[str]:
    for group in comparison.groups:
        failed = sum(bool(record.findings) for record in group.runs)
        note = f", {failed} of them with findings" if failed else ""
        yield f"{group.label}: {len(group.runs)} runs of {group.runs[0].name}{note}"
        yield from (f"  left out: {reason}" for reason in group.left_out)
    for key, values in comparison.differing.items():
        yield f"they differ in {key}: {' / '.join(values)}"
    yield ""


def _table(comparison: Comparison, label: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    base = comparison.groups[0].label
    for title in ("", "figure", base, label, "ratio", "95 % interval", "effect", "claim"):
        table.add_column(title, justify="left" if title in ("", "figure", "claim") else "right")
    for contrast in comparison.contrasts:
        if contrast.b == label:
            table.add_row(*_cells(contrast), style="bold" if contrast.claimed else "")
    return table


def _cells(contrast: Contrast) -> tuple[str, ...]:
    ratio = contrast.ratio
    return (
        contrast.metric.number,
        contrast.metric.title,
        _value(contrast.figure_a.median.value, contrast.metric.unit),
        _value(contrast.figure_b.median.value, contrast.metric.unit),
        f"{ratio.value:.2f}",
        f"{ratio.low:.2f}-{ratio.high:.2f}",
        f"{contrast.delta:+.2f}",
        ("worse" if contrast.worse else "better") if contrast.claimed else "",
    )


def conclusions(comparison: Comparison, threshold: float | None = None) -> Iterator[str]:
    """What may be said: a sentence a claim, or that there is none."""
    claims = comparison.claims()
    yield from (sentence(claim) for claim in claims)
    if comparison.too_few:
        yield comparison.too_few
    elif not claims:
        yield "no difference that chance does not explain"
    questions = len(comparison.contrasts)
    how = "runs compared in pairs of one seed and time; " if comparison.paired else ""
    yield (
        f"({how}the chance of even one false claim among these {questions} figures is at most "
        f"{comparison.alpha:.0%})"
    )
    if threshold is not None:
        worse = comparison.regressions(threshold)
        yield from (f"REGRESSION beyond {threshold:.0%}: {sentence(claim)}" for claim in worse)
        if not worse:
            yield f"no regression beyond {threshold:.0%} of {comparison.groups[0].label}"


def _value(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}".rstrip()
