"""`concurrent.futures.ThreadPoolExecutor` under control: its workers are tasks."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, _base
from typing import Any, Final

from stress.engines.steps import ACQUIRE, RMW
from stress.engines.tasks import Abandoned, ControlledTask
from stress.testing.plain.session import PlainSession
from stress.testing.plain.threads import start, thread_join
from stress.testing.plain.waits import PlainState

_INIT: Final = Future.__init__
_UNNAMED: Final = re.compile(r"^ThreadPoolExecutor-\d+$")
Work = tuple[Future[Any], Callable[[], object]]


class PoolState(PlainState):
    """A pool: the work that nobody has begun, and its workers."""

    kind = "pool"

    def __init__(self, session: PlainSession, executor: Any) -> None:
        super().__init__(session, executor)
        self.work: deque[Work] = deque()
        self.workers: list[Any] = []
        self.is_shut = False
        self.pending: list[ControlledTask] = []
        self._executor = executor
        given: str = executor._thread_name_prefix or "pool"
        self._prefix = _UNNAMED.sub(f"ThreadPoolExecutor-{session.pools}", given)
        """Pools without a name are numbered in each schedule anew."""
        session.pools += 1

    def peek(self, index: int = 0) -> int:  # noqa: ARG002 - one word
        """How much work waits, without a step."""
        return len(self.work)

    def open_to(self, task: ControlledTask) -> bool:  # noqa: ARG002 - all are equal
        """Whether a worker has something to do."""
        return bool(self.work) or self.is_shut

    def owners(self) -> list[ControlledTask]:
        """Nobody keeps a pool."""
        return []

    def submit(self, call: Callable[[], object]) -> Future[Any]:
        """Queue `call`, and start a worker if there may be another. The real pool starts none while
        one is idle, which depends on how fast it is."""
        self.step(RMW)
        if self.is_shut or self._executor._shutdown:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[Any] = Future.__new__(Future)
        future_init(self.session, _INIT, future)
        self.work.append((future, call))
        if len(self.workers) < self._executor._max_workers:
            self._hire()
        self.scheduler.gate_changed(self)
        return future

    def shut(self, wait: bool, cancel_futures: bool) -> None:
        """End the workers when the work is done, or cancelled."""
        self.step(RMW)
        self.is_shut = True
        dropped = []
        if cancel_futures:
            dropped = [future for future, _ in self.work]
            self.work.clear()
        self.scheduler.gate_changed(self)
        for future in dropped:
            future.cancel()
        for worker in self.workers if wait else ():
            thread_join(self.session, None, worker)

    def _hire(self) -> None:
        with self.session.uncontrolled():
            # its real pool would end with the process; here, nobody waits for it
            worker = threading.Thread(name=f"{self._prefix}_{len(self.workers)}", daemon=True)
        start(self.session, worker, self._serve, daemon=True)
        self.workers.append(worker)

    def _serve(self) -> None:
        scheduler = self.scheduler
        if self._executor._initializer is not None:
            self._executor._initializer(*self._executor._initargs)
        while True:
            scheduler.pass_gate(ACQUIRE, self.word, self, f"work for {self.name}")
            if not self.work:
                return
            _do(*self.work.popleft())


def _do(future: Future[Any], call: Callable[[], object]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except Abandoned:
        raise
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class OrderedFutures(_base._AcquireFutures):
    """Acquires the locks of futures in the order in which those were made. By address, as
    `concurrent.futures` has it, the order would be another in every run."""

    def __init__(self, futures: Iterable[Future[Any]]) -> None:
        super().__init__(futures)
        self.futures = sorted(self.futures, key=hash)


def future_init(session: PlainSession, original: Any, future: Any) -> None:
    """`Future()`."""
    session.futures += 1
    future.serial = session.futures
    original(future)


def future_hash(future: Any) -> int:
    """`hash(future)`: the same in every run, for what tasks have made."""
    return vars(future).get("serial") or object.__hash__(future)


def pool_init(
    session: PlainSession, original: Any, executor: Any, *args: Any, **options: Any
) -> None:
    """`ThreadPoolExecutor()`."""
    with session.uncontrolled():
        original(executor, *args, **options)
    session.twin(executor, PoolState)


def pool_submit(
    session: PlainSession,
    _: Any,
    executor: Any,
    function: Callable[..., object],
    /,
    *args: Any,
    **options: Any,
) -> Future[Any]:
    """`ThreadPoolExecutor.submit()`."""
    return session.twin(executor, PoolState).submit(lambda: function(*args, **options))


def pool_shutdown(
    session: PlainSession,
    _: Any,
    executor: Any,
    wait: bool = True,
    *,
    cancel_futures: bool = False,
) -> None:
    """`ThreadPoolExecutor.shutdown()`."""
    session.twin(executor, PoolState).shut(wait, cancel_futures)
