"""A runtime whose clock stands still unless its owner waits: stalls of any length, exact, in no
time at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mmu.runtime import LATE_NS, RawLock, Runtime

STEP_NS = LATE_NS
"""How far a pause moves the clock."""


class ClockRuntime(Runtime):
    """Real threads, but time passes only where the thread that made this runtime waits, a step a
    look.

    Other threads that wait do so on the machine's clock, and move nothing. `share` of the time the
    process is served: less than 1 on a machine that has other things to do.
    """

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self._share = share
        self._owner = threading.get_ident()
        self._ns = 0
        self._due: list[tuple[int, Callable[[], None]]] = []

    def now(self) -> int:
        """Nanoseconds since the runtime was made."""
        return self._ns

    def served(self) -> int:
        """Its share of what has passed."""
        return round(self._ns * self._share)

    def sleep(self, seconds: float) -> None:
        """One step, for the owner."""
        if threading.get_ident() != self._owner:
            time.sleep(seconds)
        else:
            self.advance(STEP_NS / 1e9)

    def advance(self, seconds: float) -> None:
        """Let time pass, and do what is due by then."""
        self._ns += round(seconds * 1e9)
        due = [event for event in self._due if event[0] <= self._ns]
        self._due = [event for event in self._due if event[0] > self._ns]
        for _, action in due:
            action()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do `action`, in the owner's thread, when the clock has come that far."""
        self._due.append((self._ns + round(seconds * 1e9), action))

    def lock(self, name: str = "lock") -> RawLock:  # noqa: ARG002 - as in `Runtime`
        """A lock whose timeouts are this clock's."""
        return ClockLock(self)


class ClockLock:
    """A mutual-exclusion lock: whoever waits for it lets the clock's time pass."""

    def __init__(self, runtime: ClockRuntime) -> None:
        self._lock = threading.Lock()
        self._runtime = runtime

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; false only when not blocking or timed out."""
        deadline = self._runtime.now() + timeout * 1e9
        while not self._lock.acquire(False):
            if not blocking or (timeout >= 0 and self._runtime.now() >= deadline):
                return False
            self._runtime.sleep(0.001)
        return True

    def release(self) -> None:
        """Give it back."""
        self._lock.release()
