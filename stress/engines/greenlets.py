"""Tasks as greenlets that share one OS thread, the hub: a hand-over is a switch of stacks and needs
no kernel.

The hub is not the main thread, which alone gets a Ctrl-C: that arrives between two steps of the
main thread and never in the middle of a task. The main thread and the hub wait for each other at
the beginning and the end of a phase, as threads do. Greenlets are reused from schedule to schedule,
because making one is dear. `Scheduler.running` says whose turn it is here, too; whoever has nothing
to do resumes that task. What is kept by thread is all greenlets' (`mmu.task.current`, set at every
switch), and what is the task's own comes from the runtime.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import FrameType

from greenlet import getcurrent, greenlet

from mmu.stack import frames_of_threads
from mmu.task import Task, current
from stress.engines.carrier import POOL, Signal
from stress.engines.scheduler import Scheduler
from stress.engines.tasks import Abandoned, ControlledTask


class Hub:
    """The thread and its greenlets. Task number n of every schedule runs on greenlet n. Nothing
    happens here unless the main thread waits, but for the time between an interrupt and the next
    step of whoever runs."""

    def __init__(self) -> None:
        self.signal = Signal()
        """Somebody has a turn."""
        self.scheduler: GreenletScheduler
        """The latest: the one whose tasks run, if any do."""
        self.root: greenlet
        """What runs when it is the main thread's turn: it waits for the signal."""
        self._carriers: list[GreenletCarrier] = []
        started = threading.Event()
        self.thread = threading.Thread(
            target=self._loop, args=(started,), name="greenlets", daemon=True
        )
        self.thread.start()
        started.wait()

    def carrier(self, number: int) -> GreenletCarrier:
        """Carrier `number`, made when it is first needed."""
        while len(self._carriers) <= number:
            self._carriers.append(GreenletCarrier(self))
        return self._carriers[number]

    @property
    def left_behind(self) -> bool:
        """Whether an impatient interrupt has left tasks here."""
        return any(carrier.busy for carrier in self._carriers)

    def pass_on(self) -> None:
        """For whoever has nothing to do: let the task run whose turn it is. Returns when somebody
        resumes the caller."""
        self.scheduler.running.resume()

    def _loop(self, started: threading.Event) -> None:
        self.root = getcurrent()
        started.set()
        while True:
            self.signal.wait()
            self.scheduler.run_turns()


class _Turns(Signal):
    """A carrier's signal: set by the main thread for its hub; waited for by letting others run."""

    __slots__ = ()

    def __init__(self, hub: Hub) -> None:
        self.set = hub.signal.set
        self.wait = hub.pass_on


class GreenletCarrier:
    """One pooled greenlet: runs a job when it is resumed with one."""

    def __init__(self, hub: Hub) -> None:
        self.busy = False
        self.thread = hub.thread
        self.signal: Signal = _Turns(hub)
        self.greenlet = greenlet(self._loop, hub.root)
        self._job: Callable[[], None] | None = None

    def load(self, job: Callable[[], None]) -> None:
        """Give the idle carrier its next job; it starts when the carrier is resumed."""
        self.busy = True
        self._job = job

    def find_frame(self) -> FrameType | None:
        """The innermost frame of its task; None if that has not begun."""
        if not self.greenlet:
            return None
        frame: FrameType | None = self.greenlet.gr_frame
        return frame or frames_of_threads().get(self.thread.ident or 0)

    def _loop(self) -> None:
        wait = self.signal.wait
        while True:
            job, self._job = self._job, None
            if job is not None:
                job()
            job = None  # it holds the whole schedule
            wait()


class GreenletScheduler(Scheduler):
    """A scheduler whose tasks are greenlets."""

    def __init__(self, limit: int, fair_steps: int) -> None:
        super().__init__(limit, fair_steps)
        if POOL.hub is None or POOL.hub.left_behind:
            POOL.hub = Hub()
        self._hub = POOL.hub
        self._outside.resume = self._hub.root.switch
        self._hub.scheduler = self  # who has just ended passes on to whoever this one says, at once

    def spawn(
        self, name: str, body: Callable[[], None], daemon: bool, identity: Task
    ) -> ControlledTask:
        """A new task, on its own greenlet."""
        task = super().spawn(name, body, daemon, identity)
        carrier = task.carrier
        assert isinstance(carrier, GreenletCarrier)
        task.resume = carrier.greenlet.switch
        identity.find_frame = carrier.find_frame
        return task

    def run_turns(self) -> None:
        """For the hub: let tasks run until it is the main thread's turn."""
        while self.running is not self._outside:
            self.running.resume()
        self._outside.wake()

    def _carrier(self, index: int) -> GreenletCarrier:
        return self._hub.carrier(index)

    def _pass_turn(self, chosen: ControlledTask) -> None:
        self.running = chosen

    def _switch(self, task: ControlledTask, chosen: ControlledTask) -> None:
        self.running = chosen
        self._park(task)

    def _park(self, task: ControlledTask) -> None:
        self.running.resume()
        while self.running is not task:
            self.running.resume()
        current.task = task.task  # type: ignore[assignment]  # it has one
        if self._aborting:
            raise Abandoned
