"""The clocks of `time` under control: virtual time, the same in every process."""

from __future__ import annotations

from typing import Any, Final

from stress.testing.plain.session import PlainSession, state_of_caller

EPOCH_NS: Final = 1_700_000_000 * 10**9
"""What `time.time()` says at the start of every schedule, in nanoseconds."""


def sleep(session: PlainSession, _: Any, seconds: float) -> None:
    """`time.sleep()`."""
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    session.scheduler.sleep(seconds, state_of_caller())


def ticks_ns(session: PlainSession, _: Any) -> int:
    """`time.monotonic_ns()` and `time.perf_counter_ns()`."""
    return session.runtime.now()


def ticks(session: PlainSession, _: Any) -> float:
    """`time.monotonic()` and `time.perf_counter()`."""
    return session.runtime.now() / 1e9


def wall_ns(session: PlainSession, _: Any) -> int:
    """`time.time_ns()`."""
    return EPOCH_NS + session.runtime.now()


def wall(session: PlainSession, _: Any) -> float:
    """`time.time()`."""
    return (EPOCH_NS + session.runtime.now()) / 1e9
