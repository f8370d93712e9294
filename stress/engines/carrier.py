"""OS threads that carry controlled tasks: reused from schedule to schedule, each parked on an event
of its own.

An `os.eventfd` (a pipe where there is none) costs 2 to 3 µs a hand-off on every CPython build when
all threads share one CPU; locks and conditions cost up to ten times that without the GIL, and an
idle CPU that has to be woken twenty times.
"""

from __future__ import annotations

import functools
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stress.engines.greenlets import Hub


class Signal:
    """Something that one thread waits for and any thread sets. What it means is for the two to
    know: an interrupt may come when a wait has ended and before it has returned, so a wake-up can
    get lost in the main thread."""

    __slots__ = ("_fd", "set", "wait")

    set: Callable[[], object]
    """Let the waiting thread go on."""
    wait: Callable[[], object]
    """Wait until it is set."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            fd = os.eventfd(0, os.EFD_CLOEXEC)
            self.set = functools.partial(os.eventfd_write, fd, 1)
            # unlike eventfd_read it goes on after a signal, or raises what it means
            self.wait = functools.partial(os.read, fd, 8)
        else:  # pragma: no cover - not on Linux
            fd, write_fd = os.pipe()
            self.set = functools.partial(os.write, write_fd, b"x")
            self.wait = functools.partial(os.read, fd, 1)
        self._fd = fd

    def wait_for(self, seconds: float) -> bool:
        """Wait until it is set, for `seconds` at most, and return whether it was."""
        ready = select.poll()
        ready.register(self._fd, select.POLLIN)
        if not ready.poll(1000 * seconds):
            return False
        self.wait()
        return True


class Carrier:
    """One pooled OS thread: runs a job when its signal is set between two jobs. `busy` from the
    moment it gets a job until the job says that the carrier may have another: from then on the job
    only returns."""

    def __init__(self, number: int) -> None:
        self.signal = Signal()
        self.busy = False
        self._job: Callable[[], None] | None = None
        self.thread = threading.Thread(target=self._loop, name=f"carrier{number}", daemon=True)
        self.thread.start()

    def load(self, job: Callable[[], None]) -> None:
        """Give the idle carrier its next job; it starts when the signal is set."""
        self.busy = True
        self._job = job

    def _loop(self) -> None:
        wait = self.signal.wait
        while True:
            wait()
            job, self._job = self._job, None
            if job is not None:
                job()
            job = None  # it holds the whole schedule


class Pool:
    """The process's carriers. Task number n of every schedule runs on carrier n, so that
    thread-local records of one schedule never mix; schedules run one after another."""

    def __init__(self) -> None:
        self._carriers: list[Carrier] = []
        self.main = Signal()
        """What the thread that owns the schedule waits for."""
        self.busy = threading.Lock()
        """Held by whoever runs a schedule."""
        self.hub: Hub | None = None
        """The thread for greenlets, once there is one."""

    def carrier(self, number: int) -> Carrier:
        """Carrier `number`, made when it is first needed, or when an interrupt has left a task on
        the one there was."""
        while len(self._carriers) <= number:
            self._carriers.append(Carrier(len(self._carriers)))
        if self._carriers[number].busy:
            self._carriers[number] = Carrier(number)
        return self._carriers[number]

    def threads(self) -> list[threading.Thread]:
        """The threads that tasks run on."""
        threads = [carrier.thread for carrier in self._carriers]
        return threads if self.hub is None else [*threads, self.hub.thread]


POOL = Pool()


def _after_fork() -> None:
    """A child process has none of the threads, and shares the events with its parent: begin
    afresh."""
    POOL.__init__()  # type: ignore[misc]  # the one object that everybody knows


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def pinned(slot: int | None = None) -> Iterator[None]:
    """Keep the calling thread and the carriers on one of the CPUs that the process may use, and
    give all back afterwards.

    Processes that explore at the same time should have different slots; without one the process's
    number decides.
    """
    if not hasattr(os, "sched_setaffinity"):  # pragma: no cover - not on Linux
        yield
        return
    before = os.sched_getaffinity(0)
    cpu = {sorted(before)[(os.getpid() if slot is None else slot) % len(before)]}
    try:
        _move(cpu)
        yield
    finally:
        _move(before)


def _move(cpus: set[int]) -> None:
    os.sched_setaffinity(0, cpus)  # threads that are made from here on inherit it
    for thread in POOL.threads():
        if thread.native_id is not None:
            os.sched_setaffinity(thread.native_id, cpus)
