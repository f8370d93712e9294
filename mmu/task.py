"""`current`: what the kernel calls the running task, one per OS thread."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmu.sync.lockdep import ChainNode, Hold

_ids = itertools.count(1)
_ids_lock = threading.Lock()


class Task:
    """A thread's own state. Written only by that thread; others read it for reports and the watchdog.

    `chain` is lockdep's position (the classes held, in order), `held` those of the locks that
    remember where they were taken, `waiting_for` a text that says what the thread blocks on.
    """

    __slots__ = ("chain", "error", "held", "ident", "locals", "name", "number", "thread", "waiting_for")

    def __init__(self, name: str) -> None:
        with _ids_lock:
            self.number = next(_ids)
        self.name = name
        self.ident = threading.get_ident()
        self.chain: ChainNode | None = None
        self.held: list[Hold] = []
        self.waiting_for = ""
        self.error: BaseException | None = None
        self.thread = threading.current_thread()
        self.locals: dict[object, Any] = {}

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


class _Current(threading.local):
    """Makes a task for any thread the first time it asks, so plain Python threads can use `mmu.sync` too."""

    def __init__(self) -> None:
        self.task = Task(threading.current_thread().name)


current = _Current()
"""`current.task` is the calling thread's `Task`."""
