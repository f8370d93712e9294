"""What a run without a failure says about how rare failures are, and what that rests on."""

from __future__ import annotations

import math
from typing import Final

CONFIDENCE: Final = 0.95


def upper_bound(trials: int, failures: int = 0, confidence: float = CONFIDENCE) -> float:
    """The one-sided Clopper-Pearson bound: the largest failure probability under which so few
    failures in so many trials would still have a probability of 1 - `confidence`. Without a failure
    it is about 3 / trials at 95 % (the rule of three).

    C. J. Clopper and E. S. Pearson, Biometrika 26 (1934).
    """
    if trials < 0 or not 0 <= failures <= max(trials, 0):
        raise ValueError(f"{failures} failures in {trials} trials")
    if failures == trials:
        return 1.0
    if not failures:
        return -math.expm1(math.log1p(-confidence) / trials)
    low, high = failures / trials, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if _at_most(failures, trials, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(failures: int, trials: int, p: float) -> float:
    """P(X <= failures) of a binomial distribution, 0 < p < 1."""
    terms = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(p)
        + (trials - k) * math.log1p(-p)
        for k in range(failures + 1)
    )
    return math.fsum(math.exp(term) for term in terms)


def missed_by_pct(schedules: int, tasks: int, steps: int, depth: int) -> float:
    """With what probability so many schedules of PCT miss a bug of this depth, at most: each finds
    it with a probability of 1 / (n k^(d-1)) or more (Burckhardt et al., ASPLOS 2010)."""
    return (
        math.exp(schedules * math.log1p(-1 / hits_in(tasks, steps, depth)))
        if hits_in(tasks, steps, depth) > 1
        else 0.0
    )


def hits_in(tasks: int, steps: int, depth: int) -> float:
    """The n k^(d-1) of PCT: in so many schedules PCT is expected to find a bug of this depth at
    least once."""
    return float(max(tasks, 1) * max(steps, 1) ** (depth - 1))


def percent(p: float) -> str:
    """A probability as a percentage with two significant digits; what is nearly certain or hardly
    possible is called that."""
    if p > 0.999:
        return "more than 99.9 %"
    return f"{100 * p:.2g} %" if p >= 1e-5 else "less than 0.001 %"
