"""A comparison as `stress compare` prints it as JSON."""

from __future__ import annotations

import math
from typing import Final, Literal

from attrs import frozen

from stress.results.serialise import Format
from stress.runs.compare.comparison import Comparison, Contrast, sentence


@frozen
class ComparedGroup:
    """A group: its label, its runs by their names, and which are no evidence."""

    label: str
    runs: tuple[str, ...]
    left_out: tuple[str, ...]


@frozen
class ComparedFigure:
    """One figure of two groups; a ratio is b's median over a's, null where that is infinite."""

    name: str
    title: str
    unit: str
    number: str
    better: Literal["lower", "higher"]
    a: str
    b: str
    values_a: tuple[float, ...]
    values_b: tuple[float, ...]
    median_a: float
    median_b: float
    ratio: float | None
    ratio_interval: tuple[float | None, float | None]
    cliffs_delta: float
    p: float
    claimed: bool
    worse: bool
    sentence: str


@frozen
class ComparisonRecord:
    """Groups of runs against the first; `differing` are the keys in which their scenarios differ,
    with each group's value, `too_few` says why no claim is possible (empty: it is)."""

    alpha: float
    paired: bool
    too_few: str
    differing: dict[str, list[str]]
    groups: tuple[ComparedGroup, ...]
    figures: tuple[ComparedFigure, ...]


COMPARISON_FORMAT: Final = Format(ComparisonRecord, 1, "stress-comparison")


def record_of(comparison: Comparison) -> ComparisonRecord:
    """The comparison with every run's values."""
    return ComparisonRecord(
        alpha=comparison.alpha,
        paired=comparison.paired,
        too_few=comparison.too_few,
        differing=comparison.differing,
        groups=tuple(
            ComparedGroup(
                group.label, tuple(record.id for record in group.runs), tuple(group.left_out)
            )
            for group in comparison.groups
        ),
        figures=tuple(_figure(contrast) for contrast in comparison.contrasts),
    )


def _figure(contrast: Contrast) -> ComparedFigure:
    metric, ratio = contrast.metric, contrast.ratio
    return ComparedFigure(
        name=metric.name,
        title=metric.title,
        unit=metric.unit,
        number=metric.number,
        better=metric.better,
        a=contrast.a,
        b=contrast.b,
        values_a=contrast.figure_a.values,
        values_b=contrast.figure_b.values,
        median_a=contrast.figure_a.median.value,
        median_b=contrast.figure_b.median.value,
        ratio=_finite(ratio.value),
        ratio_interval=(_finite(ratio.low), _finite(ratio.high)),
        cliffs_delta=contrast.delta,
        p=contrast.p,
        claimed=contrast.claimed,
        worse=contrast.worse,
        sentence=sentence(contrast),
    )


def _finite(value: float) -> float | None:
    return None if value == math.inf else value
