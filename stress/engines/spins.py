"""Spins: what a task has read since it last relaxed, and whether anybody else has written to it."""

from __future__ import annotations

from collections.abc import Sequence

from stress.engines.steps import LOAD, READS, WRITES, Access, Event
from stress.engines.tasks import ControlledTask

_FAR_BACK = 2000
"""So many events are looked through at most."""


def read_since_relaxed(task: ControlledTask, trace: Sequence[Event]) -> tuple[bool, list[Access]]:
    """Whether another task wrote something after `task` had read it since it last relaxed, and all
    that it has read since. What its own buffer has drained is no news to it."""
    written: set[int] = set()
    reads: dict[int, None] = {}
    mine = task.index
    buffer = task.buffer.index if task.buffer is not None else mine
    changed = False
    for position in range(len(trace) - 1, max(task.relaxed_at, len(trace) - _FAR_BACK) - 1, -1):
        index, kind, word = trace[position]
        if index != mine:
            if kind in WRITES and index != buffer:
                written.add(word)
        elif kind in READS:
            changed = changed or word in written
            reads[word] = None
    return changed, [(LOAD, word) for word in reads]
