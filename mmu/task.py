"""`current`: what the kernel calls the running task, one per OS thread."""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

    from mmu.sync.lockdep import ChainNode, Hold

_ids = itertools.count(1)
_ids_lock = threading.Lock()


class Task:
    """A thread's own state. Written only by that thread; others read it for reports and the
    watchdog.

    `chain` is lockdep's position (the classes held, in order), `held` those of the locks that
    remember where they were taken, `waiting_for` a text that says what the thread blocks on,
    `blocked_on` the lock itself where the thread waits for it without end and its holder is known.
    `locals` holds what others keep for the thread, each under a weak reference to itself: a thread
    that outlives a VM must not keep it. `find_frame` finds the innermost frame of a task that does
    not have a thread to itself.
    """

    __slots__ = (
        "blocked_on",
        "chain",
        "error",
        "find_frame",
        "held",
        "ident",
        "locals",
        "name",
        "number",
        "thread",
        "waiting_for",
    )

    def __init__(self, name: str) -> None:
        with _ids_lock:
            self.number = next(_ids)
        self.name = name
        self.ident = threading.get_ident()
        self.chain: ChainNode | None = None
        self.held: list[Hold] = []
        self.waiting_for = ""
        self.blocked_on: object = None
        self.error: BaseException | None = None
        self.thread = threading.current_thread()
        self.locals: dict[weakref.ref[object], Any] = {}
        self.find_frame: Callable[[], FrameType | None] | None = None

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"

    def let_go(self) -> None:
        """Nothing will be done in this task's name any more: drop what it knows."""
        self.locals.clear()
        self.held.clear()
        self.chain = self.blocked_on = self.error = None


class _Leaver:
    """Lives in its thread's local storage and nowhere else, so it is dropped, by that thread, when
    the thread ends."""

    __slots__ = ("task",)

    def __init__(self, task: Task) -> None:
        self.task = task
        _living[task.number] = task

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        _living.pop(self.task.number, None)
        for check in _exit_checks:
            check(self.task)


class _Current(threading.local):
    """Makes a task for any thread the first time it asks, so plain Python threads can use
    `mmu.sync` too."""

    def __init__(self) -> None:
        self.task = Task(threading.current_thread().name)
        self._leaver = _Leaver(self.task)


_living: dict[int, Task] = {}
_exit_checks: list[Callable[[Task], None]] = []

current = _Current()
"""`current.task` is the calling thread's `Task`."""


def living_tasks() -> list[Task]:
    """The tasks of all threads that have asked for theirs and have not ended, oldest first."""
    return [task for task in list(_living.values()) if task.thread.is_alive()]


def is_time_to_tidy(count: int) -> bool:
    """Whether to look through a list of `count` threads' records for those that have ended: at
    powers of two only, so that a newcomer costs no more the more there are."""
    return not count & (count - 1)


def at_thread_exit(check: Callable[[Task], None]) -> None:
    """Run `check` as the last act of every thread that has a task, whoever started it; it must not
    ask for `current`."""
    _exit_checks.append(check)
