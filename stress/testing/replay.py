"""Replay of a schedule of a test, with the place in the test that each step comes from; and a
simpler schedule with the same failure."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final

from attrs import frozen

from mmu.report import Report
from stress.engines.program import Executor, Program, Run
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.store_buffers import StoreBuffers
from stress.engines.tasks import ControlledTask
from stress.search.bounded import PreemptionBounded
from stress.search.exploration import named_steps
from stress.search.races import races_of
from stress.search.schedule import Divergence, Follow, Schedule, difference_at_end
from stress.testing.plain.names import is_stdlib
from stress.testing.plain.session import is_harness

MOST_PREEMPTIONS: Final = 2
SIMPLER_SCHEDULES: Final = 2_000
SIMPLER_SECONDS: Final = 3.0

Place = tuple[str, int]
"""A file and a line."""


class Located:
    """A strategy that does what another one does and notes, for every step, which line of the test
    made it."""

    def __init__(self, inner: Follow) -> None:
        self.name = inner.name
        self.exhausted = False
        self.places: list[Place | None] = []
        self._inner = inner

    def begin(self, scheduler: Scheduler) -> Picker:
        """Whoever asks for a choice has just announced its next step. A store was made where it
        went into its buffer."""
        places: list[Place | None] = []
        self.places = places
        stored: dict[int, list[Place | None]] = {}
        if isinstance(scheduler, StoreBuffers):
            scheduler.on_store = lambda buffer: stored.setdefault(buffer.index, []).append(_place())
        announced: dict[int, Place | None] = {}
        inner = self._inner.begin(scheduler)

        def pick() -> ControlledTask:
            announced[scheduler.running.index] = _place()
            chosen = inner()
            del places[len(scheduler.trace) :]
            buffered = stored.get(chosen.index)
            places.append(buffered.pop(0) if buffered else announced.get(chosen.index))
            return chosen

        return pick

    def end(self, run: Run) -> None:
        """The last choice of a schedule that was given up was none."""
        del self.places[len(run.trace) :]


def _place() -> Place | None:
    """The innermost line outside the harness and the model, in the calling thread."""
    return _place_from(sys._getframe(2))


def place_of_thread(task: ControlledTask) -> Place | None:
    """The innermost line of the test that a task is in."""
    thread = task.carrier.thread if task.carrier is not None else None
    return _place_from(sys._current_frames().get(thread.ident or 0) if thread else None)


def _place_from(frame: FrameType | None) -> Place | None:
    while frame is not None:
        code = frame.f_code
        if not is_harness(code) and not is_stdlib(code.co_filename):
            return code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


@frozen
class LocatedReplay:
    """The replay of a schedule: its findings, every step as (task, operation) and with its place,
    and where it left the schedule."""

    run: Run
    reports: tuple[Report, ...]
    steps: tuple[tuple[str, str], ...]
    places: tuple[Place | None, ...]
    divergence: Divergence | None

    @property
    def signatures(self) -> set[str]:
        """What was found."""
        return {report.signature for report in self.reports}


def replay_located(
    program: Program,
    schedule: Schedule,
    *,
    steps: Sequence[tuple[str, str]] = (),
    limit: int,
    granularity: str,
) -> LocatedReplay:
    """Replay `schedule` and note where in the test each step is. With `steps` every step is
    compared with its recorded name."""
    follow = Follow(schedule.choices, steps=steps)
    located = Located(follow)
    run = Executor(program, limit=limit, granularity=granularity).execute(located, schedule.seed)
    divergence = follow.divergence or difference_at_end(run, schedule)
    return LocatedReplay(run, findings(run), named_steps(run), tuple(located.places), divergence)


def findings(run: Run) -> tuple[Report, ...]:
    """The broken rules of a run; when there are none, the races that did no harm in it."""
    return run.reports or (tuple(races_of(run)) if run.completed else ())


def simpler(
    program: Program, signature: str, *, limit: int, granularity: str
) -> tuple[Schedule, int] | None:
    """A schedule with the fewest preemptions that shows the same, and their number; None when few
    do not suffice, or are too many to try."""
    executor = Executor(program, limit=limit, granularity=granularity)
    strategy = PreemptionBounded(MOST_PREEMPTIONS)
    deadline = time.monotonic() + SIMPLER_SECONDS
    for _ in range(SIMPLER_SCHEDULES):
        if strategy.exhausted or time.monotonic() > deadline:
            return None
        level = strategy.level
        run = executor.execute(strategy)
        if any(report.signature == signature for report in findings(run)):
            return Schedule.of(run), level
    return None
