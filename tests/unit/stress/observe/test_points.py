"""Preemption points: every one that the model has is known, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from mmu.runtime import Runtime
from stress.observe.points import POINTS, Points
from tests.conftest import together

MMU = Path(__file__).parents[4] / "mmu"


def test_the_points_of_the_model_are_those_that_are_known() -> None:
    passed = {
        name
        for path in MMU.rglob("*.py")
        for name in re.findall(r"\.point\(\"(P\d+b?)\"\)", path.read_text(encoding="utf-8"))
    }
    assert passed == set(POINTS)


def test_what_any_thread_has_reached_is_told_in_order_and_strangers_are_not() -> None:
    points = Points()
    assert points.reached() == ()
    together(
        Runtime(),
        lambda: points.point("P16"),
        lambda: points.point("mine"),
        lambda: points.point("P1"),
        lambda: points.point("P16"),
    )
    assert points.reached() == ("P1", "P16")
