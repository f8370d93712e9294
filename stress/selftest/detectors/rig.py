"""What the injections share: a reporter, checked locks, and a second thread that stands where it is
told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmu.report import Report, Reporter
from mmu.runtime import Runtime
from mmu.sync import Sync
from mmu.task import Task
from stress.scenario.errors import StressError

PATIENCE_S = 60.0
"""After which a rendezvous has failed; nothing waits for it otherwise."""


class NoRendezvous(StressError):
    """A thread of a self-test did not come where it had to."""


class DetectorRig:
    """A `Sync` that prints nothing, on a runtime of the caller's choice."""

    def __init__(self, runtime: Runtime | None = None, **options: Any) -> None:
        self.reporter = Reporter(sink=None)
        self.runtime = runtime or Runtime()
        self.sync = Sync(self.runtime, self.reporter, **options)

    @property
    def reports(self) -> tuple[Report, ...]:
        """What was reported; stops the threads that RCU has made."""
        self.sync.rcu.shutdown()
        return self.reporter.reports

    def run(self, body: Callable[[], object]) -> None:
        """`body` in a thread of its own that has its name, to the end."""
        finish(self.runtime, self.runtime.spawn(body.__name__, lambda: void(body)))


def void(body: Callable[[], object]) -> None:
    """Call `body` for its effect."""
    body()


def finish(runtime: Runtime, task: Task) -> None:
    """Wait for the end of `task`."""
    if not runtime.join(task, PATIENCE_S):
        raise NoRendezvous(f"{task} does not end")
    if task.error is not None:
        raise task.error


class Meeting:
    """Somebody comes to a place, says so, and stays until let go."""

    def __init__(self) -> None:
        self._here = threading.Event()
        self._go = threading.Event()

    def stay(self) -> None:
        """Be here, and wait."""
        self._here.set()
        if not self._go.wait(PATIENCE_S):
            raise NoRendezvous("nobody let the thread go")

    def meet(self) -> None:
        """Wait for the other one to be here."""
        if not self._here.wait(PATIENCE_S):
            raise NoRendezvous("the thread did not come")

    def let_go(self) -> None:
        """The other one may go on."""
        self._go.set()


@contextmanager
def elsewhere(runtime: Runtime, body: Callable[[Meeting], object]) -> Iterator[Callable[[], None]]:
    """Another thread runs `body`, and is where that stays; gives a function that lets it go and
    waits for its end."""
    meeting = Meeting()
    task = runtime.spawn(body.__name__, lambda: void(lambda: body(meeting)))
    meeting.meet()

    def leave() -> None:
        meeting.let_go()
        finish(runtime, task)

    try:
        yield leave
    finally:
        leave()
