"""A comparison as data, as console text, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from stress.runs.compare.comparison import Comparison, Contrast, sentence

SCHEMA = 1


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Everything, with every run's values."""
    return {
        "schema": SCHEMA,
        "kind": "stress-comparison",
        "alpha": comparison.alpha,
        "paired": comparison.paired,
        "too_few": comparison.too_few,
        "differing": comparison.differing,
        "groups": [
            {
                "label": group.label,
                "runs": [record.id for record in group.runs],
                "left_out": list(group.left_out),
            }
            for group in comparison.groups
        ],
        "figures": [_contrast_data(contrast) for contrast in comparison.contrasts],
    }


def _contrast_data(contrast: Contrast) -> dict[str, Any]:
    return {
        "name": contrast.metric.name,
        "title": contrast.metric.title,
        "unit": contrast.metric.unit,
        "number": contrast.metric.number,
        "better": contrast.metric.better,
        "a": contrast.a,
        "b": contrast.b,
        "values_a": list(contrast.figure_a.values),
        "values_b": list(contrast.figure_b.values),
        "median_a": contrast.figure_a.median.value,
        "median_b": contrast.figure_b.median.value,
        "ratio": contrast.ratio.value if contrast.ratio.value != float("inf") else None,
        "ratio_interval": [
            value if value != float("inf") else None
            for value in (contrast.ratio.low, contrast.ratio.high)
        ],
        "cliffs_delta": contrast.delta,
        "p": contrast.p,
        "claimed": contrast.claimed,
        "worse": contrast.worse,
        "sentence": sentence(contrast),
    }


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
