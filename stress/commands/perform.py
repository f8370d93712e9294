"""Carrying out a run or an exploration for the command line: progress while it goes on, then the
results, kept and told."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path

import click

from stress.commands.console import columns, console
from stress.commands.live import display, exploration_line, run_line
from stress.report import brief, exploration_console, run_console
from stress.results.exploration_record import EXPLORATION_FORMAT
from stress.results.run_record import RUN_FORMAT
from stress.results.store import RunDirectory
from stress.results.verdict import ExitCode, Verdict
from stress.runs import campaign_summary
from stress.runs.campaign import CampaignRequest, SeedOutcome, run_campaign
from stress.runs.campaign_summary import CAMPAIGN_FORMAT
from stress.runs.explore import explore
from stress.runs.explore_request import ExploreRequest
from stress.runs.explore_store import ExplorationKeeper
from stress.runs.fanout.single_run import keep_run
from stress.runs.run import RunRequest, execute
from stress.search.exploration import ExplorationTally

WIDTH = 150
"""Of a table that nobody looks at in a terminal."""


class Printed(Enum):
    """How much of a result is printed when it is there."""

    BRIEF = auto()
    """A screen of text."""
    FULL = auto()
    """All the text there is."""
    VERDICT_LINE = auto()
    """The verdict line."""
    JSON = auto()
    """What is stored."""

    @property
    def is_text(self) -> bool:
        """Whether progress is shown before, and where the result is after it."""
        return self in (Printed.BRIEF, Printed.FULL)


def printed(*, quiet: bool, verbose: bool = False, as_json: bool) -> Printed:
    """What the options of a command ask for."""
    if as_json:
        return Printed.JSON
    if quiet:
        return Printed.VERDICT_LINE
    return Printed.FULL if verbose else Printed.BRIEF


def run(request: RunRequest, tell: Printed = Printed.BRIEF) -> ExitCode:
    """Run on real threads, and print the result."""
    with display(console(), run_line, quiet=not tell.is_text) as show:
        done = execute(request, show)
    record, directory = done.record, done.directory
    verdict, trouble = keep_run(done)
    texts: dict[Printed, Callable[[], str]] = {
        Printed.BRIEF: lambda: brief.of_run(record, directory.path, columns()),
        Printed.FULL: lambda: run_console.summary(record),
        Printed.VERDICT_LINE: lambda: f"{run_console.verdict_line(record)}\n",
        Printed.JSON: lambda: RUN_FORMAT.text(record),
    }
    click.echo(texts[tell](), nl=False)
    _say_where(directory, verdict, trouble, tell)
    return verdict.exit_code


def _say_where(directory: RunDirectory, verdict: Verdict, trouble: str, tell: Printed) -> None:
    """Print where the result is, if that was not said, and what of it could not be kept."""
    if trouble and tell.is_text:
        click.echo(f"{verdict.name}: {trouble}")
    elif trouble:
        click.echo(f"stress: {trouble}", err=True)
    elif tell is Printed.FULL:
        click.echo(f"results: {directory.path}")


def exploration(request: ExploreRequest, results: Path, tell: Printed = Printed.BRIEF) -> ExitCode:
    """Explore under control, and print the result."""
    keeper = ExplorationKeeper(request, results)
    with display(console(), exploration_line, quiet=not tell.is_text) as show:

        def look(tally: ExplorationTally) -> None:
            keeper.look(tally)  # first: what was seen is kept
            show(tally)

        explored = explore(request, look)
    record, verdict, trouble = keeper.finish(explored)
    directory = keeper.directory
    texts: dict[Printed, Callable[[], str]] = {
        Printed.BRIEF: lambda: brief.of_exploration(record, directory.path, columns()),
        Printed.FULL: lambda: exploration_console.summary(record, directory.path),
        Printed.VERDICT_LINE: lambda: f"{exploration_console.verdict_line(record)}\n",
        Printed.JSON: lambda: EXPLORATION_FORMAT.text(record),
    }
    click.echo(texts[tell](), nl=False)
    _say_where(directory, verdict, trouble, tell)
    return verdict.exit_code


def campaign(request: CampaignRequest, *, quiet: bool = False, as_json: bool = False) -> ExitCode:
    """Many runs of one scenario: a line for each as it ends, and what they say together."""
    progress = console(stderr=True, quiet=quiet or as_json)
    made, stopped = run_campaign(
        request,
        lambda each: progress.print(line_of(each), highlight=False, markup=False, soft_wrap=True),
    )
    record = campaign_summary.record_of(request.name, request.seeds, made, stopped)
    if as_json:
        click.echo(CAMPAIGN_FORMAT.text(record), nl=False)
    elif quiet:
        click.echo(campaign_summary.verdict_line(record))
    else:
        campaign_summary.print_campaign(record, console(width=WIDTH))
    return Verdict[record.verdict].exit_code


def line_of(made: SeedOutcome) -> str:
    """One run of a campaign in a line."""
    if made.record is None:
        return f"HARNESS_ERROR  seed {made.seed}: {made.trouble}"
    trouble = f" ({made.trouble})" if made.trouble else ""
    return run_console.verdict_line(made.record) + trouble
