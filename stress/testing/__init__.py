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

from stress.testing.explorer import Explored as Explored
from stress.testing.explorer import Inconclusive as Inconclusive
from stress.testing.explorer import ReplayDiverged as ReplayDiverged
from stress.testing.explorer import ScheduleFailed as ScheduleFailed
from stress.testing.explorer import Settings as Settings
from stress.testing.explorer import explore as explore
from stress.testing.explorer import replay as replay
from stress.testing.program import CheckFailed as CheckFailed
from stress.testing.program import ExploredSync as ExploredSync
from stress.testing.program import NothingExplored as NothingExplored
