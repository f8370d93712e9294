"""OS threads that carry controlled tasks: reused from schedule to schedule, each parked on an event of its own.

An `os.eventfd` (a pipe where there is none) costs 2 to 3 µs a hand-off on every CPython build when all threads share one
CPU; locks and conditions cost up to ten times that without the GIL, and an idle CPU that has to be woken twenty times.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ONE = (1).to_bytes(8, "little")


class Signal:
    """Something that one thread waits for and any thread sets; set once for each wait."""

    __slots__ = ("_read_fd", "_write_fd")

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read_fd = self._write_fd = os.eventfd(0, os.EFD_CLOEXEC)
        else:  # pragma: no cover - not on Linux
            self._read_fd, self._write_fd = os.pipe()

    def set(self) -> None:
        """Let the waiting thread go on."""
        os.write(self._write_fd, _ONE)

    def wait(self) -> None:
        """Wait until it is set."""
        os.read(self._read_fd, 8)


class Carrier:
    """One pooled OS thread: runs a job whenever its signal is set between two jobs."""

    def __init__(self, number: int) -> None:
        self.signal = Signal()
        self._job: Callable[[], None] | None = None
        self.thread = threading.Thread(target=self._loop, name=f"carrier{number}", daemon=True)
        self.thread.start()

    def load(self, job: Callable[[], None]) -> None:
        """Give the idle carrier its next job; it starts when the signal is set."""
        self._job = job

    def _loop(self) -> None:
        wait = self.signal.wait
        while True:
            wait()
            job = self._job
            if job is not None:
                job()


class Pool:
    """The process's carriers. Task number n of every schedule runs on carrier n, so that thread-local records of one
    schedule never mix; schedules run one after another."""

    def __init__(self) -> None:
        self._carriers: list[Carrier] = []
        self.main = Signal()
        """What the thread that owns the schedule waits for."""
        self.busy = threading.Lock()
        """Held by whoever runs a schedule."""

    def carrier(self, number: int) -> Carrier:
        """Carrier `number`, made when it is first needed."""
        while len(self._carriers) <= number:
            self._carriers.append(Carrier(len(self._carriers)))
        return self._carriers[number]

    def replace(self, number: int) -> None:
        """Carrier `number` is lost in foreign code: forget it."""
        self._carriers[number] = Carrier(number)

    def threads(self) -> list[threading.Thread]:
        """The carriers' threads."""
        return [carrier.thread for carrier in self._carriers]


POOL = Pool()


@contextmanager
def pinned(slot: int = 0) -> Iterator[None]:
    """Keep the calling thread and the carriers on one of the CPUs that the process may use, and give all back afterwards."""
    if not hasattr(os, "sched_setaffinity"):  # pragma: no cover - not on Linux
        yield
        return
    before = os.sched_getaffinity(0)
    cpu = {sorted(before)[slot % len(before)]}
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
