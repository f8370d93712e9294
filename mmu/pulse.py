"""Whether the process was served: time in which its threads got their turns.

A bound on how long something may take is meant for a process that runs. On a stopped or overloaded
machine nobody gets anywhere, and that is nobody's fault. So a thread of its own beats fifty times a
second, and the time between two beats counts only as far as the second one came about when it was
due: if this thread gets its turns, so do the others.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

BEAT_S: Final = 0.02
WORTH_NS: Final = 40_000_000
"""A beat that comes later than this after the one before counts as this much only."""
SLACK_NS: Final = 2 * WORTH_NS
"""What a measurement may miss because beats come only now and then."""


class Pulse:
    """Counts the time in which the process was served. The thread that beats is started by whoever
    first asks."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._last = 0
        self._served = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def served(self) -> int:
        """Nanoseconds so far; a measurement takes the difference."""
        if self._thread is None:
            self._start()
        return self._served

    def beat(self) -> None:
        """The thread that beats has got its turn."""
        now = self._clock()
        self._served += min(now - self._last, WORTH_NS)
        self._last = now

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._last = self._clock()
                thread = threading.Thread(target=self._beat_for_ever, name="pulse", daemon=True)
                thread.start()
                self._thread = thread

    def _beat_for_ever(self) -> None:
        while True:
            time.sleep(BEAT_S)
            self.beat()


PULSE: Final = Pulse()
"""The process's own."""


def _after_fork() -> None:
    """A child process has none of the threads."""
    PULSE.__init__()  # type: ignore[misc]  # the one object that everybody knows


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class TwoClocks(Protocol):
    """What a stopwatch reads: a runtime has both."""

    def now(self) -> int:
        """Nanoseconds that have passed."""
        ...

    def served(self) -> int:
        """Nanoseconds of them in which the process was served."""
        ...


class Stopwatch:
    """How long something has lasted by the runtime's clock, but for time in which the process was
    not served."""

    __slots__ = ("_clocks", "_now", "_served")

    def __init__(self, clocks: TwoClocks) -> None:
        self._clocks = clocks
        self._now = clocks.now()
        self._served = clocks.served()

    def ns(self) -> int:
        """Nanoseconds since it was made."""
        return min(self._clocks.now() - self._now, self._clocks.served() - self._served + SLACK_NS)

    def seconds(self) -> float:
        """The same in seconds."""
        return self.ns() / 1e9
