"""`stress minimise`: make a failing schedule as small as it gets."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click
from rich.console import Console

from stress.commands.options import quiet_option
from stress.results import schedule_file
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
    with Console(stderr=True).status("minimising") if not quiet else contextlib.nullcontext():
        result = minimise_stored(schedule_file.read(file))
    target = output or file.with_name(file.stem.removesuffix(".json") + ".min.json")
    write_minimised(target, result)
    click.echo(minimised_text(result, target, quiet=quiet))
    return ExitCode.FAIL
