"""A scheduler for code that the project does not know: waits that end by themselves, time that is
virtual, and tasks that block where the scheduler cannot see it.

Time. Any task may be delayed for less than `PROMPT_S` seconds of virtual time. A time-out, or a
sleep, that is shorter may therefore end at any moment, and is an ordinary step. One that is longer
ends only when no task can run, the earliest deadline first: nothing else could make it end before
what the others still do. Several whose deadlines are less than `PROMPT_S` apart may end in any
order, for each of their tasks may be delayed. A task that polls, which means that it comes to the
same short wait in the same state, goes on when something that it has read is written, or when no
task can run.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable, Hashable
from typing import Final

from stress.engines.carrier import POOL
from stress.engines.scheduler import Scheduler
from stress.engines.steps import (
    ADD,
    FREE,
    LOAD,
    RMW,
    SPAWN,
    START,
    STORE,
    YIELD,
)
from stress.engines.tasks import ControlledTask, Gate
from stress.scenario.errors import StressError

PROMPT_S: Final = 1.0
"""Time-outs and sleeps below this may end before anything else happens, in seconds."""
LOOK_S: Final = 0.2
"""How often the main thread looks at the task that runs, in seconds."""
LOOKS: Final = 5
"""A task that was found blocked this many times in a row is blocked for good."""
STOP_S: Final = 0.3
"""How long an interrupt waits for the running task to come to a step, in seconds."""
IDLE: Final = 1000
"""How many waits may end by time in a row without any task writing anything."""
_NEWS: Final = frozenset({STORE, RMW, ADD, SPAWN, START, FREE})


class BodyWaits(BaseException):
    """Raised where a program's own body, before it has become a task, would have to wait."""


class BlockedOutside(StressError):
    """A task waits for something that the scheduler does not know."""

    def __init__(self, task: ControlledTask) -> None:
        super().__init__(f"{task.name} blocks outside the scheduler's sight")
        self.task = task


class Timers:
    """The waits that end by themselves when no task can run."""

    def __init__(self) -> None:
        self.floor_ns = 0
        """The latest deadline that has passed."""
        self._heap: list[tuple[int, int, ControlledTask, bool]] = []
        self._seen = 0
        self._idle = 0

    def set(self, task: ControlledTask, deadline_ns: int, *, polls: bool = False) -> None:
        """`task` goes on at `deadline_ns` at the latest. One that `polls` goes on alone: it would
        only look again."""
        heapq.heappush(self._heap, (deadline_ns, task.index, task, polls))

    def cancel(self, task: ControlledTask) -> None:
        """`task` goes on."""
        if any(entry[2] is task for entry in self._heap):
            self._heap = [entry for entry in self._heap if entry[2] is not task]
            heapq.heapify(self._heap)

    def pop(self, trace: list[tuple[int, int, int]]) -> list[ControlledTask]:
        """The task with the earliest deadline, and those that may come before it because theirs
        are less than `PROMPT_S` later; none if tasks have woken up often enough for nothing."""
        news = any(kind in _NEWS for _, kind, _ in trace[self._seen :])
        self._seen = len(trace)
        self._idle = 0 if news else self._idle + 1
        if not self._heap or self._idle > IDLE:
            return []
        first, _, task, polls = heapq.heappop(self._heap)
        self.floor_ns = max(self.floor_ns, first)
        if polls:
            return [task]
        last = first + int(PROMPT_S * 1e9)
        others = sorted(entry for entry in self._heap if entry[0] < last and not entry[3])
        for _, _, other, _ in others:
            self.cancel(other)
        return [task, *(other for _, _, other, _ in others)]


