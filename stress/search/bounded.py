"""Systematic search: every schedule once, in the order of how far it strays from the default one.

Musuvathi and Qadeer, "Iterative Context Bounding for Systematic Testing of Multithreaded Programs"
(PLDI 2007), for preemptions; Emmi, Qadeer and Rakamaric, "Delay-Bounded Scheduling" (POPL 2011),
for delays. By default the running task goes on while it can, then the next one by number, round and
round. A schedule is the list of its deviations from that; it is run by following them, and its
alternatives are what could have been done after the last of them. That makes each schedule the
alternative of exactly one other.

With a `StateCache` a schedule is given up where an earlier one was in the same state with the same
task in turn. Schedules are run in the order of their costs, so the earlier one had at least as much
of the bound left: whatever could follow has followed there, or will, and every class of schedules
within the bound is still seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from stress.engines.program import Run
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.tasks import ControlledTask
from stress.search.happens_before import Fingerprint
from stress.search.state_cache import StateCache

_MASK = 127
_FREE = 128
"""Set where the running task could not go on."""
_NEVER = 1 << 60

Costs = Callable[[int, int], range]
"""Given how many could run (with `_FREE`) and a cost: which of them, in the order of turns, cost
that much to choose."""
Turn = Callable[[Scheduler], int]
"""Whose turn it is (a task's number, 0 for nobody's), as far as what may follow, and at what cost,
depends on it."""


class Deviation(NamedTuple):
    """At pick number `position`, not the first in turn but number `rank` was chosen; and what came
    before that."""

    before: Deviation | None
    position: int
    rank: int


class BoundedSchedule(NamedTuple):
    """A schedule that was run: its last deviation, and how many could run at each pick after
    that."""

    last: Deviation | None
    widths: bytes


class Systematic:
    """The search; `costs` says what a deviation costs, and schedules of cost 0 come first, then 1,
    and so on to `bound`. Where `states` are kept, the same state with the same `turn` is not gone
    on from twice."""

    def __init__(
        self,
        name: str,
        bound: int,
        costs: Costs,
        turn: Turn,
        states: StateCache | None = None,
        *,
        free_start: bool = False,
    ) -> None:
        """With `free_start` it costs nothing to begin with any task."""
        self.name = name
        self.bound = bound
        self.level = 0
        """The cost of the schedules that are run now."""
        self.exhausted = False
        self.states = states
        self._costs = costs
        self._turn = turn
        self._free_start = free_start
        self._run: list[list[BoundedSchedule]] = [[] for _ in range(bound)]
        self._widths = bytearray()
        self._search = self._levels()
        self._last = next(self._search)

    def begin(self, scheduler: Scheduler) -> Picker:
        """Follow the deviations of the next schedule, then go on by default."""
        runnable = scheduler.runnable
        self._widths = widths = bytearray()
        note = widths.append
        pending = _deviations(self._last)
        steps = 0
        until = pending[-1].position if pending else _NEVER

        def pick() -> ControlledTask:
            nonlocal steps
            steps += 1
            if steps > until:
                return deviate()
            running = scheduler.running
            if running.enabled:
                note(len(runnable))
                return running
            note(len(runnable) | _FREE)
            return runnable[0] if len(runnable) == 1 else in_turn()[0]

        def in_turn() -> list[ControlledTask]:
            here = scheduler.running.index
            return sorted(runnable, key=lambda task: (task.index < here, task.index))

        def deviate() -> ControlledTask:
            nonlocal until
            rank = pending.pop().rank
            until = pending[-1].position if pending else _NEVER
            note(len(runnable))
            if rank >= len(runnable):
                rank = 0  # fewer tasks can run than before: the program is not deterministic
            return in_turn()[rank]

        return pick if self.states is None else self._unless_met(scheduler, pick, self.states)

    def _unless_met(self, scheduler: Scheduler, pick: Picker, states: StateCache) -> Picker:
        """As `pick` says, unless somebody was here before; up to the last deviation that was the
        schedule it deviates from."""
        fingerprint, turn = Fingerprint(), self._turn
        own = self._last.position + 1 if self._last else 0
        scheduler.keep_extras = True

        def look() -> ControlledTask:
            trace = scheduler.trace
            if len(trace) >= own and states.met(
                hash((fingerprint.take(trace, scheduler.extras), turn(scheduler)))
            ):
                scheduler.give_up()
            return pick()

        return look

    def end(self, run: Run) -> None:  # noqa: ARG002 - everything was noted on the way
        """Go on to the next schedule, if there is one."""
        following = next(self._search, self)
        if isinstance(following, Systematic):
            self.exhausted = True
        else:
            self._last = following

    def _levels(self) -> Iterator[Deviation | None]:
        """The schedules to run; when the search is resumed, the one it gave was run."""
        for level in range(self.bound + 1):
            self.level = level
            for root in self._roots():
                stack = [iter((root,))]
                while stack:
                    for last in stack[-1]:
                        yield last
                        stack.append(self._alternatives(self._ran(last), 0))
                        break
                    else:
                        stack.pop()

    def _roots(self) -> Iterator[Deviation | None]:
        """Schedules that come to this level's cost by one deviation from a cheaper one."""
        if not self.level:
            yield None
        for level in range(self.level):
            for schedule in self._run[level]:
                yield from self._alternatives(schedule, self.level - level)

    def _ran(self, last: Deviation | None) -> BoundedSchedule:
        start = last.position + 1 if last else 0
        schedule = BoundedSchedule(last, bytes(self._widths[start:]))
        if self.level < self.bound:
            self._run[self.level].append(schedule)
        return schedule

    def _alternatives(self, schedule: BoundedSchedule, cost: int) -> Iterator[Deviation]:
        """Deviations of this cost after the last one, the latest first."""
        last, widths = schedule
        start = last.position + 1 if last else 0
        for offset in range(len(widths) - 1, -1, -1):
            if widths[offset] & _MASK > 1:
                free = self._free_start and start + offset == 0
                for rank in (_all_alike if free else self._costs)(widths[offset], cost):
                    yield Deviation(last, start + offset, rank)


