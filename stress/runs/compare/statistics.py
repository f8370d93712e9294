"""What may be said of two small samples: medians with bootstrap intervals, an effect size, and a
permutation test that asks many questions at once without claiming too much.

Pure Python, so that a comparison can be made wherever a run can. Every random choice is seeded: the
same samples give the same answer.
"""

from __future__ import annotations

import bisect
import itertools
import math
import operator
import random
import statistics
from collections.abc import Sequence

from attrs import frozen

RESAMPLES = 2000
PERMUTATIONS = 5_000
LEVEL = 0.95
"""Of every interval."""

Sample = Sequence[float]


@frozen
class Interval:
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether the interval reaches `value`."""
        return self.low <= value <= self.high


def median(sample: Sample, seed: str = "") -> Interval:
    """The median with its percentile-bootstrap interval."""
    dice = random.Random(f"median/{seed}")
    drawn = sorted(statistics.median(dice.choices(sample, k=len(sample))) for _ in range(RESAMPLES))
    return Interval(statistics.median(sample), *_middle(drawn))


def ratio_of_medians(a: Sample, b: Sample, seed: str = "") -> Interval:
    """How many times the median of `a` is that of `b`; infinite where the latter is 0 and the
    former is not, 1 where both are."""
    dice = random.Random(f"ratio/{seed}")

    def draw(sample: Sample) -> float:
        return statistics.median(dice.choices(sample, k=len(sample)))

    drawn = sorted(_ratio(draw(a), draw(b)) for _ in range(RESAMPLES))
    return Interval(_ratio(statistics.median(a), statistics.median(b)), *_middle(drawn))


def max_t(a: Sequence[Sample], b: Sequence[Sample], seed: str = "") -> list[float]:
    """For several figures of the same runs (`a[i]` and `b[i]` are figure i of both groups): the p
    of each, adjusted for all of them together.

    Westfall and Young's single-step maxT: the runs' labels are permuted, all figures of a run
    together, and a figure's p is how often the most extreme figure of a permutation is at least as
    extreme as it. The chance of even one false claim is the level, however many figures there are
    and however they hang together. Exact where the permutations can be counted, else from
    `PERMUTATIONS` random ones.
    """
    if not a:
        return []
    n = len(a[0])
    columns = [_scores([*ours, *theirs], n) for ours, theirs in zip(a, b, strict=True)]
    rows = list(zip(*columns, strict=True))
    seen = [abs(sum(column[:n])) - 1e-9 for column in columns]
    total = math.comb(len(rows), n)
    exact = total <= PERMUTATIONS
    dice = random.Random(f"max_t/{seed}")
    drawn = (
        itertools.combinations(rows, n)
        if exact
        else (dice.sample(rows, n) for _ in range(PERMUTATIONS))
    )
    extremes = sorted(max(map(abs, map(sum, zip(*chosen, strict=True)))) for chosen in drawn)
    at_least = [len(extremes) - bisect.bisect_left(extremes, value) for value in seen]
    return [count / total if exact else (count + 1) / (PERMUTATIONS + 1) for count in at_least]


def max_t_paired(a: Sequence[Sample], b: Sequence[Sample], seed: str = "") -> list[float]:
    """The same for runs that belong together in pairs (run k of both groups: same seed, same time,
    so the same weather on the machine): what is permuted is which run of a pair is whose."""
    if not a:
        return []
    n = len(a[0])
    columns = [_signed(ours, theirs) for ours, theirs in zip(a, b, strict=True)]
    seen = [abs(sum(column)) - 1e-9 for column in columns]
    total = 2 ** (n - 1)
    exact = total <= PERMUTATIONS
    dice = random.Random(f"max_t_paired/{seed}")
    signs = (
        ((1, *rest) for rest in itertools.product((1, -1), repeat=n - 1))
        if exact
        else (_flips(dice, n) for _ in range(PERMUTATIONS))
    )
    extremes = sorted(
        max(abs(sum(map(operator.mul, column, flips))) for column in columns) for flips in signs
    )
    at_least = [len(extremes) - bisect.bisect_left(extremes, value) for value in seen]
    return [count / total if exact else (count + 1) / (PERMUTATIONS + 1) for count in at_least]


def ratio_of_pairs(a: Sample, b: Sample, seed: str = "") -> Interval:
    """The median of the pairs' ratios of `a` to `b`, with its percentile-bootstrap interval."""
    ratios = [_ratio(x, y) for x, y in zip(a, b, strict=True)]
    return median(ratios, f"pairs/{seed}")


def smallest_p(a: int, b: int) -> float:
    """The smallest p that samples of these sizes can have: too few runs can never support a
    claim."""
    return 2 / math.comb(a + b, a) if a and b else 1.0


def smallest_p_paired(pairs: int) -> float:
    """Likewise for so many pairs."""
    return float(2 / 2**pairs)


def cliffs_delta(a: Sample, b: Sample) -> float:
    """Effect size from -1 to 1: how much more often a value of `a` is above one of `b` than below
    it."""
    above = sum((x > y) - (x < y) for x in a for y in b)
    return above / (len(a) * len(b))


def _ratio(a: float, b: float) -> float:
    if b:
        return a / b
    return math.inf if a else 1.0


def _middle(drawn: Sample) -> tuple[float, float]:
    """The bounds of the middle `LEVEL` of sorted values."""
    cut = round(len(drawn) * (1 - LEVEL) / 2)
    return drawn[cut], drawn[-1 - cut]


def _scores(values: Sample, n: int) -> list[float]:
    """Logarithms less their mean (the values themselves where one is 0), divided by the standard
    deviation of the sum of `n` of them: sums of these order permutations as Student's t does. 0 all
    over where all values are equal."""
    told = [math.log(value) for value in values] if min(values) > 0 else list(values)
    mean, m = statistics.fmean(told), len(told) - n
    variance = n * m / (len(told) * (len(told) - 1)) * sum((value - mean) ** 2 for value in told)
    return [(value - mean) / math.sqrt(variance) if variance else 0.0 for value in told]


def _signed(a: Sample, b: Sample) -> list[float]:
    """Relative differences of `b` from `a`, divided by the standard deviation of their sum when
    signs are random."""
    relative = [(y - x) / (y + x) if x or y else 0.0 for x, y in zip(a, b, strict=True)]
    scale = math.sqrt(sum(value * value for value in relative))
    return [value / scale if scale else 0.0 for value in relative]


def _flips(dice: random.Random, n: int) -> tuple[int, ...]:
    bits = dice.getrandbits(n)
    return tuple(1 if bits >> k & 1 else -1 for k in range(n))