class TimedScheduler(Scheduler):
    """A scheduler with timers, which notices when the running task blocks elsewhere."""

    def __init__(self, limit: int, fair_steps: int) -> None:
        super().__init__(limit, fair_steps)
        self.timers = Timers()
        self.body_waits = False
        """The program's body should have been a task."""
        self._clocks: dict[int, int] = {}
        self._late: dict[int, int] = {}
        """Of tasks that go on because their time is over, by number: how many events there were
        when no task could run."""
        self._polls: dict[int, dict[Hashable, int]] = {}
        """By task, the states in which it has come to a short wait since it last waited for news,
        each with the number of events before."""
        self._looks_blocked = 0
        self._last_look: tuple[int, int, float] = (0, 0, 0.0)

    @property
    def outside(self) -> ControlledTask:
        """The thread that explores, which is no task."""
        return self._outside

    # Time.

    def clock(self, passed_ns: int = 0) -> int:
        """The running task's clock in nanoseconds, `passed_ns` further than before."""
        index = self.running.index
        now = max(self._clocks.get(index, 0), self.timers.floor_ns) + passed_ns
        self._clocks[index] = now
        return now

    def sleep(self, seconds: float, state: Hashable = None) -> None:
        """Let virtual time pass for the running task. `state` sums up what it is about to do."""
        if self.quiet:
            self.clock(int(seconds * 1e9))
        elif seconds >= PROMPT_S:
            self._until_late(lambda: False, "the end of a sleep", seconds)
        elif not self._poll(seconds, state):
            self.step(YIELD, 0)
            self.clock(int(seconds * 1e9))

    def pass_in_time(
        self, word: int, kind: int, gate: Gate, what: str, seconds: float, state: Hashable = None
    ) -> bool:
        """Pass `gate` within `seconds`, and say whether that was possible."""
        task = self.running
        if self._is_prompt(seconds):
            self._poll(seconds, state)
            self.step(RMW, word)
            if gate.open_to(task):
                return True
            self.refuse_body(what)
            self.was_load()
            self.clock(int(seconds * 1e9))
            return False
        deadline = self.clock(int(seconds * 1e9))
        self.timers.set(task, deadline)
        late = None
        try:
            self.pass_gate(kind, word, gate, what)
        finally:
            late = self._on_time(task)
        if gate.open_to(task):
            return True
        if not self.quiet:
            at = len(self.trace) - 1
            self.looks[at] = [(at, False, [(kind, word)])]
        self._is_late(late, deadline)
        return False

    def wait_in_time(
        self, what: str, predicate: Callable[[], bool], seconds: float, state: Hashable = None
    ) -> bool:
        """Wait until `predicate` is true, for `seconds` at most, and say whether it is."""
        if not self._is_prompt(seconds):
            return self._until_late(predicate, what, seconds)
        self._poll(seconds, state)
        words = self._words_of(predicate)
        self.step(LOAD, words[0] if words else 0)
        if self._quietly(predicate):
            return True
        self.refuse_body(what)
        self.clock(int(seconds * 1e9))
        return False

    def pass_gate(self, kind: int, word: int, gate: Gate, what: str) -> None:
        """As for any scheduler; in a program's body nothing can be waited for."""
        task = self.running
        if task is self._outside:
            task.kind = kind
            if not gate.open_to(task):
                self.refuse_body(what)
        super().pass_gate(kind, word, gate, what)

    def wait(self, what: str, predicate: Callable[[], bool], *, latched: bool = False) -> None:
        """As for any scheduler; in a program's body nothing can be waited for."""
        if self.running is self._outside and not predicate():
            self.refuse_body(what)
        super().wait(what, predicate, latched=latched)

    def refuse_body(self, what: str) -> None:
        """Raise `BodyWaits` in a program's body, which is no task and would have to be one."""
        if self.running is self._outside and not self._aborting:
            self.body_waits = True
            raise BodyWaits(what)

    def _is_prompt(self, seconds: float) -> bool:
        return seconds < PROMPT_S and not self.serial

    def _until_late(self, predicate: Callable[[], bool], what: str, seconds: float) -> bool:
        task = self.running
        deadline = self.clock(0) + int(seconds * 1e9)
        self.timers.set(task, deadline)
        late = None
        try:
            self.wait(what, predicate)
        finally:
            late = self._on_time(task)
        if self._quietly(predicate):
            return True
        self._is_late(late, deadline)
        return False

    def _on_time(self, task: ControlledTask) -> int | None:
        """`task` goes on and has no deadline any more; where in the schedule it was woken by it."""
        self.timers.cancel(task)
        return self._late.pop(task.index, None)

    def _poll(self, seconds: float, state: Hashable) -> bool:
        """Before a short wait: whether the task has come to it in the same state as last time, and
        has therefore waited for news."""
        if self.quiet or state is None:
            return False
        task = self.running
        polls = self._polls.setdefault(task.index, {})
        before = polls.get(state)
        polls[state] = len(self.trace)
        if before is None or self._has_written(task, before):
            return False
        self.timers.set(task, self.clock(0) + int(seconds * 1e9), polls=True)
        try:
            self.relax()
        finally:
            self._on_time(task)
        polls.clear()
        polls[state] = len(self.trace)
        return True

    def _has_written(self, task: ControlledTask, since: int) -> bool:
        mine = task.index
        return any(who == mine and kind in _NEWS for who, kind, _ in self.trace[since:])

    def _words_of(self, predicate: Callable[[], bool]) -> list[int]:
        """The words that `predicate` reads."""
        noting, self._noting = self._noting, []
        try:
            self._quietly(predicate)
            return list(dict.fromkeys(word for _, word in self._noting))
        finally:
            self._noting = noting

    def _quietly(self, predicate: Callable[[], bool]) -> bool:
        self.quiet += 1
        try:
            return bool(predicate())
        finally:
            self.quiet -= 1

    def _is_late(self, since: int | None, deadline_ns: int) -> None:
        """The step just done came because no task could run, `since` so many events. What the task
        waited for could have come sooner; this could not: it comes after all that was before, in
        every schedule."""
        index = self.running.index
        self._clocks[index] = max(self._clocks.get(index, 0), deadline_ns)
        if self.quiet:
            return
        at = len(self.trace) - 1
        task, _, word = self.trace[at]
        self.trace[at] = (task, LOAD, word)
        self.barriers[at] = at if since is None else since

    def _revive(self) -> bool:
        late = self.timers.pop(self.trace)
        if not late:
            return super()._revive()
        for task in late:
            self._late[task.index] = len(self.trace)
            self._set_enabled(task, True)
        return True

    def _set_enabled(self, task: ControlledTask, enabled: bool) -> None:
        # what it waits for may change in vain once its time is over
        super()._set_enabled(task, enabled or task.index in self._late)

    # Tasks that do not come to a step.

    def _await_turn(self) -> None:
        while self.running is not self._outside:
            if not POOL.main.wait_for(LOOK_S):
                self._look_at_the_running()

    def _look_at_the_running(self) -> None:
        """Raise `BlockedOutside` if the running task has stood still for a second, asleep."""
        task = self.running
        thread = task.carrier.thread if task.carrier is not None else None
        if thread is None or thread.native_id is None:
            return
        look = (len(self.trace), task.index, _cpu_s(thread.ident or 0))
        blocked = look == self._last_look and _is_asleep(thread.native_id)
        self._last_look = look
        self._looks_blocked = self._looks_blocked + 1 if blocked else 0
        if self._looks_blocked >= LOOKS - 1:
            raise BlockedOutside(task)

    def _halt(self, first: ControlledTask) -> None:
        """As for any scheduler; a task that does not come to a step in time is left behind, and
        ends when it does."""
        self._halting = True
        self.limit = 0
        first.wake()
        deadline = time.monotonic() + STOP_S
        while self.running is not self._outside and time.monotonic() < deadline:
            POOL.main.wait_for(STOP_S / 10)
        self.serial = False
        self.quiet = int(self.running is self._outside)


def _cpu_s(ident: int) -> float:
    """The CPU time of a thread in seconds; 0 where that is not known."""
    if not hasattr(time, "pthread_getcpuclockid"):  # pragma: no cover - not on Linux
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(ident))


def _is_asleep(native_id: int) -> bool:
    """Whether a thread waits for something other than a CPU; yes where that is not known."""
    try:
        with open(f"/proc/self/task/{native_id}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] in "SD"
    except OSError:  # pragma: no cover - not on Linux
        return os.name == "posix"


def timed(base: type[Scheduler]) -> type[TimedScheduler]:
    """The kind of scheduler that is both a `TimedScheduler` and `base`."""
    if base is Scheduler:
        return TimedScheduler
    return type(f"Timed{base.__name__}", (TimedScheduler, base), {})
