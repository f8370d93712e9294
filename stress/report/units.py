"""Figures as people say them."""

from __future__ import annotations

_STEPS = ((1e3, "ns"), (1e6, "us"), (1e9, "ms"))


def time_text(ns: float) -> str:
    """Nanoseconds in the unit that leaves one to three digits before the point: "17.3 ms"."""
    scale = 1.0
    for limit, unit in _STEPS:
        if ns < limit:
            return f"{_three(ns / scale)} {unit}"
        scale = limit
    return f"{_three(ns / scale)} s"


def _three(value: float) -> str:
    """At least three digits."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
