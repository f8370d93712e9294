"""`stress list`."""

from __future__ import annotations

import click

from stress.commands import catalogue
from stress.results.verdict import ExitCode


@click.command("list")
@click.argument("what", type=click.Choice(["all", *catalogue.KINDS]), default="all")
def list_things(what: str) -> ExitCode:
    """List scenarios, policies, profiles, kernels, oracles, variants, posted defects, counters, and
    the parts that a variant may replace, with their methods."""
    click.echo(catalogue.listing(what), nl=False)
    return ExitCode.PASS
