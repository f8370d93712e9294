"""Tasks on a cluster, whatever carries it: as many at a time as it has room for, results as they
come."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from stress.runs.fanout.task import FanoutTask, OnDone, startable
from stress.scenario.errors import StressError

LOOK_EVERY_S = 2.0
"""How often one looks whether there is still somebody to wait for."""


class ClusterLost(StressError):
    """A cluster that was there and from which nothing can be expected any more."""


class Cluster(Protocol):
    """A place where tasks are carried out. Lost machines are its business: what they had is done
    again elsewhere."""

    def places(self) -> int:
        """How many tasks can be carried out at a time, now; at least one."""

    def start(self, number: int, task: FanoutTask) -> None:
        """Have a task carried out."""

    def next_end(self, timeout_s: float) -> tuple[int, Any] | None:
        """A task's number and its result or `Trouble`, as soon as one has ended; None after
        `timeout_s`. Raises `ClusterLost` when nothing can be expected any more."""


def run_on(
    cluster: Cluster,
    tasks: Iterable[FanoutTask],
    on_done: OnDone,
    at_most: int | None = None,
    until: float | None = None,
) -> None:
    """Carry out every task, as many at a time as there are places and no more than `at_most`;
    otherwise like `run_local`."""
    waiting = iter(enumerate(tasks))
    running: set[int] = set()
    while True:
        places = cluster.places() if at_most is None else min(at_most, cluster.places())
        for number, task in startable(waiting, places - len(running), until):
            cluster.start(number, task)
            running.add(number)
        if not running:
            return
        ended = cluster.next_end(LOOK_EVERY_S)
        if ended is not None:
            running.discard(ended[0])
            on_done(*ended)
