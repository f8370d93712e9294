"""What a scheduling point can be: the kinds of operations, and how words are numbered.

Events are `(task index, kind, word)`. Words are numbered by the task that made them, so that a
number means the same in every schedule in which that task did the same.
"""

from __future__ import annotations

from typing import Final

LOAD: Final = 0
ADD: Final = 1
READ_ACQUIRE: Final = 2
READ_RELEASE: Final = 3
STORE: Final = 4
RMW: Final = 5
ACQUIRE: Final = 6
RELEASE: Final = 7
WAIT: Final = 8
RELAX: Final = 9
YIELD: Final = 10
SPAWN: Final = 11
START: Final = 12
FREE: Final = 13
ENDING: Final = 14
MB: Final = 15

KINDS = (
    "load",
    "add",
    "read-acquire",
    "read-release",
    "store",
    "rmw",
    "acquire",
    "release",
    "wait",
    "relax",
    "yield",
    "spawn",
    "start",
    "free",
    "ending",
    "mb",
)
"""The kinds of operations by number. Two operations on one word commute when both are LOAD, both
ADD, or both are a reader's (READ_*) on a lock; WAIT and RELAX are loads; YIELD, ENDING and MB touch
nothing."""

READS: Final = frozenset({LOAD, RMW, WAIT})
WRITES: Final = frozenset({STORE, RMW, ADD, FREE})

NO_WORD: Final = 0
TASK_LIST: Final = 1
"""The list of tasks, to which every spawn adds: who spawns first has the lower number."""
OWNER_SHIFT: Final = 32
"""A word's number is owner << OWNER_SHIFT | serial number."""
BUFFER_SHIFT: Final = 48
"""task << BUFFER_SHIFT | word stands for that word in the task's own store buffer: what a load that
is forwarded from there touches."""

Event = tuple[int, int, int]
Access = tuple[int, int]
"""(kind, word)."""

Look = tuple[int, bool, list[Access]]
"""A waiting task has evaluated what it waits for: after how many events, with what result, and what
it has read for that."""


def looked_at(looks: list[Look]) -> list[Access]:
    """Everything that was read, each once."""
    return list(dict.fromkeys(access for _, _, reads in looks for access in reads))


def read_since(trace: list[Event], start: int, task: int) -> tuple[bool, list[Access]]:
    """What a task has read from event number `start` on, of the last 2,000 at most; and whether
    another task wrote any of it after it was read."""
    written: set[int] = set()
    reads: dict[int, None] = {}
    changed = False
    for position in range(len(trace) - 1, max(start, len(trace) - 2000) - 1, -1):
        index, kind, word = trace[position]
        if index != task:
            if kind in WRITES:
                written.add(word)
        elif kind in READS:
            changed = changed or word in written
            reads[word] = None
    return changed, [(LOAD, word) for word in reads]
