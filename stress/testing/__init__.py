"""Explore the schedules of other people's concurrent code, from their tests.

A program is a function that makes everything shared from the `sync` it is given, spawns tasks, and
may return a check:

    def program(sync):
        count = sync.counter("count")

        def add():
            count.value = count.value + 1

        sync.spawn(add)
        sync.spawn(add)
        return lambda: count.value == 2

`explore(program)` runs it once for each schedule and raises `ScheduleFailed` for the first that
fails. In pytest, use the fixture of that name.
"""

from __future__ import annotations

from stress.testing.explorer import (
    Explored,
    Inconclusive,
    ReplayDiverged,
    ScheduleFailed,
    Settings,
    TaskBlocked,
    explore,
    replay,
)
from stress.testing.program import CheckFailed, ExploredSync, NothingExplored
from stress.testing.steady import Unsteady

__all__ = [
    "CheckFailed",
    "Explored",
    "ExploredSync",
    "Inconclusive",
    "NothingExplored",
    "ReplayDiverged",
    "ScheduleFailed",
    "Settings",
    "TaskBlocked",
    "Unsteady",
    "explore",
    "replay",
]
