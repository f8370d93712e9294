"""Carrying out a run or an exploration for the command line: progress while it goes on, then the
results, kept and told."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import click
from rich.console import Console

from stress.commands.live import display_for, exploration_display
from stress.report import run_console
from stress.report.publish import publish_run
from stress.results.run_record import RunRecord, to_json
from stress.results.store import RunDirectory
from stress.results.verdict import ExitCode, Verdict
from stress.runs import campaign_summary
from stress.runs import explore as exploring
from stress.runs.campaign import CampaignRequest, SeedOutcome, run_campaign
from stress.runs.explore import ExploreRequest
from stress.runs.run import RunRequest, execute
from stress.scenario.errors import ResultError

WIDTH = 150
"""Of a table that nobody looks at in a terminal."""


def run(request: RunRequest, *, quiet: bool = False, as_json: bool = False) -> ExitCode:
    """Run on real threads. `quiet` prints the verdict line only, `as_json` the stored run only."""
    with display_for(Console(), quiet=quiet or as_json) as display:
        record, directory = execute(request, display.show)
    verdict = Verdict[record.verdict]
    trouble = keep(directory, record)
    if trouble:
        verdict = max(verdict, Verdict.HARNESS_ERROR)
    if as_json:
        click.echo(to_json(record), nl=False)
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
    """Explore under control, likewise."""
    with exploration_display(Console(), quiet=quiet or as_json) as show:
        explored = exploring.explore(request, show)
    directory = exploring.keep(explored, results)
    if as_json:
        click.echo(json.dumps(exploring.as_data(explored), indent=1))
    elif quiet:
        click.echo(exploring.verdict_line(explored))
    else:
        click.echo("\n".join(exploring.lines(explored)))
        click.echo(f"results: {directory.path}")
    return explored.judgement.verdict.exit_code


def campaign(request: CampaignRequest, *, quiet: bool = False, as_json: bool = False) -> ExitCode:
    """Many runs of one scenario: a line for each as it ends, and what they say together."""
    progress = Console(stderr=True, quiet=quiet or as_json)
    made, stopped = run_campaign(
        request,
        lambda each: progress.print(line_of(each), highlight=False, markup=False, soft_wrap=True),
    )
    record = campaign_summary.record_of(request.name, request.seeds, made, stopped)
    if as_json:
        click.echo(json.dumps(campaign_summary.as_data(record), indent=1))
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
