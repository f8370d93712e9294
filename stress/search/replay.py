"""Replay: a schedule run again, step by step, compared with what was recorded."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from stress.engines.program import Executor, Program, Run, Strategy
from stress.search.races import races_of
from stress.search.schedule import Divergence, Follow, Schedule, difference_at_end


@frozen
class Replayed:
    """What came of a replay: the run, what it found (with `predicted`, the races that did no harm),
    and where it left the record, if it did."""

    run: Run
    signatures: tuple[str, ...]
    divergence: Divergence | None


def replay(
    program: Program,
    schedule: Schedule,
    *,
    steps: Sequence[tuple[str, str]] = (),
    predicted: bool = False,
    limit: int | None = None,
    until: int | None = None,
    then: Strategy | None = None,
) -> Replayed:
    """Run `schedule` again. With `steps` every step is compared with its recorded name, without
    them the sum of all at the end. After step `until` the strategy `then` takes over, and nothing
    is compared any more. `predicted` looks for races that did no harm, too."""
    follow = Follow(
        schedule.choices, steps=steps, until=until, then=then.begin if then is not None else None
    )
    run = Executor(program, limit=limit).execute(follow, schedule.seed)
    divergence = follow.divergence
    if divergence is None and until is None:
        divergence = difference_at_end(run, schedule)
    reports = run.reports or (tuple(races_of(run)) if predicted and run.completed else ())
    return Replayed(run, tuple(report.signature for report in reports), divergence)
