"""Carrying out a run or an exploration for the command line: progress while it goes on, then the
results, kept and told."""

from __future__ import annotations

from pathlib import Path

import click

from stress.commands.console import console
from stress.commands.live import display, exploration_line, run_line
from stress.report import exploration_console, run_console
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


def run(request: RunRequest, *, quiet: bool = False, as_json: bool = False) -> ExitCode:
    """Run on real threads. `quiet` prints the verdict line only, `as_json` the stored run only."""
    with display(console(), run_line, quiet=quiet or as_json) as show:
        done = execute(request, show)
    record, directory = done.record, done.directory
    verdict, trouble = keep_run(done)
    if as_json:
        click.echo(RUN_FORMAT.text(record), nl=False)
    elif quiet:
        click.echo(run_console.verdict_line(record))
    else:
        click.echo(run_console.summary(record), nl=False)
    _say_where(directory, verdict, trouble, printed=not quiet and not as_json)
    return verdict.exit_code


def _say_where(directory: RunDirectory, verdict: Verdict, trouble: str, *, printed: bool) -> None:
    """Print where the result is, and what of it could not be kept."""
    if printed:
        click.echo(f"{verdict.name}: {trouble}" if trouble else f"results: {directory.path}")
    elif trouble:
        click.echo(f"stress: {trouble}", err=True)


def exploration(
    request: ExploreRequest, results: Path, *, quiet: bool = False, as_json: bool = False
) -> ExitCode:
    """Explore under control, with the same options."""
    keeper = ExplorationKeeper(request, results)
    with display(console(), exploration_line, quiet=quiet or as_json) as show:

        def look(tally: ExplorationTally) -> None:
            keeper.look(tally)  # first: what was seen is kept
            show(tally)

        explored = explore(request, look)
    record, verdict, trouble = keeper.finish(explored)
    directory = keeper.directory
    if as_json:
        click.echo(EXPLORATION_FORMAT.text(record), nl=False)
    elif quiet:
        click.echo(exploration_console.verdict_line(record))
    else:
        click.echo(exploration_console.summary(record, directory.path), nl=False)
    _say_where(directory, verdict, trouble, printed=not quiet and not as_json)
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
