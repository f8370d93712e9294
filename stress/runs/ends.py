"""Ends of a command or a run that are not its own: what they mean, and how its record says so."""

from __future__ import annotations

from collections.abc import Callable

import click
from attrs import evolve, frozen

from stress.report import exploration_console, run_console
from stress.report.publish import publish_exploration, publish_run, stories_in
from stress.results.exploration_record import EXPLORATION_FORMAT, EXPLORE_JSON, ExplorationRecord
from stress.results.kinds import kind_of
from stress.results.known import KNOWN
from stress.results.run_record import RUN_FORMAT, RunRecord, completed
from stress.results.store import RUN_JSON, RunDirectory, keep
from stress.results.verdict import ExitCode, Verdict
from stress.scenario.errors import ResultError


@frozen
class End:
    """How a command ended: the status and the verdict of a record that has none yet, why, and the
    exit code where nothing was judged."""

    status: str
    verdict: Verdict
    why: str
    otherwise: ExitCode


@frozen
class Finished:
    """A record that was brought to its end: its verdict line, its verdict, and what of it could not
    be kept."""

    line: str
    verdict: Verdict
    trouble: str


def interrupted(why: str = "interrupted") -> End:
    """The user wanted it to end."""
    return End("interrupted", Verdict.INCONCLUSIVE, why, ExitCode.INCONCLUSIVE)


def crashed(why: str, otherwise: ExitCode = ExitCode.INTERNAL) -> End:
    """It failed."""
    return End("crashed", Verdict.HARNESS_ERROR, why, otherwise)


def settle(end: End) -> ExitCode:
    """Print how the command ended, bring its record to an end, and return the exit code: that of
    the worst verdict that is known."""
    click.echo(f"stress: {end.why}", err=True)
    directory = KNOWN.directory
    if directory is not None:
        try:
            _tell(RunDirectory(directory), end)
        except ResultError as error:
            click.echo(f"stress: {error}", err=True)
    return KNOWN.code_or(end.otherwise)


def _tell(directory: RunDirectory, end: End) -> None:
    done = finish(directory, end)
    if done is not None:
        click.echo(f"{done.line}\nresults: {directory.path}", err=True)
        if done.trouble:
            click.echo(f"{done.verdict.name}: {done.trouble}", err=True)


def finish(directory: RunDirectory, end: End) -> Finished | None:
    """Give the unfinished record in a directory its verdict and its reports; None if its kind is
    kept only when it is finished. Raises `ResultError` if it cannot be read."""
    finisher = _FINISHERS.get(kind_of(directory.path))
    return finisher(directory, end) if finisher is not None else None


def ended_run(record: RunRecord, end: End) -> RunRecord:
    """The record of a run that ended like this."""
    if record.status != "running":
        return record
    verdict, reasons = _judged(len(record.findings), end)
    return completed(evolve(record, status=end.status, verdict=verdict.name, reasons=reasons))


def ended_exploration(record: ExplorationRecord, end: End) -> ExplorationRecord:
    """The record of an exploration that ended like this."""
    if record.status != "running":
        return record
    verdict, reasons = _judged(len(record.failures), end)
    certificate = evolve(record.certificate, verdict=verdict.name)
    return evolve(
        record,
        status=end.status,
        verdict=verdict.name,
        reasons=reasons,
        certificate=certificate,
    )


def _judged(found: int, end: End) -> tuple[Verdict, tuple[str, ...]]:
    if not found:
        return end.verdict, (end.why,)
    return Verdict.FAIL, (f"{found} finding{'s' if found > 1 else ''}", end.why)


def _finish_run(directory: RunDirectory, end: End) -> Finished:
    record = ended_run(directory.read(), end)
    verdict, trouble = keep(
        directory,
        Verdict[record.verdict],
        (RUN_JSON, RUN_FORMAT.text(record)),
        lambda: publish_run(directory, record),
    )
    return Finished(run_console.verdict_line(record), verdict, trouble)


def _finish_exploration(directory: RunDirectory, end: End) -> Finished:
    path = directory.path
    record = ended_exploration(EXPLORATION_FORMAT.load(path / EXPLORE_JSON), end)
    verdict, trouble = keep(
        directory,
        Verdict[record.verdict],
        (EXPLORE_JSON, EXPLORATION_FORMAT.text(record)),
        lambda: publish_exploration(directory, record, stories_in(path, record)),
    )
    return Finished(exploration_console.verdict_line(record), verdict, trouble)


_FINISHERS: dict[str | None, Callable[[RunDirectory, End], Finished]] = {
    "run": _finish_run,
    "exploration": _finish_exploration,
}
"""The kinds of result that are unfinished while they are made."""
