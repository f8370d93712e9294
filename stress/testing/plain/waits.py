"""`threading.Event`, `Condition` and `Semaphore` under control: what their methods do for tasks.

The state that tasks see is kept beside the object, so that an object that was there before the
exploration is afterwards what it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from stress.engines.steps import ACQUIRE, LOAD, RMW, STORE
from stress.engines.tasks import ControlledTask
from stress.testing.plain.locks import PlainLock
from stress.testing.plain.names import name_at
from stress.testing.plain.session import PlainSession, state_of_caller


class PlainState:
    """The state of one object in one schedule; to the scheduler it is one word."""

    kind = ""

    def __init__(self, session: PlainSession, thing: Any) -> None:
        path = session.path_of(thing)
        self.name = path.rpartition(":")[2] if path else name_at(self.kind)
        self.session = session
        self.scheduler = session.scheduler
        self.word = session.number(self, path)

    def step(self, kind: int) -> None:
        """The running task is about to do `kind` on the object."""
        self.scheduler.step(kind, self.word)

    def changed(self) -> None:
        """The object has changed: tasks that wait for it look again."""
        if self.word in self.scheduler.watched:
            self.scheduler.wrote(self.word)

    def wait(self, ready: Callable[[], bool], what: str, timeout: float | None) -> bool:
        """Wait until `ready`, which reads the object; false if that took longer than `timeout`."""

        def look() -> bool:
            self.step(LOAD)
            return ready()

        if timeout is None:
            self.scheduler.wait(what, look)
            return True
        return self.scheduler.wait_in_time(what, look, max(timeout, 0.0), state_of_caller())


class EventState(PlainState):
    """An event."""

    kind = "event"

    def __init__(self, session: PlainSession, event: Any) -> None:
        super().__init__(session, event)
        self.flag: bool = event._flag

    def peek(self, index: int = 0) -> bool:  # noqa: ARG002 - one word
        """Whether it is set, without a step."""
        return self.flag


def event_init(session: PlainSession, original: Any, event: Any) -> None:
    """`Event()`."""
    with session.uncontrolled():
        original(event)
    session.twin(event, EventState)


def event_is_set(session: PlainSession, _: Any, event: Any) -> bool:
    """`Event.is_set()`."""
    state = session.twin(event, EventState)
    state.step(LOAD)
    return state.flag


def event_set(session: PlainSession, _: Any, event: Any) -> None:
    """`Event.set()`."""
    _store(session, event, True)


def event_clear(session: PlainSession, _: Any, event: Any) -> None:
    """`Event.clear()`."""
    _store(session, event, False)


def _store(session: PlainSession, event: Any, flag: bool) -> None:
    state = session.twin(event, EventState)
    state.step(STORE)
    state.flag = flag
    state.changed()


def event_wait(session: PlainSession, _: Any, event: Any, timeout: float | None = None) -> bool:
    """`Event.wait()`."""
    state = session.twin(event, EventState)
    return state.wait(lambda: state.flag, f"{state.name} to be set", timeout)


class SemaphoreState(PlainState):
    """A semaphore."""

    kind = "semaphore"

    def __init__(self, session: PlainSession, semaphore: Any) -> None:
        super().__init__(session, semaphore)
        self.value: int = semaphore._value
        self.pending: list[ControlledTask] = []

    def peek(self, index: int = 0) -> int:  # noqa: ARG002 - one word
        """Its value, without a step."""
        return self.value

    def open_to(self, task: ControlledTask) -> bool:  # noqa: ARG002 - all are equal
        """Whether it can be acquired."""
        return self.value > 0

    def owners(self) -> list[ControlledTask]:
        """Nobody keeps a semaphore."""
        return []

    def acquire(self, blocking: bool, timeout: float | None) -> bool:
        """Take one; return whether that was possible."""
        scheduler = self.scheduler
        if not blocking:
            self.step(RMW)
            if not self.value:
                scheduler.was_load()
                return False
        elif timeout is None:
            scheduler.pass_gate(ACQUIRE, self.word, self, self.name)
        elif not scheduler.pass_in_time(
            self.word, ACQUIRE, self, self.name, max(timeout, 0.0), state_of_caller()
        ):
            return False
        self.value -= 1
        scheduler.gate_changed(self)
        return True


def semaphore_init(session: PlainSession, original: Any, semaphore: Any, value: int = 1) -> None:
    """`Semaphore()`."""
    with session.uncontrolled():
        original(semaphore, value)
    session.twin(semaphore, SemaphoreState)


def semaphore_acquire(
    session: PlainSession,
    _: Any,
    semaphore: Any,
    blocking: bool = True,
    timeout: float | None = None,
) -> bool:
    """`Semaphore.acquire()`."""
    if not blocking and timeout is not None:
        raise ValueError("can't specify timeout for non-blocking acquire")
    return session.twin(semaphore, SemaphoreState).acquire(blocking, timeout)


def semaphore_release(session: PlainSession, _: Any, semaphore: Any, n: int = 1) -> None:
    """`Semaphore.release()` and `BoundedSemaphore.release()`."""
    if n < 1:
        raise ValueError("n must be one or more")
    state = session.twin(semaphore, SemaphoreState)
    # no RELEASE: that would mean that nobody could have come in before
    state.step(RMW)
    if (
        isinstance(semaphore, threading.BoundedSemaphore)
        and state.value + n > semaphore._initial_value  # type: ignore[attr-defined]
    ):
        raise ValueError("Semaphore released too many times")
    state.value += n
    state.scheduler.gate_changed(state)


class ConditionState(PlainState):
    """A condition variable: the tasks that wait, in their order."""

    kind = "condition"

    def __init__(self, session: PlainSession, condition: Any) -> None:
        super().__init__(session, condition)
        self.waiters: list[Waiter] = []

    def notify(self, count: int) -> None:
        """Wake the first `count` waiters."""
        scheduler = self.scheduler
        self.step(RMW)
        woken, self.waiters = self.waiters[:count], self.waiters[count:]
        if woken and not scheduler.quiet:
            scheduler.extras.setdefault(len(scheduler.trace) - 1, []).extend(
                (STORE, waiter.word) for waiter in woken
            )
        for waiter in woken:
            waiter.notified = True
            if waiter.word in scheduler.watched:
                scheduler.wrote(waiter.word)


class Waiter:
    """One wait for a condition."""

    def __init__(self, state: ConditionState) -> None:
        self.name = state.name
        self.notified = False
        self._scheduler = state.scheduler
        self.word = state.scheduler.number(1, self)

    def ready(self) -> bool:
        """Whether the wait is over."""
        self._scheduler.step(LOAD, self.word)
        return self.notified


def condition_init(session: PlainSession, original: Any, condition: Any, lock: Any = None) -> None:
    """`Condition()`."""
    original(condition, lock)
    session.twin(condition, ConditionState)


def condition_wait(
    session: PlainSession, _: Any, condition: Any, timeout: float | None = None
) -> bool:
    """`Condition.wait()`."""
    if not _is_owned(condition):
        raise RuntimeError("cannot wait on un-acquired lock")
    state = session.twin(condition, ConditionState)
    scheduler = session.scheduler
    waiter = Waiter(state)
    what = f"a notify of {state.name}"
    # the time-out of a loop around this wait is a poll, whatever lock it holds
    caller = state_of_caller() if timeout is not None else None
    state.waiters.append(waiter)
    saved = condition._release_save()
    woken = timeout is None
    try:
        if timeout is None:
            scheduler.wait(what, waiter.ready)
        else:
            woken = scheduler.wait_in_time(what, waiter.ready, max(timeout, 0.0), caller)
    finally:
        condition._acquire_restore(saved)
        # not before the lock is back, as in `threading`: a notify in between is lost
        if waiter in state.waiters:
            state.waiters.remove(waiter)
    return woken


def condition_notify(session: PlainSession, _: Any, condition: Any, n: int = 1) -> None:
    """`Condition.notify()`."""
    if not _is_owned(condition):
        raise RuntimeError("cannot notify on un-acquired lock")
    session.twin(condition, ConditionState).notify(n)


def condition_notify_all(session: PlainSession, _: Any, condition: Any) -> None:
    """`Condition.notify_all()`."""
    state = session.twin(condition, ConditionState)
    condition_notify(session, _, condition, max(len(state.waiters), 1))


def _is_owned(condition: Any) -> bool:
    """Whether the condition's lock is held: by anyone, if it is a plain lock, as in `threading`."""
    lock = condition._lock
    if isinstance(lock, PlainLock):
        return lock.peek() != ""
    return bool(condition._is_owned())
