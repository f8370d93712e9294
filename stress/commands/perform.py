"""Carrying out a run or an exploration for the command line: progress while it goes on, then the
results, kept and told."""

from __future__ import annotations

import signal
from pathlib import Path

import click
from rich.console import Console

from stress.commands.live import display, exploration_line, run_line
from stress.report import exploration_console, run_console
from stress.report.publish import publish_run
from stress.results.exploration_record import EXPLORATION_FORMAT
from stress.results.run_record import RUN_FORMAT, RunRecord
from stress.results.store import RunDirectory
from stress.results.verdict import ExitCode, Verdict
from stress.runs import campaign_summary
from stress.runs.campaign import CampaignRequest, SeedOutcome, run_campaign
from stress.runs.campaign_summary import CAMPAIGN_FORMAT
from stress.runs.explore import explore
from stress.runs.explore_request import ExploreRequest
from stress.runs.explore_store import keep as keep_exploration
from stress.runs.run import RunRequest, execute
from stress.scenario.errors import ResultError

WIDTH = 150
"""Of a table that nobody looks at in a terminal."""


def run(request: RunRequest, *, quiet: bool = False, as_json: bool = False) -> ExitCode:
    """Run on real threads. `quiet` prints the verdict line only, `as_json` the stored run only."""
    with display(Console(), run_line, quiet=quiet or as_json) as show:
        record, directory = execute(request, show)
    verdict = Verdict[record.verdict]
    trouble = keep(directory, record)
    if trouble:
        verdict = max(verdict, Verdict.HARNESS_ERROR)
    if as_json:
        click.echo(RUN_FORMAT.text(record), nl=False)
    elif quiet:
        click.echo(run_console.verdict_line(record))
    else:
        click.echo(run_console.summary(record), nl=False)
        click.echo(f"results: {directory.path}" if not trouble else f"{verdict.name}: {trouble}")
    if trouble and (as_json or quiet):
        click.echo(f"stress: {trouble}", err=True)
    return verdict.exit_code


def keep(directory: RunDirectory, record: RunRecord) -> str:
    """Write the finished run and its reports, undisturbed by Ctrl-C; what went wrong, or
    nothing."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        directory.write(record)
        publish_run(directory, record)
    except ResultError as error:
        return f"the results could not be kept: {error}"
    finally:
        signal.signal(signal.SIGINT, before)
    return ""


def exploration(
    request: ExploreRequest, results: Path, *, quiet: bool = False, as_json: bool = False
) -> ExitCode:
    """Explore under control, with the same options."""
    with display(Console(), exploration_line, quiet=quiet or as_json) as show:
        explored = explore(request, show)
    record, directory = keep_exploration(explored, results)
    if as_json:
        click.echo(EXPLORATION_FORMAT.text(record), nl=False)
    elif quiet:
        click.echo(exploration_console.verdict_line(record))
    else:
        click.echo(exploration_console.summary(record, directory.path), nl=False)
        click.echo(f"results: {directory.path}")
    return Verdict[record.verdict].exit_code


def campaign(request: CampaignRequest, *, quiet: bool = False, as_json: bool = False) -> ExitCode:
    """Many runs of one scenario: a line for each as it ends, and what they say together."""
    progress = Console(stderr=True, quiet=quiet or as_json)
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
        campaign_summary.print_campaign(
            record, Console(width=None if Console().is_terminal else WIDTH)
        )
    return Verdict[record.verdict].exit_code


def line_of(made: SeedOutcome) -> str:
    """One run of a campaign in a line."""
    if made.record is None:
        return f"HARNESS_ERROR  seed {made.seed}: {made.trouble}"
    return run_console.verdict_line(made.record)
