"""`stress minimise`: make a failing schedule as small as it gets."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from stress.commands.console import console
from stress.commands.options import quiet_option
from stress.commands.scenarios import read_schedule
from stress.results.verdict import ExitCode
from stress.runs.replay import minimise_stored, minimised_text, write_minimised


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="Where the small schedule goes; by default beside the file.",
)
@quiet_option("the last line")
def minimise(file: Path, output: Path | None, quiet: bool) -> ExitCode:
    """Make a failing schedule as small as it gets: fewer actors, operations, memory and context
    switches."""
    with console(stderr=True).status("minimising") if not quiet else contextlib.nullcontext():
        result = minimise_stored(read_schedule(file))
    target = output or file.with_name(file.stem.removesuffix(".json") + ".min.json")
    write_minimised(target, result)
    click.echo(minimised_text(result, target, quiet=quiet))
    return ExitCode.FAIL
