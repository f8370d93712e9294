"""`stress litmus`."""

from __future__ import annotations

import click

from stress.engines.carrier import pinned
from stress.results.verdict import ExitCode
from stress.scenario.errors import StressError
from stress.selftest.litmus import run as litmus_run
from stress.selftest.litmus.registry import LITMUS


@click.command()
@click.argument("names", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="List the programs.")
def litmus(names: tuple[str, ...], listing: bool) -> ExitCode:
    """Explore litmus programs to the end and grade their outcomes: one small program for each
    synchronisation rule."""
    unknown = [name for name in names if name not in LITMUS]
    if unknown:
        raise StressError(
            f"there is no litmus program {', '.join(unknown)}: see 'stress litmus --list'"
        )
    if listing:
        click.echo("\n".join(f"{name:<40} {program.title}" for name, program in LITMUS.items()))
        return ExitCode.PASS
    with pinned():
        results = litmus_run.run_all(
            names, lambda result: click.echo(f"{result.verdict}  {result.litmus.name}", err=True)
        )
    click.echo(litmus_run.table(results))
    return (
        ExitCode.PASS
        if all(result.verdict == litmus_run.PASS for result in results)
        else ExitCode.FAIL
    )
