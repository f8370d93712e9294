"""Run the model one step at a time, in an order that somebody else dictates: the order of a
recording.

Every task of the recording is a thread here, and exactly one of them runs. A thread stops where it
*emits* what it has just done, where it finds a lock taken, where it waits for something, and where
it releases a lock that another one wants. Everything else (words, tables, queues) is the thread
runtime's: nobody runs at the same time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from mmu.runtime import RawLock, RawRwLock, Runtime
from mmu.task import Task, current
from stress.engines.carrier import Signal

Job = Callable[[], None]


class Stopped(BaseException):
    """Raised in a thread of the replay when the replay is over, so that it ends."""


class Worker:
    """A task of the recording, or one that the model has spawned (`background`).

    `emitted` is what it has done and nobody has looked at yet, `waiting` what it waits for ("" when
    it can run), `blocker` the lock it waits for, `resched` whether it has to yield the lock that it
    holds as soon as a walk allows.
    """

    def __init__(self, lockstep: Lockstep, name: str, *, background: bool = False) -> None:
        self.name = name
        self.background = background
        self.emitted: deque[Any] = deque()
        self.idle = True
        self.waiting = ""
        self.ready: Callable[[], bool] | None = None
        self.blocker: _Lock | None = None
        self.resched = False
        self.error: BaseException | None = None
        self.task: Task
        """What the model knows the thread as."""
        self.requesting = 0
        """The request that it is making of all vCPUs just now."""
        self._lockstep = lockstep
        self._job: Job | None = None
        self._signal = Signal()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()
        self._started.wait()

    def start(self, job: Job) -> None:
        """Give the idle worker something to do; `Lockstep.resume` lets it run."""
        assert self.idle
        self._job = job
        self.idle = False

    def go(self) -> None:
        """Let the thread run; the caller waits for the lockstep's own signal."""
        self._signal.set()

    def pause(self) -> None:
        """In the worker's thread: hand control back, go on when told to."""
        self._lockstep.signal.set()
        self._signal.wait()
        if self._lockstep.stopping:
            raise Stopped

    def _loop(self) -> None:
        self._lockstep.of_thread[threading.get_ident()] = self
        self.task = current.task
        self.task.name = self.name
        self._started.set()
        while True:
            self._signal.wait()
            if self._lockstep.stopping:
                self._lockstep.signal.set()
                return
            try:
                if self._job is not None:
                    self._job()
            except Stopped:
                self._lockstep.signal.set()
                return
            except Exception as error:  # the replay reports it where it happened
                self.error = error
            self._job = None
            self.idle = True
            self._lockstep.signal.set()

    def join(self) -> None:
        """End the thread; after `Lockstep.stop`."""
        self._signal.set()
        self._lockstep.signal.wait()
        self._thread.join()


class Lockstep:
    """Who may run. Everything here but `Worker.pause` is called from the thread that directs the
    replay."""

    def __init__(self) -> None:
        self.signal = Signal()
        self.stopping = False
        self.workers: list[Worker] = []
        self.of_thread: dict[int, Worker] = {}
        self.now = 0

    def worker(self, name: str, *, background: bool = False) -> Worker:
        """A new worker, idle."""
        worker = Worker(self, name, background=background)
        self.workers.append(worker)
        return worker

    def running(self) -> Worker | None:
        """The worker whose thread this is; None in the directing thread."""
        return self.of_thread.get(threading.get_ident())

    def resume(self, worker: Worker) -> None:
        """Let a worker run until it stops by itself, for whatever reason."""
        worker.go()
        self.signal.wait()

    def emit(self, what: Any) -> None:
        """In a worker's thread: this has just happened; go on when it was looked at."""
        worker = self.running()
        if worker is not None:
            worker.emitted.append(what)
            worker.pause()

    def stop(self) -> None:
        """The replay is over: end every thread."""
        self.stopping = True
        for worker in self.workers:
            worker.join()


