"""The runtime with time-outs and with the memory order of x86: unknown code under store buffers."""

from __future__ import annotations

from stress.engines.timed_runtime import TimedLock, TimedRuntime
from stress.engines.tso import BufferedLock, TsoRuntime


class TimedBufferedLock(TimedLock, BufferedLock):
    """A mutual-exclusion lock whose acquisition may time out and whose release is buffered."""


class TimedTsoRuntime(TimedRuntime, TsoRuntime):  # type: ignore[misc]  # its scheduler is both
    """Makes what tasks share on a scheduler with both timers and store buffers."""

    lock_class = TimedBufferedLock

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass; the task gives its CPU up, which empties the buffer."""
        self.mb("sleep")
        super().sleep(seconds)
