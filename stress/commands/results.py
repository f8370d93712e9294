"""`stress results`: list, show and prune what runs have left behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from stress.commands.console import console
from stress.commands.loaded import load
from stress.commands.options import json_option, results_option
from stress.results import index, listing, prune
from stress.results.kinds import KINDS, find
from stress.results.listing import DAMAGED, LISTING_FORMAT, Filter, ListedResult, Listing, chosen
from stress.results.verdict import ExitCode, Verdict
from stress.scenario.errors import StressError

SHOWN = 50
"""So many of the newest results a table shows, unless told otherwise."""
WIDTH = 160
"""Of a table that nobody looks at in a terminal."""
VERDICTS = (*(verdict.name for verdict in Verdict), DAMAGED)
STYLES = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow"}

_results = results_option("Where the result directories are.")


def when(text: str) -> str:
    """A moment as UTC text: an age such as 7d, 12h or 30m, or a date (2026-11-20,
    2026-11-20T12:00)."""
    found = listing.moment(text, time.time())
    if found is None:
        raise click.BadParameter(
            f"{text!r} is neither an age such as 7d, 12h, 30m nor a date such as 2026-11-20"
        )
    return found


def _filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose results."""
    for option in (
        click.option(
            "--kind",
            "kinds",
            multiple=True,
            type=click.Choice(KINDS),
            help="Only this kind. May be repeated.",
        ),
        click.option(
            "--name",
            "names",
            multiple=True,
            metavar="GLOB",
            help="Only scenarios (or directories) of this name, such as 'R1*'.",
        ),
    ):
        command = option(command)
    return command


@click.group("results")
def group() -> None:
    """List, show and prune stored results."""


@group.command("list")
@_filters
@click.option(
    "--verdict",
    "verdicts",
    multiple=True,
    type=click.Choice(VERDICTS, case_sensitive=False),
    help="Only this one.",
)
@click.option("--since", type=when, metavar="AGE|DATE", help="Only what was started since then.")
@click.option(
    "--last",
    "-n",
    type=click.IntRange(0),
    help=f"Only the newest; a table shows {SHOWN} by default, 0 shows all.",
)
@json_option("the list")
@_results
def list_results(
    kinds: tuple[str, ...],
    names: tuple[str, ...],
    verdicts: tuple[str, ...],
    since: str | None,
    last: int | None,
    as_json: bool,
    results: Path,
) -> ExitCode:
    """List results, the newest last."""
    found = chosen(_entries(results), Filter(names, verdicts, kinds, since))
    most = last if last is not None else 0 if as_json else SHOWN
    shown = found[-most:] if most else found
    if as_json:
        click.echo(LISTING_FORMAT.text(Listing(str(results), shown)), nl=False)
        return ExitCode.PASS
    screen = console(width=WIDTH)
    screen.print(table(shown))
    older = len(found) - len(shown)
    screen.print(
        f"{len(found):,} results"
        + (f", {older:,} older ones not shown (-n 0 shows all)" if older else ""),
        highlight=False,
    )
    return ExitCode.PASS


@group.command("show")
@click.argument("result", metavar="RESULT")
@json_option("the stored result")
@_results
def show(result: str, as_json: bool, results: Path) -> ExitCode:
    """Show one result: a directory, 'latest', or the beginning of a name."""
    loaded = load(*find(result, results))
    out: list[str] = []
    loaded.guarded(lambda: out.append(loaded.as_json() if as_json else loaded.summary()))
    click.echo(out[0], nl=False)
    if not as_json:
        directory = loaded.directory.path.resolve()
        files = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
        click.echo(f"{loaded.kind} {directory.name}: {', '.join(files)}")
    return ExitCode.PASS


@group.command("prune")
@_filters
@click.option(
    "--older-than",
    "before",
    type=when,
    metavar="AGE|DATE",
    help="Only what was started before then.",
)
@click.option("--passed", is_flag=True, help="Only what passed.")
@click.option(
    "--keep",
    type=click.IntRange(0),
    help="All but the newest so many of those that the other options choose.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@_results
def prune_results(
    kinds: tuple[str, ...],
    names: tuple[str, ...],
    before: str | None,
    passed: bool,
    keep: int | None,
    dry_run: bool,
    yes: bool,
    results: Path,
) -> ExitCode:
    """Delete results, after saying which.

    A result goes when every condition holds. Never: a run that is going on, and a directory whose
    name stress has not given; so the example stays, and renaming a result keeps it.
    """
    if not (kinds or names or before or passed) and keep is None:
        raise StressError(
            "nothing says what to delete: give --keep, --older-than, --passed, --name or --kind"
        )
    wanted = Filter(names, (Verdict.PASS.name,) if passed else (), kinds, before=before)
    planned = prune.plan(results, chosen(_entries(results), wanted), keep)
    for entry, size in zip(planned.going, planned.sizes, strict=True):
        click.echo(f"{entry.directory}  {entry.verdict}  {_size(size)}")
    for why, count in planned.spared:
        click.echo(f"stay: {count} {why}")
    if dry_run or not planned.going:
        click.echo(f"{len(planned.going)} results, {_size(planned.total)}, would be deleted")
        return ExitCode.PASS
    if not yes and not _agreed(planned):
        click.echo("nothing was deleted")
        return ExitCode.PASS
    deleted = prune.carry_out(results, planned)
    click.echo(f"{deleted} results, {_size(planned.total)}, deleted")
    return ExitCode.PASS


def _entries(results: Path) -> list[ListedResult]:
    """Every result. The first time that may take a few seconds for thousands of them."""
    with console(stderr=True).status(f"reading {results}"):
        return index.entries(results)


def _agreed(planned: prune.Plan) -> bool:
    if not sys.stdin.isatty():
        raise StressError(
            "nothing was deleted, as nobody can be asked here: add --yes, or --dry-run to see only "
            "what would go"
        )
    return click.confirm(f"Delete these {len(planned.going)} results, {_size(planned.total)}?")


def table(entries: Sequence[ListedResult]) -> Table:
    """The results as a table, one a line; a directory's name says when, what and with which
    seed."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("verdict", no_wrap=True)
    made.add_column("kind", no_wrap=True)
    made.add_column("s", justify="right", no_wrap=True)
    made.add_column("found", justify="right", no_wrap=True)
    made.add_column("directory", overflow="fold")
    made.add_column("other than usual", overflow="fold")
    for entry in entries:
        verdict = (
            entry.verdict
            if entry.status in ("finished", DAMAGED)
            else f"{entry.verdict} ({entry.status})"
        )
        made.add_row(
            Text(verdict, STYLES.get(entry.verdict, "magenta")),
            entry.kind,
            f"{entry.wall_s:.1f}",
            str(entry.findings or ""),
            Text(entry.directory),
            Text(entry.design if entry.verdict != DAMAGED else entry.told),
        )
    return made


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 1 << 20 else f"{size / 2**10:.1f} KiB"