def _deviations(last: Deviation | None) -> list[Deviation]:
    """All of them, the first one last."""
    found = []
    while last is not None:
        found.append(last)
        last = last.before
    return found


def _by_preemption(width: int, cost: int) -> range:
    return range(1, width & _MASK) if cost == (0 if width & _FREE else 1) else range(0)


def _by_delay(width: int, cost: int) -> range:
    return range(cost, cost + 1) if 0 < cost < width & _MASK else range(0)


def _all_alike(width: int, cost: int) -> range:
    return range(1, width & _MASK) if cost == 0 else range(0)


def _nobodys(_: Scheduler) -> int:
    return 0


def _who_runs(scheduler: Scheduler) -> int:
    running = scheduler.running
    return running.index if running.enabled else 0


def _who_is_next(scheduler: Scheduler) -> int:
    running = scheduler.running
    return running.index if running.enabled else scheduler.next_in_turn().index


class PreemptionBounded(Systematic):
    """Every schedule with at most `bound` preemptions: switches away from a task that could have
    gone on."""

    def __init__(self, bound: int, states: StateCache | None = None) -> None:
        super().__init__(f"preemption:{bound}", bound, _by_preemption, _who_runs, states)


class DelayBounded(Systematic):
    """Every schedule with at most `bound` delays: each passes over the task whose turn it is, in
    favour of the next."""

    def __init__(self, bound: int, states: StateCache | None = None) -> None:
        super().__init__(f"delay:{bound}", bound, _by_delay, _who_is_next, states)


class Sweep(Systematic):
    """Every schedule that begins with any task and has at most `bound` delays."""

    def __init__(self, bound: int, states: StateCache | None = None) -> None:
        super().__init__(f"sweep:{bound}", bound, _by_delay, _who_is_next, states, free_start=True)


class DepthFirst(Systematic):
    """Every schedule there is."""

    def __init__(self, states: StateCache | None = None) -> None:
        super().__init__("dfs", 0, _all_alike, _nobodys, states)
