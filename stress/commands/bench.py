"""`stress bench`."""

from __future__ import annotations

import click

from stress.results.verdict import ExitCode
from stress.runs.bench import run_bench


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--quick", is_flag=True, help="Fewer repetitions: a first impression.")
def bench(as_json: bool, quick: bool) -> ExitCode:
    """Measure the checked paths as ratios within one process."""
    click.echo(run_bench(quick=quick, as_json=as_json), nl=False)
    return ExitCode.PASS
