"""Preemption points: every one that the model has is counted, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from mmu.runtime import Runtime
from stress.observe.points import POINTS, Points
from tests.conftest import together

MMU = Path(__file__).parents[3] / "mmu"


def test_the_points_of_the_model_are_those_that_are_counted() -> None:
    reached = {name for path in MMU.rglob("*.py") for name in re.findall(r"\.point\(\"(P\d+)\"\)", path.read_text(encoding="utf-8"))}
    assert reached == set(POINTS)


def test_arrivals_add_up_over_threads_and_strangers_do_not_count() -> None:
    runtime = Runtime()
    points = Points(runtime)

    def arrive() -> None:
        for name in ("P1", "P16", "P16", "mine"):
            points.point(name)

    together(runtime, arrive, arrive, arrive)
    assert {name: count for name, count in points.values().items() if count} == {"P1": 3, "P16": 6}
