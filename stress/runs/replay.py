"""`stress replay`: a recorded schedule again, what it found, and where it left the record."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from attrs import frozen

from stress.engines.carrier import pinned
from stress.engines.program import Strategy
from stress.results.schedule_file import StoredSchedule, program_of, stored
from stress.results.verdict import ExitCode
from stress.scenario.errors import ResultError
from stress.scenario.variant_files import variants_from
from stress.search.explain import explain
from stress.search.explain_data import Explanation
from stress.search.explain_laboratory import TRIES
from stress.search.minimise import Minimised, Minimiser
from stress.search.replay import Replayed, replay
from stress.search.schedule import ScheduleError


@frozen
class ReplayOutcome:
    """What the replay came to; `branched` says that it left the schedule on purpose."""

    replayed: Replayed
    branched: bool
    reproduced: bool

    @property
    def exit_code(self) -> ExitCode:
        """FAIL when a rule is broken, HARNESS_ERROR when the replay diverged, INCONCLUSIVE when the
        failure did not come back."""
        if self.replayed.divergence is not None:
            return ExitCode.HARNESS_ERROR
        if self.replayed.signatures:
            return ExitCode.FAIL
        return ExitCode.PASS if self.branched else ExitCode.INCONCLUSIVE


def replay_stored(
    recorded: StoredSchedule, until: int | None = None, then: Strategy | None = None
) -> ReplayOutcome:
    """Replay; with `until` only up to that step, and on with `then` or by default."""
    with pinned():
        replayed = replay(
            program_of(recorded),
            recorded.schedule,
            steps=recorded.steps,
            predicted=recorded.predicted or not recorded.signatures,
            until=until,
            then=then,
        )
    return ReplayOutcome(
        replayed,
        until is not None,
        bool(replayed.signatures) and replayed.signatures == recorded.signatures,
    )


def explain_stored(
    recorded: StoredSchedule, *, tries: int = TRIES, about: Set[str] = frozenset()
) -> Explanation:
    """The explanation of a stored schedule; raises `Divergence` if the schedule does not fit any
    more."""
    with pinned():
        return explain(
            program_of(recorded),
            recorded.schedule,
            steps=recorded.steps,
            predicted=recorded.predicted or not recorded.signatures,
            tries=tries,
            about=about,
        )


def minimise_stored(recorded: StoredSchedule) -> tuple[StoredSchedule, Minimised]:
    """The smallest schedule that fails like the recorded one; raises `ScheduleError` when it does
    not fail."""
    signatures = recorded.signatures or replay_stored(recorded).replayed.signatures
    if not signatures:
        raise ScheduleError(
            f"{recorded.name}: the schedule does not fail, so there is nothing to minimise"
        )
    minimiser = Minimiser(
        recorded.name,
        variants_from(recorded.variant_files),
        signatures[0],
        predicted=recorded.predicted,
    )
    with pinned():
        result = minimiser.minimise(recorded.scenario, recorded.schedule)
    if result is None:
        raise ScheduleError(
            f"{recorded.name}: the schedule does not fail as recorded any more: `stress replay` "
            "says why"
        )
    return stored(recorded.name, result.scenario, recorded.variant_files, result.failure), result


def write_minimised(path: Path, result: tuple[StoredSchedule, Minimised]) -> None:
    """Keep a minimised schedule; raises `ResultError` when it cannot be written."""
    try:
        path.write_text(result[0].text(), encoding="utf-8")
    except OSError as error:
        raise ResultError(
            f"cannot write {path}: {error.strerror}; choose another place with --output"
        ) from None


def minimised_text(
    result: tuple[StoredSchedule, Minimised], path: Path, *, quiet: bool = False
) -> str:
    """What the console says of a minimised schedule."""
    small, how = result
    before, after = how.before, how.after
    lines = []
    if not quiet:
        lines += [f"[{name}] {'; '.join(part)}" for name, part in small.scenario.script.items()]
        turns = [
            f"{turn.task} "
            + ("until it cannot go on" if turn.steps is None else f"{turn.steps} steps")
            for turn in how.turns
        ]
        lines += ["", "turns: " + ", then ".join(turns)]
        lines += [f"left out: {what}" for what in how.removed]
        lines += [
            "",
            f"schedule: {small.schedule.encode()}",
            f"explain:  stress explain {path}",
            f"replay:   stress replay {path}",
        ]
    names = ("operations", "", "preemptions", "turns", "steps")
    change = ", ".join(
        f"{name} {old} -> {new}"
        for name, old, new in zip(names, before, after, strict=True)
        if name
    )
    return "\n".join(
        [
            *lines,
            f"MINIMISED  {small.name}: {change}; {how.schedules:,} schedules tried; "
            f"{small.signatures[0]}",
        ]
    )


def replay_text(recorded: StoredSchedule, outcome: ReplayOutcome, *, quiet: bool = False) -> str:
    """What the console says."""
    replayed = outcome.replayed
    steps = len(replayed.run.trace)
    lines = [] if quiet else [report.render() for report in replayed.run.reports]
    if replayed.divergence is not None:
        lines.append(f"DIVERGED  {replayed.divergence}")
    elif outcome.branched:
        lines.append(
            f"BRANCHED  {recorded.name}: {steps} steps, "
            + (", ".join(replayed.signatures) or "no finding")
        )
    elif outcome.reproduced or (replayed.signatures and not recorded.signatures):
        lines.append(
            f"REPLAYED  {recorded.name}: {steps} steps, the same as recorded, found "
            f"{', '.join(replayed.signatures)}"
        )
    elif replayed.signatures:
        lines.append(
            f"CHANGED  {recorded.name}: {steps} steps as recorded, but found "
            f"{', '.join(replayed.signatures)}"
        )
    else:
        lines.append(f"NOT REPRODUCED  {recorded.name}: {steps} steps as recorded, no finding")
    return "\n".join(lines)