class _Lock:
    """What both kinds of lock have: owners, and workers that wait."""

    def __init__(self, lockstep: Lockstep, name: str) -> None:
        self.name = name
        self.owners: list[Worker | None] = []
        self.wanted_by: list[Worker] = []
        self._lockstep = lockstep

    def take(self, is_free: Callable[[], bool]) -> None:
        """Wait until the lock is free, and be its owner."""
        worker = self._lockstep.running()
        while not is_free():
            if worker is None:
                raise RuntimeError(f"{self.name} is held while nothing runs")
            self.wanted_by.append(worker)
            worker.blocker, worker.waiting, worker.ready = self, self.name, is_free
            worker.pause()
            self.wanted_by.remove(worker)
            worker.blocker, worker.waiting, worker.ready = None, "", None
        self.owners.append(worker)

    def drop(self) -> None:
        """Release it; whoever waits for it is served before the caller goes on."""
        worker = self._lockstep.running()
        self.owners.remove(worker)
        if worker is not None:
            worker.resched = False
            if self.wanted_by:
                worker.pause()


class _LockstepHandle:
    """One task's way to a lock: a mutex, or one mode of a reader-writer lock."""

    def __init__(
        self,
        lock: _Lock,
        is_free: Callable[[], bool],
        on_take: Callable[[], None],
        on_drop: Callable[[], None],
    ) -> None:
        self._lock = lock
        self._is_free = is_free
        self._on_take = on_take
        self._on_drop = on_drop

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; one that may not block looks once."""
        if (not blocking or timeout >= 0) and not self._is_free():
            return False
        self._lock.take(self._is_free)
        self._on_take()
        return True

    def release(self) -> None:
        """Give it back."""
        self._on_drop()
        self._lock.drop()


class _RwLock(_Lock):
    """A reader-writer lock without preference: the recording decides who comes first."""

    def __init__(self, lockstep: Lockstep, name: str) -> None:
        super().__init__(lockstep, name)
        self._writing = False

    def gen_rlock(self) -> RawLock:
        """A reader's handle."""
        return _LockstepHandle(self, lambda: not self._writing, lambda: None, lambda: None)

    def gen_wlock(self) -> RawLock:
        """A writer's handle."""
        return _LockstepHandle(
            self, lambda: not self.owners, lambda: self._write(True), lambda: self._write(False)
        )

    def _write(self, on: bool) -> None:
        self._writing = on

    def is_contended(self) -> bool:
        """rwlock_needbreak() or need_resched()."""
        worker = self._lockstep.running()
        return worker is not None and worker.resched


def _nothing() -> None:
    pass


class LockstepRuntime(Runtime):
    """The runtime of a replay. Time is a count; nothing sleeps."""

    def __init__(self, lockstep: Lockstep) -> None:
        super().__init__()
        self.lockstep = lockstep

    def lock(self, name: str = "lock") -> RawLock:
        """A mutex."""
        lock = _Lock(self.lockstep, name)
        return _LockstepHandle(lock, lambda: not lock.owners, _nothing, _nothing)

    def rwlock(self, preference: str, name: str = "rwlock") -> RawRwLock:  # noqa: ARG002 - the recording has decided
        """mmu_lock."""
        return _RwLock(self.lockstep, name)

    def contention_of(self, lock: RawRwLock) -> Callable[[], bool] | None:
        """Waiters are known here."""
        assert isinstance(lock, _RwLock)
        return lock.is_contended

    def now(self) -> int:
        """A count of the questions."""
        self.lockstep.now += 1
        return self.lockstep.now

    def sleep(self, seconds: float) -> None:
        """Time does not matter here."""

    def relax(self) -> None:
        """Whoever spins here waits for the recording to go on."""

    def resched(self) -> None:
        """Who wanted the lock has had it when it was dropped."""

    def wait_until(
        self,
        what: str,
        predicate: Callable[[], bool],
        *,
        on_late: Callable[[float], None] | None = None,  # noqa: ARG002 - nothing is late here
        patience: float = 2e-4,  # noqa: ARG002
    ) -> None:
        """Wait; the director sees what for, and lets run who can make it true."""
        worker = self.lockstep.running()
        while not predicate():
            if worker is None:
                raise RuntimeError(f"waiting for {what} while nothing runs")
            worker.waiting, worker.ready = what, predicate
            worker.pause()
            worker.waiting, worker.ready = "", None

    def spawn(self, name: str, body: Callable[[], None]) -> Task:
        """A background worker: it runs when somebody waits for what it does."""
        worker = self.lockstep.worker(name, background=True)
        worker.start(body)
        return worker.task
