"""`threading.Lock` and `threading.RLock` under control."""

from __future__ import annotations

import _thread
from typing import Any

from stress.engines.tasks import ControlledTask
from stress.engines.timed_runtime import TimedLock
from stress.testing.plain.names import name_at
from stress.testing.plain.session import PlainSession, called_by_harness, inside, state_of_caller

REAL_LOCK: Any = _thread.allocate_lock
REAL_RLOCK: Any = _thread.RLock
LOCK_TYPE: Any = type(REAL_LOCK())
RLOCK_TYPE: Any = type(REAL_RLOCK())


class _Base:
    """What both kinds of lock share: a controlled lock for tasks, a real one for everybody else.

    A lock that was there before the exploration stands in for the real one that it was, which it
    goes on being for threads that are no tasks.
    """

    _make: Any

    def __init__(self, name: str, real: Any = None, path: str | None = None) -> None:
        self.name = name
        self._real = real
        self._path = path
        self._session: PlainSession | None = None
        self._inner: TimedLock | None = None
        self._depth = 0
        session = inside()
        if session is not None and real is None:
            self._enter(session)

    def _enter(self, session: PlainSession) -> TimedLock:
        """The lock's state in this schedule."""
        self._session = session
        self._depth = 0
        word = session.number(self, self._path)
        self._inner = inner = session.runtime.lock_of(word, self.name)
        if self._real is not None and _is_locked(self._real):
            inner.owner = session.scheduler.outside
        return inner

    def peek(self, index: int = 0) -> str:  # noqa: ARG002 - one word
        """The name of the task that holds the lock, without a step."""
        return self._inner.peek() if self._inner is not None else ""

    def _controlled(self) -> TimedLock | None:
        """The lock that the calling task uses; None if the caller is no task."""
        session = inside()
        if session is None:
            return None
        if session is self._session:
            return self._inner
        return self._enter(session)

    def _uncontrolled(self) -> Any:
        if self._real is None:
            self._real = self._make()
        return self._real

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock; return whether it was acquired."""
        raise NotImplementedError

    def release(self) -> None:
        """Release the lock."""
        raise NotImplementedError

    def _at_fork_reinit(self) -> None:
        self._uncontrolled()._at_fork_reinit()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class PlainLock(_Base):
    """What `threading.Lock()` is for tasks."""

    _make = REAL_LOCK

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock. With `blocking=False` or a time-out, return whether that succeeded."""
        inner = self._controlled()
        if inner is None:
            got: bool = self._uncontrolled().acquire(blocking, timeout)
            return got
        _check(blocking, timeout)
        return inner.acquire(blocking, timeout, state=_state(timeout))

    def release(self) -> None:
        """Release the lock, whoever holds it."""
        inner = self._controlled()
        if inner is None:
            self._uncontrolled().release()
        else:
            inner.release()

    def locked(self) -> bool:
        """Whether any task holds the lock."""
        inner = self._controlled()
        return bool(self._uncontrolled().locked()) if inner is None else inner.locked()

    acquire_lock = acquire
    release_lock = release
    locked_lock = locked


class PlainRLock(_Base):
    """What `threading.RLock()` is for tasks. Only the outermost acquisition and release are
    steps."""

    _make = REAL_RLOCK

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock, once more if the task holds it."""
        inner = self._controlled()
        if inner is None:
            got: bool = self._uncontrolled().acquire(blocking, timeout)
            return got
        _check(blocking, timeout)
        if inner.owner is _running(inner):
            self._depth += 1
            return True
        return inner.acquire(blocking, timeout, state=_state(timeout))

    def release(self) -> None:
        """Give one acquisition back."""
        inner = self._controlled()
        if inner is None:
            self._uncontrolled().release()
            return
        if inner.owner is not _running(inner):
            raise RuntimeError("cannot release un-acquired lock")
        if self._depth:
            self._depth -= 1
        else:
            inner.release()

    def locked(self) -> bool:
        """Whether any task holds the lock."""
        inner = self._controlled()
        return bool(self._uncontrolled().locked()) if inner is None else inner.locked()

    # What `threading.Condition` asks of a lock.

    def _is_owned(self) -> bool:
        inner = self._controlled()
        if inner is None:
            return bool(self._uncontrolled()._is_owned())
        return inner.owner is _running(inner)

    def _recursion_count(self) -> int:
        inner = self._controlled()
        if inner is None:
            return int(self._uncontrolled()._recursion_count())
        return self._depth + 1 if inner.owner is _running(inner) else 0

    def _release_save(self) -> Any:
        inner = self._controlled()
        if inner is None:
            return self._uncontrolled()._release_save()
        if inner.owner is not _running(inner):
            raise RuntimeError("cannot release un-acquired lock")
        depth, self._depth = self._depth, 0
        inner.release()
        return depth

    def _acquire_restore(self, saved: Any) -> None:
        inner = self._controlled()
        if inner is None:
            self._uncontrolled()._acquire_restore(saved)
            return
        inner.acquire()
        self._depth = saved


def _running(inner: TimedLock) -> ControlledTask:
    return inner.scheduler.running


def _is_locked(real: Any) -> bool:
    return (
        bool(real.locked())
        if hasattr(real, "locked")
        else not real.acquire(False) or bool(real.release())
    )


def _state(timeout: float) -> Any:
    return state_of_caller() if timeout >= 0 else None


def _check(blocking: bool, timeout: float) -> None:
    """Refuse what `_thread.lock.acquire` refuses."""
    if not blocking and timeout != -1:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if timeout < 0 and timeout != -1:
        raise ValueError("timeout value must be a non-negative number")


class _LockMaker(type):
    """The type of what stands in for `threading.Lock` and `threading.RLock`."""

    kind: str
    real_type: Any
    plain: type[_Base]

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, (cls.real_type, cls.plain))

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """A lock under control for a task, and a real one for everybody else."""
        session = inside()
        if session is None or session.raw or called_by_harness():
            return cls.plain._make(*args, **options)
        if args or options:
            raise TypeError(f"{cls.kind}() takes no arguments")
        return cls.plain(name_at(cls.kind))


class LockName(metaclass=_LockMaker):
    """Stands in for `threading.Lock`."""

    kind = "lock"
    real_type = LOCK_TYPE
    plain = PlainLock


class RLockName(metaclass=_LockMaker):
    """Stands in for `threading.RLock`."""

    kind = "rlock"
    real_type = RLOCK_TYPE
    plain = PlainRLock


def stand_in(real: Any, path: str) -> _Base:
    """A lock for tasks and others in place of `real`, which was there before the exploration."""
    kind = PlainRLock if isinstance(real, RLOCK_TYPE) else PlainLock
    return kind(path.rpartition(":")[2], real, path)
