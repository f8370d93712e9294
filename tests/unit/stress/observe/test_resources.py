"""Resources: samples are even, bounded, and tell growth from start-up."""

from __future__ import annotations

from stress.observe.resources import Resources, Sample


def test_a_long_run_keeps_evenly_spread_samples() -> None:
    resources = Resources()
    for tick in range(4000):
        if resources.due(tick / 4):
            resources.sample(tick / 4)
    assert len(resources.samples) <= Resources.KEPT + 1
    gaps = [
        later.at_s - earlier.at_s
        for earlier, later in zip(resources.samples, resources.samples[1:], strict=False)
    ]
    assert max(gaps) <= 2 * min(gaps)
    assert resources.samples[-1].at_s > 990


def test_growth_compares_the_last_quarter_with_the_second() -> None:
    resources = Resources()
    assert resources.growth() is None
    resources.samples = [
        Sample(float(number), 100 if number < 40 else 130, 0.0, 1) for number in range(64)
    ]
    assert resources.growth() == 30
