"""Tasks in processes of their own on this machine: whatever a task leaves behind - threads that
never end, memory, a pinned CPU - is gone with its process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from attrs import define

from stress.runs.fanout.task import GRACE_S, FanoutTask, OnDone, Trouble, occupy, startable


@define
class _Running:
    number: int
    task: FanoutTask
    process: BaseProcess
    slot: int
    until: float


def run_local(
    tasks: Iterable[FanoutTask],
    processes: int,
    on_done: OnDone,
    until: float | None = None,
    first_slot: int = 0,
) -> None:
    """Carry out every task, `processes` at a time; `on_done` is called in this process with a
    task's number and its result, or `Trouble`. Tasks are asked for as there is room for them, and
    none is begun after `until` (time.monotonic). Whatever is raised here meanwhile, an interrupt
    too, ends what is running.
    """
    context = _context()
    waiting = iter(enumerate(tasks))
    running: dict[Connection, _Running] = {}
    free = list(range(first_slot, first_slot + processes))
    try:
        while True:
            for number, task in startable(waiting, len(free), until):
                running.update([_start(context, number, task, free.pop())])
            if not running:
                return
            for connection in _finished(running):
                entry = running.pop(connection)
                free.append(entry.slot)
                on_done(entry.number, _collect(connection, entry))
    finally:
        for entry in running.values():
            entry.process.kill()


def _context() -> BaseContext:
    # pragma: no cover - not on Linux
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("forkserver")


def _start(
    context: BaseContext, number: int, task: FanoutTask, slot: int
) -> tuple[Connection, _Running]:
    # The server that tasks are forked from imports the first task's module, and with it everything
    # that tasks need; once it runs, this changes nothing any more.
    context.set_forkserver_preload([task.call.__module__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(theirs, task, slot), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return ours, _Running(number, task, process, slot, time.monotonic() + task.limit_s + GRACE_S)


def _finished(running: dict[Connection, _Running]) -> list[Connection]:
    """The connections that have an answer, or whose process has ended or taken too long; waits for
    the first."""
    soonest = min(entry.until for entry in running.values())
    ready = wait(list(running), max(0.0, soonest - time.monotonic()))
    return [
        connection
        for connection, entry in running.items()
        if connection in ready or time.monotonic() >= entry.until
    ]


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


def _main(connection: Connection, task: FanoutTask, slot: int) -> None:
    """In the process: carry out the task, answer, and end at once whatever threads are left."""
    occupy(slot)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        connection.send(task.call(*task.args))
    except BaseException as error:  # whatever it is, the parent must hear of it
        with contextlib.suppress(OSError):
            connection.send(Trouble(f"{type(error).__name__}: {error}"))
    connection.close()
    os._exit(0)


def _end_with_parent() -> None:
    """Nobody waits for the answer of a process whose parent has been killed, and nobody else would
    end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
