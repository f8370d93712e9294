"""The queues of `queue` under control: what their methods do for tasks."""

from __future__ import annotations

import copy
import queue
from collections import deque
from collections.abc import Callable
from typing import Any

from stress.engines.steps import ACQUIRE, LOAD, RMW
from stress.engines.tasks import ControlledTask
from stress.testing.plain.session import PlainSession, called_by_harness, inside, state_of_caller
from stress.testing.plain.waits import PlainState

REAL_SIMPLE: Any = queue.SimpleQueue
ShutDown: type[Exception] = getattr(queue, "ShutDown", queue.Empty)


class _End:
    """One end of a queue: the tasks that wait to put something in, or to take something out."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self.pending: list[ControlledTask] = []
        self._ready = ready

    def open_to(self, task: ControlledTask) -> bool:  # noqa: ARG002 - all are equal
        """Whether the operation could be done now."""
        return self._ready()

    def owners(self) -> list[ControlledTask]:
        """Nobody keeps a queue."""
        return []


class QueueState(PlainState):
    """A queue: `take` and `put` are the operations on what it holds, and `size` says how much that
    is."""

    kind = "queue"

    def __init__(self, session: PlainSession, thing: Any) -> None:
        super().__init__(session, thing)
        self.to_get = _End(self.can_get)
        self.to_put = _End(self.can_put)
        self.thing = thing

    @property
    def bound(self) -> int:
        """How much it may hold; 0 for no bound."""
        return int(self.thing.maxsize)

    @property
    def size(self) -> int:
        """How much it holds."""
        return int(self.thing._qsize())

    @property
    def is_shut(self) -> bool:
        """Whether it was shut down."""
        return bool(getattr(self.thing, "is_shutdown", False))

    def peek(self, index: int = 0) -> int:  # noqa: ARG002 - one word
        """How much it holds, without a step."""
        return self.size

    def can_get(self) -> bool:
        """Whether a get would not wait."""
        return self.size > 0 or self.is_shut

    def can_put(self) -> bool:
        """Whether a put would not wait."""
        return self.bound <= 0 or self.size < self.bound or self.is_shut

    def updated(self) -> None:
        """The queue has changed: whoever waits looks again."""
        for end in (self.to_get, self.to_put):
            if end.pending:
                self.scheduler.gate_changed(end)
        self.changed()

    def pass_end(self, end: _End, what: str, block: bool, timeout: float | None) -> bool:
        """Wait for one end of the queue; return whether the operation can be done."""
        if not block or (end is self.to_put and self.bound <= 0):
            self.step(RMW)
            if end.open_to(self.scheduler.running):
                return True
            self.scheduler.was_load()
            return False
        if timeout is None:
            self.scheduler.pass_gate(ACQUIRE, self.word, end, what)
            return True
        if timeout < 0:
            raise ValueError("'timeout' must be a non-negative number")
        return self.scheduler.pass_in_time(
            self.word, ACQUIRE, end, what, timeout, state_of_caller()
        )

    def put(self, block: bool, timeout: float | None) -> None:
        """Wait until there is room; raise `queue.Full` if there is none in time."""
        what = f"room in {self.name}"
        if not self.pass_end(self.to_put, what, block, timeout):
            raise queue.Full
        if self.is_shut:
            raise ShutDown

    def get(self, block: bool, timeout: float | None) -> None:
        """Wait until there is an item; raise `queue.Empty` if there is none in time."""
        what = f"an item in {self.name}"
        if not self.pass_end(self.to_get, what, block, timeout):
            raise queue.Empty
        if self.is_shut and not self.size:
            raise ShutDown


def _state_of(session: PlainSession, thing: Any) -> QueueState:
    return session.twin(thing, _make)


def _make(session: PlainSession, thing: Any) -> QueueState:
    """The state of a queue. What it holds is in the object itself; one that was there before gets
    its own back at the end."""
    if session.path_of(thing) is not None:
        contents, unfinished = thing.queue, thing.unfinished_tasks
        session.at_end(lambda: vars(thing).update(queue=contents, unfinished_tasks=unfinished))
        thing.queue = copy.copy(contents)
    return QueueState(session, thing)


def queue_init(session: PlainSession, original: Any, thing: Any, maxsize: int = 0) -> None:
    """`Queue()`."""
    with session.uncontrolled():
        original(thing, maxsize)
    _state_of(session, thing)


def queue_put(
    session: PlainSession,
    _: Any,
    thing: Any,
    item: object,
    block: bool = True,
    timeout: float | None = None,
) -> None:
    """`Queue.put()`."""
    state = _state_of(session, thing)
    state.put(block, timeout)
    thing._put(item)
    thing.unfinished_tasks += 1
    state.updated()


def queue_get(
    session: PlainSession, _: Any, thing: Any, block: bool = True, timeout: float | None = None
) -> object:
    """`Queue.get()`."""
    state = _state_of(session, thing)
    state.get(block, timeout)
    item: object = thing._get()
    state.updated()
    return item


def queue_task_done(session: PlainSession, _: Any, thing: Any) -> None:
    """`Queue.task_done()`."""
    state = _state_of(session, thing)
    state.step(RMW)
    if thing.unfinished_tasks <= 0:
        raise ValueError("task_done() called too many times")
    thing.unfinished_tasks -= 1
    state.updated()


def queue_join(session: PlainSession, _: Any, thing: Any) -> None:
    """`Queue.join()`."""
    state = _state_of(session, thing)
    state.wait(lambda: not thing.unfinished_tasks, f"{state.name} to be done", None)


def queue_qsize(session: PlainSession, _: Any, thing: Any) -> int:
    """`Queue.qsize()`."""
    state = _state_of(session, thing)
    state.step(LOAD)
    return state.size


def queue_empty(session: PlainSession, _: Any, thing: Any) -> bool:
    """`Queue.empty()`."""
    return not queue_qsize(session, _, thing)


def queue_full(session: PlainSession, _: Any, thing: Any) -> bool:
    """`Queue.full()`."""
    return bool(0 < thing.maxsize <= queue_qsize(session, _, thing))


def queue_shutdown(session: PlainSession, _: Any, thing: Any, immediate: bool = False) -> None:
    """`Queue.shutdown()`, which is new in Python 3.13."""
    state = _state_of(session, thing)
    state.step(RMW)
    thing.is_shutdown = True
    if immediate:
        while state.size:
            thing._get()
            if thing.unfinished_tasks > 0:
                thing.unfinished_tasks -= 1
    state.updated()


class PlainSimpleQueue:
    """What `queue.SimpleQueue()` is for tasks. `real` is the one that it stands in for."""

    maxsize = 0

    def __init__(self, real: Any = None) -> None:
        self._real = real
        self.queue: deque[object] = deque()
        session = inside()
        if session is not None and real is None:
            session.twin(self, _make_simple)

    def _qsize(self) -> int:
        return len(self.queue)

    def _state(self) -> QueueState | None:
        session = inside()
        return session.twin(self, _make_simple) if session is not None else None

    def _uncontrolled(self) -> Any:
        if self._real is None:
            self._real = REAL_SIMPLE()
            while self.queue:
                self._real.put(self.queue.popleft())
        return self._real

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Add at the end; never waits."""
        state = self._state()
        if state is None:
            self._uncontrolled().put(item, block, timeout)
            return
        state.put(False, None)
        self.queue.append(item)
        state.updated()

    def put_nowait(self, item: object) -> None:
        """Add at the end."""
        self.put(item, False)

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        """Remove the oldest item; raise `queue.Empty` if there is none in time."""
        state = self._state()
        if state is None:
            return self._uncontrolled().get(block, timeout)
        state.get(block, timeout)
        item = self.queue.popleft()
        state.updated()
        return item

    def get_nowait(self) -> object:
        """Remove the oldest item, if there is one."""
        return self.get(False)

    def qsize(self) -> int:
        """How much it holds."""
        state = self._state()
        if state is None:
            return int(self._uncontrolled().qsize())
        state.step(LOAD)
        return len(self.queue)

    def empty(self) -> bool:
        """Whether it holds nothing."""
        return not self.qsize()


def _make_simple(session: PlainSession, thing: PlainSimpleQueue) -> QueueState:
    if session.path_of(thing) is not None:
        session.at_end(thing.queue.clear)
    return QueueState(session, thing)


class _SimpleMaker(type):
    """The type of what stands in for `queue.SimpleQueue`."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, (REAL_SIMPLE, PlainSimpleQueue))

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """A queue under control for a task, and a real one for everybody else."""
        session = inside()
        if session is None or session.raw or called_by_harness():
            return REAL_SIMPLE(*args, **options)
        return PlainSimpleQueue()


class SimpleQueue(metaclass=_SimpleMaker):
    """Stands in for `queue.SimpleQueue`."""
