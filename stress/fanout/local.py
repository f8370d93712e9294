"""Tasks in processes of their own on this machine: whatever a task leaves behind - threads that never end, memory, a pinned
CPU - is gone with its process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from attrs import define, frozen

GRACE_S = 60.0
"""How much longer than its limit a task may take, for setting up and taking down, before its process is ended."""
PRELOADED = ["stress.zoo.registry", "stress.zoo.attempt", "stress.run"]
"""What the server that tasks are forked from has imported already."""


@frozen
class Task:
    """A call to make: a function that can be imported by its name, and what it is called with; `limit_s` is how long it may
    take, in seconds."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    limit_s: float


@frozen
class Trouble:
    """What became of a task that has no result."""

    text: str


@define
class _Running:
    number: int
    task: Task
    process: BaseProcess
    slot: int
    until: float


@define
class _Here:
    slot: int = 0


_HERE = _Here()


def current_slot() -> int:
    """In a task: which of the places for processes it has, from 0 on; tasks that run at the same time have different ones."""
    return _HERE.slot


def run_local(tasks: Sequence[Task], processes: int, on_done: Callable[[int, Any], None], until: float | None = None) -> int:
    """Carry out every task, `processes` at a time; `on_done` is called in this process with a task's number and its result, or
    `Trouble`. Returns how many were not begun when `until` (time.monotonic) came. An interrupt ends what is running.
    """
    context = _context()
    waiting = iter(list(enumerate(tasks)))
    running: dict[Connection, _Running] = {}
    free = list(range(processes))
    try:
        while True:
            for number, task in _startable(waiting, free, until):
                running.update([_start(context, number, task, free.pop())])
            if not running:
                return sum(1 for _ in waiting)
            for connection in _finished(running):
                entry = running.pop(connection)
                free.append(entry.slot)
                on_done(entry.number, _collect(connection, entry))
    finally:
        for entry in running.values():
            entry.process.kill()


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():  # pragma: no cover - not on Linux
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _startable(waiting: Iterator[tuple[int, Task]], free: list[int], until: float | None) -> Iterator[tuple[int, Task]]:
    """As many tasks as there are free slots, while there is time."""
    while free and (until is None or time.monotonic() < until):
        found = next(waiting, None)
        if found is None:
            return
        yield found


def _start(context: BaseContext, number: int, task: Task, slot: int) -> tuple[Connection, _Running]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(theirs, task, slot), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return ours, _Running(number, task, process, slot, time.monotonic() + task.limit_s + GRACE_S)


def _finished(running: dict[Connection, _Running]) -> list[Connection]:
    """The connections that have an answer, or whose process has ended or taken too long; waits for the first."""
    soonest = min(entry.until for entry in running.values())
    ready = wait(list(running), max(0.0, soonest - time.monotonic()))
    return [connection for connection, entry in running.items() if connection in ready or time.monotonic() >= entry.until]


def _collect(connection: Connection, entry: _Running) -> Any:
    """The answer, or what became of the process instead."""
    try:
        if connection.poll():
            return connection.recv()
        return Trouble(f"the process took longer than {entry.task.limit_s + GRACE_S:.0f} s")
    except EOFError:
        entry.process.join(5)
        return Trouble(f"the process ended with exit code {entry.process.exitcode}")
    finally:
        entry.process.kill()
        entry.process.join()
        connection.close()


def _main(connection: Connection, task: Task, slot: int) -> None:
    """In the process: carry out the task, answer, and end at once whatever threads are left."""
    _HERE.slot = slot
    try:
        connection.send(task.call(*task.args))
    except BaseException as error:  # whatever it is, the parent must hear of it
        with contextlib.suppress(OSError):
            connection.send(Trouble(f"{type(error).__name__}: {error}"))
    connection.close()
    os._exit(0)
