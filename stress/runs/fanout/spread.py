"""The one place that decides where tasks go: processes of this machine, or a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

from stress.runs.fanout.cluster import ClusterLost, run_on
from stress.runs.fanout.dask import cluster_at
from stress.runs.fanout.local import run_local
from stress.runs.fanout.task import FanoutTask, OnDone

INTERRUPTED: Final = "interrupted"
"""Why it ended, when the user wanted so."""

scheduler_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help=(
        "Use the workers of the Dask scheduler there (tcp://host:8786), not processes here; "
        "whoever controls it can run code here."
    ),
)


@frozen
class Workers:
    """Where tasks are carried out: in processes here, or by the workers of the Dask scheduler at an
    address. `jobs` is how many at a time, 0 as many as there are CPUs, or places in the cluster.
    `files` are the user's own that tasks read."""

    jobs: int = 1
    scheduler: str | None = None
    files: tuple[str, ...] = ()


def spread(
    tasks: Iterable[FanoutTask], where: Workers, on_done: OnDone, until: float | None = None
) -> str:
    """Carry out every task, each in a process of its own; `on_done` hears of every end, here and as
    it comes. Tasks are asked for as there is room for them, and none is begun after `until`
    (time.monotonic).

    Returns why it ended before everything was done: after an interrupt, or when the cluster was
    lost on the way. Otherwise it is empty. Whatever ends it early, an exception of `on_done` too,
    ends what is running. Raises `StressError` for a cluster that cannot be used.
    """
    try:
        if where.scheduler is None:
            run_local(tasks, where.jobs or os.cpu_count() or 1, on_done, until)
        else:
            with cluster_at(where.scheduler, where.files) as cluster:
                run_on(cluster, tasks, on_done, where.jobs or None, until)
    except ClusterLost as error:
        return str(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return ""


def places(scheduler: str) -> int:
    """How many tasks the workers of the scheduler at this address can carry out at a time."""
    with cluster_at(scheduler) as cluster:
        return cluster.places()


def absolute(files: Iterable[str | Path]) -> tuple[str, ...]:
    """Paths that mean the same wherever a task is carried out."""
    return tuple(str(Path(file).resolve()) for file in files)
