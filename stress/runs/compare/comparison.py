"""The comparison itself: every figure of every group beside that of the first, with claims that
chance does not explain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from attrs import frozen

from stress.runs.compare import statistics
from stress.runs.compare.groups import DESIGN, Group, differences
from stress.runs.compare.metrics import Metric, Value, metrics_of
from stress.runs.compare.statistics import Interval
from stress.scenario.errors import ResultError

ALPHA = 0.05
"""Chance of even one false claim in a whole comparison."""
LEAST_PAIRS = 6
"""Fewer pairs can support no claim."""

_Column = tuple[Metric, tuple[float, ...]]
"""A figure of all runs of a group."""


@frozen
class GroupFigure:
    """One figure of one group: the runs' values, their median with its interval."""

    values: tuple[float, ...]
    median: Interval


@frozen
class Contrast:
    """One figure of two groups. `ratio` is b's median over a's; `delta` Cliff's, from -1 (b always
    lower) to 1; `p` of the permutation test over all figures together; `claimed` whether the
    difference stands."""

    metric: Metric
    a: str
    b: str
    figure_a: GroupFigure
    figure_b: GroupFigure
    ratio: Interval
    delta: float
    p: float
    claimed: bool

    @property
    def worse(self) -> bool:
        """Whether b is on the bad side of a."""
        return self.ratio.value > 1 if self.metric.better == "lower" else self.ratio.value < 1

    @property
    def times(self) -> Interval:
        """How many times the larger median is the smaller, with its interval."""
        ratio = self.ratio
        if ratio.value >= 1:
            return ratio
        return Interval(_inverse(ratio.value), _inverse(ratio.high), _inverse(ratio.low))


@frozen
class Comparison:
    """All groups against the first one. `differing` are the keys in which their scenarios differ,
    with each group's value; `beyond_design` those of them that are not what a comparison is usually
    about; `too_few` says that no claim is possible. `paired` says that runs were compared pair by
    pair."""

    groups: tuple[Group, ...]
    contrasts: tuple[Contrast, ...]
    differing: dict[str, list[str]]
    beyond_design: tuple[str, ...]
    too_few: str
    paired: bool = False
    alpha: float = ALPHA

    def claims(self) -> list[Contrast]:
        """The differences that stand."""
        return [contrast for contrast in self.contrasts if contrast.claimed]

    def regressions(self, threshold: float) -> list[Contrast]:
        """The claims by which another group is worse than the first by more than `threshold` (0.1
        is 10 %)."""
        return [
            claim for claim in self.claims() if claim.worse and claim.times.value > 1 + threshold
        ]


def compare(groups: Sequence[Group], allowed: Sequence[str] = ()) -> Comparison:
    """Compare every group with the first; raises `ResultError` where the scenarios differ in keys
    that are not `allowed`."""
    if len(groups) < 2:
        raise ResultError("a comparison needs two groups of runs at least")
    differing = differences(groups)
    beyond = tuple(
        key for key in differing if key not in DESIGN and not key.startswith(tuple(allowed) or "\0")
    )
    if beyond:
        told = "; ".join(f"{key}: {' / '.join(differing[key])}" for key in beyond)
        raise ResultError(
            f"the runs are not of the same scenario ({told}); --allow KEY compares them all the "
            "same"
        )
    tables = [_table(group) for group in groups]
    level = ALPHA / (len(groups) - 1)
    paired = all(are_pairs(groups[0], group) for group in groups[1:])
    contrasts = [
        contrast
        for table, group in zip(tables[1:], groups[1:], strict=True)
        for contrast in _contrasts(
            groups[0].label, tables[0], group.label, table, level, paired=paired
        )
    ]
    return Comparison(
        tuple(groups),
        tuple(contrasts),
        differing,
        beyond,
        _too_few(groups, level, paired=paired),
        paired,
    )


