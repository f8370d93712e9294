"""Bounds: known values of Clopper and Pearson's, the rule of three, and the guarantee of PCT."""

from __future__ import annotations

import math

import pytest

from stress.results.bounds import hits_in, missed_by_pct, percent, upper_bound


@pytest.mark.parametrize(
    ("trials", "failures", "bound"),
    [
        (1, 0, 0.95),
        (10, 0, 0.258866),
        (100, 0, 0.029513),
        (10, 1, 0.394163),
        (20, 2, 0.282619),
        (7, 7, 1.0),
        (0, 0, 1.0),
    ],
)
def test_known_values_at_95_percent(trials: int, failures: int, bound: float) -> None:
    assert upper_bound(trials, failures) == pytest.approx(bound, abs=5e-6)


def test_another_confidence() -> None:
    assert upper_bound(10, 0, 0.99) == pytest.approx(1 - 0.01**0.1)
    assert upper_bound(10, 1, 0.99) > upper_bound(10, 1)


@pytest.mark.parametrize("trials", [100, 10_000, 10**9])
def test_without_a_failure_it_is_the_rule_of_three(trials: int) -> None:
    assert upper_bound(trials) == pytest.approx(3 / trials, rel=0.02)


@pytest.mark.parametrize(("trials", "failures"), [(3, 0), (40, 1), (200, 17), (3000, 60)])
def test_so_few_failures_would_be_as_improbable_as_said(trials: int, failures: int) -> None:
    """By the definition, with exact binomial coefficients."""
    p = upper_bound(trials, failures)
    so_few = math.fsum(
        math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(failures + 1)
    )
    assert so_few == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(("trials", "failures"), [(-1, 0), (3, 4), (3, -1)])
def test_what_cannot_be_is_refused(trials: int, failures: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        upper_bound(trials, failures)


def test_the_guarantee_of_pct() -> None:
    assert hits_in(3, 50, 3) == 3 * 50**2
    assert missed_by_pct(1, 2, 100, 1) == pytest.approx(1 / 2)
    assert missed_by_pct(40, 4, 100, 2) == pytest.approx((1 - 1 / 400) ** 40)
    assert missed_by_pct(1, 1, 100, 1) == 0.0, "one task has one schedule"


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0295, "2.9 %"),
        (0.5, "50 %"),
        (0.9999, "more than 99.9 %"),
        (1e-9, "less than 0.001 %"),
        (3e-5, "0.003 %"),
    ],
)
def test_a_probability_is_told_with_two_digits(p: float, text: str) -> None:
    assert percent(p) == text
