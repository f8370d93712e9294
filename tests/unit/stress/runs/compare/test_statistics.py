"""The statistics: known values, intervals that cover, and claims that are false no more often than
they say."""

from __future__ import annotations

import math
import random

import pytest

from stress.runs.compare.statistics import (
    cliffs_delta,
    max_t,
    max_t_paired,
    median,
    ratio_of_medians,
    ratio_of_pairs,
    smallest_p,
    smallest_p_paired,
)


def test_the_median_lies_in_its_interval_which_lies_in_the_sample() -> None:
    found = median([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found.value == 3.0
    assert 1.0 <= found.low <= 3.0 <= found.high <= 100.0
    assert found == median([1.0, 2.0, 3.0, 4.0, 100.0]), "the same sample gives the same answer"


def test_a_ratio_knows_nothing_from_something() -> None:
    assert ratio_of_medians([6.0] * 3, [2.0] * 3).value == 3.0
    assert ratio_of_medians([0.0] * 3, [0.0] * 3).value == 1.0
    assert math.isinf(ratio_of_medians([5.0] * 3, [0.0] * 3).value)
    assert ratio_of_pairs([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == ratio_of_pairs(
        [4.0, 6.0, 2.0], [2.0, 3.0, 1.0]
    )


@pytest.mark.parametrize(
    ("a", "b", "delta"),
    [((1, 2), (3, 4), -1.0), ((3, 4), (1, 2), 1.0), ((1, 2), (1, 2), 0.0), ((2, 2), (1, 2), 0.5)],
)
def test_cliffs_delta(a: tuple[float, ...], b: tuple[float, ...], delta: float) -> None:
    assert cliffs_delta(a, b) == delta


def test_one_figure_has_the_p_of_the_exact_permutation_test() -> None:
    """Of the 20 ways to choose 3 of 6 runs, two are as extreme as complete separation; of the 8
    signs, two."""
    assert max_t([[1.0, 2.0, 3.0]], [[11.0, 12.0, 13.0]]) == [2 / 20] == [smallest_p(3, 3)]
    assert max_t([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]) == [1.0]
    assert max_t_paired([[1.0, 2.0, 3.0]], [[2.0, 4.0, 6.0]]) == [2 / 8] == [smallest_p_paired(3)]
    assert max_t([[5.0] * 3], [[5.0] * 3]) == [1.0], (
        "where nothing varies there is nothing to claim"
    )
    assert max_t_paired([[5.0] * 3], [[5.0] * 3]) == [1.0]
    assert max_t([], []) == max_t_paired([], []) == []


def test_the_same_figure_twice_costs_nothing() -> None:
    """The correction knows how figures hang together: a copy is no second question."""
    a, b = [1.0, 2.0, 4.0, 3.0], [9.0, 11.0, 10.0, 12.0]
    (alone,) = max_t([a], [b])
    assert max_t([a, a], [b, b]) == [alone, alone]


@pytest.mark.parametrize("paired", [False, True])
def test_a_false_claim_is_as_rare_as_it_says(paired: bool) -> None:
    """Twenty runs of one thing, split in two halves, a dozen figures that share the machine's
    weather, 60 times over: at 5 % three false claims are expected, and more than nine have a chance
    of 0.1 %."""
    dice = random.Random(42)
    test = max_t_paired if paired else max_t
    false = 0
    for number in range(60):
        runs = [
            (
                weather := dice.lognormvariate(0, 0.15),
                [weather * dice.lognormvariate(0, 0.1) for _ in range(12)],
            )[1]
            for _ in range(14)
        ]
        columns = list(zip(*runs, strict=True))
        ps = test(
            [column[::2] for column in columns], [column[1::2] for column in columns], str(number)
        )
        assert len(ps) == 12
        false += min(ps) <= 0.05
    assert false <= 9


@pytest.mark.parametrize("paired", [False, True])
def test_one_slow_path_among_many_figures_is_found_and_no_other(paired: bool) -> None:
    dice = random.Random(7)
    test = max_t_paired if paired else max_t
    a = [[100 * dice.lognormvariate(0, 0.04) for _ in range(10)] for _ in range(12)]
    b = [
        [100 * dice.lognormvariate(0, 0.04) * (1.2 if figure == 5 else 1.0) for _ in range(10)]
        for figure in range(12)
    ]
    ps = test(a, b)
    assert [number for number, p in enumerate(ps) if p <= 0.05] == [5]
