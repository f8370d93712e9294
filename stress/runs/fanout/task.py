"""What is spread: a call that can be made anywhere, and what became of one that has no result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, frozen

GRACE_S = 60.0
"""How much longer than its limit a task may take, for setting up and taking down, before its
process is ended."""

OnDone = Callable[[int, Any], None]
"""What hears of a task's end: its number, counted from 0, and its result or `Trouble`."""


@frozen
class FanoutTask:
    """A call to make: a function that can be imported by its name, and what it is called with;
    `limit_s` is how long it may take, in seconds."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    limit_s: float


@frozen
class Trouble:
    """What became of a task that has no result."""

    text: str


@frozen
class Greeting:
    """What an agent (`stress.runs.fanout.agent`) has to know: its place among the machine's
    processes, and the files that tasks read."""

    slot: int
    files: tuple[str, ...] = ()


@define
class _Here:
    slot: int = 0


_HERE = _Here()


def current_slot() -> int:
    """In a task: which of the machine's places for processes it has, from 0 on; tasks that run at
    the same time have different ones."""
    return _HERE.slot


def occupy(slot: int) -> None:
    """In a process for one task: say which place it has."""
    _HERE.slot = slot


def startable(
    waiting: Iterator[tuple[int, FanoutTask]], room: int, until: float | None
) -> Iterator[tuple[int, FanoutTask]]:
    """As many tasks as there is room for, while it is not `until` (time.monotonic)."""
    for _ in range(room):
        if until is not None and time.monotonic() >= until:
            return
        found = next(waiting, None)
        if found is None:
            return
        yield found
