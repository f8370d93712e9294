"""`stress compare`."""

from __future__ import annotations

from pathlib import Path

import click

from stress.commands.console import console
from stress.commands.options import json_option
from stress.results.verdict import ExitCode
from stress.runs.compare.comparison import compare
from stress.runs.compare.comparison_record import COMPARISON_FORMAT, record_of
from stress.runs.compare.groups import load_groups
from stress.runs.compare.render import page, print_comparison
from stress.scenario.errors import ResultError

WIDTH = 150


@click.command("compare")
@click.argument("groups", nargs=-1, required=True, metavar="A B [...]")
@click.option(
    "--allow",
    multiple=True,
    metavar="KEY",
    help="A key in which the scenarios may differ, beside their design. May be repeated.",
)
@click.option(
    "--baseline",
    is_flag=True,
    help="A is the baseline: exit code 5 if another group is worse beyond the threshold.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0),
    default=0.1,
    show_default=True,
    help="With --baseline: 0.1 is 10 %.",
)
@json_option("the comparison")
@click.option(
    "--html",
    "file",
    type=click.Path(path_type=Path),
    help="Write the comparison as a page to this file, too.",
)
def command(
    groups: tuple[str, ...],
    allow: tuple[str, ...],
    baseline: bool,
    threshold: float,
    as_json: bool,
    file: Path | None,
) -> ExitCode:
    """Compare runs, or groups of runs, of one scenario with the first: figures, intervals, and only
    claims that hold.

    A group is PATH or LABEL=PATH[,PATH...]: a run's directory, or one that holds several runs
    (several seeds).
    """
    comparison = compare(load_groups(groups), allow)
    limit = threshold if baseline else None
    if file is not None:
        _write(file, page(record_of(comparison)))
    if as_json:
        click.echo(COMPARISON_FORMAT.text(record_of(comparison)), nl=False)
    else:
        print_comparison(comparison, console(width=WIDTH), limit)
    return ExitCode.REGRESSION if baseline and comparison.regressions(threshold) else ExitCode.PASS


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultError(
            f"cannot write {file}: {error.strerror}; choose another file with --html"
        ) from None