def are_pairs(a: Group, b: Group) -> bool:
    """Whether run k of one group belongs to run k of the other: the same seed, and nearer in time
    than to any other pair.

    `stress study` runs so; then the machine's weather is the same for both and drops out.
    """
    if [run.seed for run in a.runs] != [run.seed for run in b.runs] or len(a.runs) < LEAST_PAIRS:
        return False
    firsts = [min(x.pid_started, y.pid_started) for x, y in zip(a.runs, b.runs, strict=True)]
    lasts = [max(x.pid_started, y.pid_started) for x, y in zip(a.runs, b.runs, strict=True)]
    return all(last < first for last, first in zip(lasts, firsts[1:], strict=False))


def _table(group: Group) -> dict[str, _Column]:
    """The figures that every run of the group has."""
    found: list[dict[str, Value]] = [metrics_of(record) for record in group.runs]
    names = [name for name in found[0] if all(name in each for each in found)]
    return {name: (found[0][name][0], tuple(each[name][1] for each in found)) for name in names}


def _contrasts(
    a_label: str,
    a: dict[str, _Column],
    b_label: str,
    b: dict[str, _Column],
    level: float,
    *,
    paired: bool,
) -> Iterator[Contrast]:
    """Every figure that both groups have, and that is not 0 everywhere."""
    shared = [
        (metric, ours, b[name][1])
        for name, (metric, ours) in a.items()
        if name in b and (any(ours) or any(b[name][1]))
    ]
    test = statistics.max_t_paired if paired else statistics.max_t
    ratio_of = statistics.ratio_of_pairs if paired else statistics.ratio_of_medians
    ps = test(
        [ours for _, ours, _ in shared], [theirs for _, _, theirs in shared], f"{a_label}/{b_label}"
    )
    for (metric, ours, theirs), p in zip(shared, ps, strict=True):
        seed = f"{a_label}/{b_label}/{metric.name}"
        ratio = ratio_of(theirs, ours, seed)
        yield Contrast(
            metric,
            a_label,
            b_label,
            GroupFigure(ours, statistics.median(ours, seed)),
            GroupFigure(theirs, statistics.median(theirs, seed)),
            ratio,
            statistics.cliffs_delta(theirs, ours),
            p,
            claimed=p <= level and not ratio.contains(1.0),
        )


def _too_few(groups: Sequence[Group], level: float, *, paired: bool) -> str:
    """Why no claim can be made at all, if so."""
    sizes = [len(group.runs) for group in groups]
    best = (
        statistics.smallest_p_paired(sizes[0])
        if paired
        else min(statistics.smallest_p(sizes[0], size) for size in sizes[1:])
    )
    if best <= level:
        return ""
    smallest = (
        statistics.smallest_p_paired if paired else lambda size: statistics.smallest_p(size, size)
    )
    needed = next(size for size in range(2, 50) if smallest(size) <= level)
    runs = " and ".join(str(size) for size in sizes)
    return f"{runs} runs cannot support any claim: at least {needed} a group are needed"


def sentence(contrast: Contrast) -> str:
    """A claim in plain words; without one, that there is no difference to speak of."""
    metric, times = contrast.metric, contrast.times
    size = f"{_number(times.value)}x ({_number(times.low)}-{_number(times.high)})"
    if not contrast.claimed:
        return (
            f"{metric.title}: no difference between {contrast.a} and {contrast.b} that chance does "
            "not explain"
        )
    b_is_lower = contrast.ratio.value < 1
    if metric.kind == "latency":
        return (
            f"{contrast.b} {metric.does} {size} {'faster' if b_is_lower else 'slower'} than "
            f"{contrast.a}"
        )
    if metric.kind == "rate":
        return (
            f"{contrast.b} {metric.does} {size} {'less often' if b_is_lower else 'more often'} "
            f"than {contrast.a}"
        )
    if math.isinf(times.value):
        return (
            f"{contrast.a if b_is_lower else contrast.b} has {metric.does}, "
            f"{contrast.b if b_is_lower else contrast.a} has none"
        )
    return (
        f"{contrast.b} has {size} {'less' if b_is_lower else 'more'} {metric.does} than "
        f"{contrast.a}"
    )


def _number(value: float) -> str:
    if math.isinf(value):
        return "inf"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _inverse(value: float) -> float:
    return 1 / value if value else math.inf
