"""`mmu.sync` without a `Sync` of one's own: for tasks, the default is the exploration's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmu.runtime import Runtime
from mmu.sync import Lock, Sync
from mmu.sync.default import serve_instead
from mmu.sync.rwlocks import ReaderWriterLock
from stress.testing.plain.session import PlainSession, inside

CHECKED = (Lock, ReaderWriterLock)


@contextmanager
def served() -> Iterator[None]:
    """While the block runs, tasks that ask for the default `Sync`, or make one, get controlled
    ones."""
    before = Sync.make_runtime
    Sync.make_runtime = staticmethod(_make_runtime)
    try:
        with serve_instead(_sync_of_task):
            yield
    finally:
        Sync.make_runtime = before


def make_again(locks: Sequence[Any], session: PlainSession) -> None:
    """Make locks that were there before the exploration members of the session's `Sync`, until it
    ends."""
    for lock in locks:
        attributes = dict(vars(lock))
        session.at_end(_restore(lock, attributes))
        sleeping = lock.lock_class.sleeping
        type(lock).__init__(lock, name=lock.name, atomic=not sleeping, sync=session.sync)


def _restore(lock: Any, attributes: dict[str, Any]) -> Callable[[], None]:
    def restore() -> None:
        vars(lock).clear()
        vars(lock).update(attributes)

    return restore


def _sync_of_task() -> Sync | None:
    session = inside()
    return session.sync if session is not None else None


def _make_runtime() -> Runtime:
    session = inside()
    return session.runtime if session is not None else Runtime()
