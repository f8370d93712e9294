"""What the scheduler schedules: a task under control, with the operation that it has announced."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from mmu.task import Task
from stress.engines.carrier import Signal
from stress.engines.steps import KINDS, NO_WORD, START, Access, Look


class Abandoned(BaseException):
    """Raised in every task when its schedule is given up; nothing in the model may catch it."""


class Gate(Protocol):
    """What a task can be blocked at: a lock, seen by the scheduler."""

    pending: list[ControlledTask]

    def open_to(self, task: ControlledTask) -> bool:
        """Whether the operation that `task` has announced could be done now."""
        ...

    def owners(self) -> list[ControlledTask]:
        """Who keeps it closed, for the waits-for graph."""
        ...


class Carries(Protocol):
    """What a task runs on."""

    busy: bool
    """From the moment it gets a task until the task says that the carrier may have another."""
    thread: threading.Thread
    """The OS thread beneath."""
    signal: Signal
    """Set to let its task go on, waited for by its task."""

    def load(self, job: Callable[[], None]) -> None:
        """Give it, while it is idle, something to do when it is let go on."""
        ...


class ControlledTask:
    """A task under control: `kind` and `word` are the operation it has announced, `wake` and
    `sleep` those of its thread. `resume` lets a task go on that shares the caller's thread, and
    returns when it is the caller's turn again."""

    __slots__ = (
        "body",
        "buffer",
        "carrier",
        "daemon",
        "done",
        "enabled",
        "gate",
        "index",
        "kind",
        "latched",
        "looks",
        "made",
        "name",
        "predicate",
        "reads",
        "relaxed_at",
        "resume",
        "revived",
        "sleep",
        "task",
        "wake",
        "what",
        "word",
    )

    def __init__(
        self, index: int, name: str, signal: Signal, body: Callable[[], None], daemon: bool
    ) -> None:
        self.index = index
        self.name = name
        self.wake = signal.set
        self.sleep = signal.wait
        self.resume: Callable[[], object] = signal.wait
        self.carrier: Carries | None = None
        self.body = body
        self.daemon = daemon
        self.kind = START
        self.word = NO_WORD
        self.made = 0
        self.enabled = True
        self.done = False
        self.gate: Gate | None = None
        self.predicate: Callable[[], bool] | None = None
        self.reads: list[Access] = []
        self.looks: list[Look] = []
        self.latched = False
        self.what = ""
        self.relaxed_at = 0
        self.revived = 0
        self.task: Task | None = None
        self.buffer: Any = None
        """Its `StoreBuffer`, where tasks have some."""

    def __repr__(self) -> str:
        return f"<{self.name} {KINDS[self.kind]} {self.word:#x}>"


def nothing() -> None:
    """The main thread is no task."""


def nobody() -> ControlledTask:
    """Who is next when the schedule is over: a mistake of whoever asks."""
    raise RuntimeError("the schedule is over")
