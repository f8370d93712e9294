"""What every tool's process does: run the named measurements, each once more than counted, and
print the figures as JSON."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Measurement = Callable[[int], int]
"""Given a seed, works and returns how many schedules, or whatever is counted, it ran; raises when
the tool gives a wrong answer."""


def figures(measurement: Measurement, seed: int, counted: str) -> dict[str, Any]:
    """Wall-clock and CPU seconds of one measurement, and what was counted."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    count = measurement(seed)
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, counted: count}


def main(measurements: dict[str, Measurement], counted: str = "schedules") -> None:
    """`python <tool>_programs.py SEED [NAME...]`: the figures of each measurement, or of the named
    ones."""
    seed, names = int(sys.argv[1]), sys.argv[2:] or list(measurements)
    unknown = [name for name in names if name not in measurements]
    if unknown:
        raise SystemExit(
            f"there is no measurement {unknown[0]!r} here: there are {', '.join(measurements)}"
        )
    measurements[names[0]](seed)  # warm up: imports, caches, threads
    print(json.dumps({name: figures(measurements[name], seed, counted) for name in names}))  # noqa: T201 - read by run.py
