"""Attempts in processes of their own: a mutant may leave threads behind that never end, and must not disturb the next."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from attrs import define, frozen

from stress.engines.carrier import pinned
from stress.scenario.types import Scenario
from stress.zoo.attempt import Attempt, Engine, on_threads, under_control
from stress.zoo.mutant import Case

GRACE_S = 60.0
"""How much longer than its limit an attempt may take, for setting up and taking down, before its process is ended."""


@frozen
class Job:
    """One attempt to make: a variant's name (empty: the correct model), its case and the scenario that this makes, the
    engine, the seed, and the limit in seconds."""

    name: str
    case: Case
    scenario: Scenario
    engine: Engine
    seed: int
    limit_s: float


@define
class _Running:
    job: Job
    process: BaseProcess
    slot: int
    until: float


def run_jobs(jobs: Iterable[Job], processes: int, on_done: Callable[[Job, Attempt], None], until: float | None = None) -> int:
    """Make every attempt, `processes` at a time; returns how many were left when `until` (time.monotonic) came.

    What is still running is ended when the caller is interrupted.
    """
    context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["stress.zoo.registry", "stress.zoo.jobs"])
    waiting = iter(list(jobs))
    running: dict[Connection, _Running] = {}
    free = list(range(processes))
    left = 0
    try:
        while True:
            for job in _startable(waiting, free, until):
                slot = free.pop()
                running.update([_start(context, job, slot)])
            if not running:
                break
            for connection in _finished(running):
                entry = running.pop(connection)
                free.append(entry.slot)
                on_done(entry.job, _collect(connection, entry))
        left = sum(1 for _ in waiting)
    finally:
        for entry in running.values():
            entry.process.kill()
    return left


def _startable(waiting: Iterator[Job], free: list[int], until: float | None) -> Iterator[Job]:
    """As many jobs as there are free slots, while there is time."""
    while free and (until is None or time.monotonic() < until):
        job = next(waiting, None)
        if job is None:
            return
        yield job


def _start(context: multiprocessing.context.BaseContext, job: Job, slot: int) -> tuple[Connection, _Running]:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(theirs, job, slot), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return ours, _Running(job, process, slot, time.monotonic() + job.limit_s + GRACE_S)


def _finished(running: dict[Connection, _Running]) -> list[Connection]:
    """The connections that have an answer, or whose process has ended or taken too long; waits for the first."""
    soonest = min(entry.until for entry in running.values())
    ready = wait(list(running), max(0.0, soonest - time.monotonic()))
    late = [connection for connection, entry in running.items() if time.monotonic() >= entry.until]
    return [connection for connection in running if connection in ready or connection in late]


def _collect(connection: Connection, entry: _Running) -> Attempt:
    """The answer, or what became of the process instead."""
    job = entry.job
    try:
        if connection.poll():
            found = connection.recv()
            assert isinstance(found, Attempt)
            return found
        trouble = f"the process took longer than {job.limit_s + GRACE_S:.0f} s"
    except EOFError:
        entry.process.join(5)
        trouble = f"the process ended with exit code {entry.process.exitcode}"
    finally:
        entry.process.kill()
        entry.process.join()
        connection.close()
    return Attempt(job.name, job.engine, job.seed, False, errors=(trouble,))


def _main(connection: Connection, job: Job, slot: int) -> None:
    """In the process: make the attempt, answer, and end at once whatever threads are left."""
    try:
        connection.send(attempt(job, slot))
    except BaseException as error:  # whatever it is, the parent must hear of it
        with contextlib.suppress(OSError):
            connection.send(Attempt(job.name, job.engine, job.seed, False, errors=(f"{type(error).__name__}: {error}",)))
    connection.close()
    os._exit(0)


def attempt(job: Job, slot: int = 0) -> Attempt:
    """Make the attempt in this process."""
    if job.engine == "threads":
        return on_threads(job.name, job.scenario, job.seed, job.limit_s)
    gc.collect()
    with pinned(slot):
        return under_control(job.name, job.case, job.scenario, job.seed, job.limit_s)
