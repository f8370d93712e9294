"""`stress report`: the reports of a stored result, made anew."""

from __future__ import annotations

from pathlib import Path

import click

from stress.commands.loaded import load
from stress.commands.options import json_option, results_option
from stress.report import junit
from stress.report.publish import publish_timeline
from stress.results.kinds import find
from stress.results.store import REPORT_HTML
from stress.results.verdict import ExitCode
from stress.scenario.errors import ResultError

STDOUT = Path("-")


@click.command("report")
@click.argument("result", metavar="DIRECTORY")
@results_option("Where names are looked up.")
@json_option("the stored result")
@click.option(
    "--junit",
    "file",
    type=click.Path(path_type=Path),
    help="Write the JUnit XML to this file, too; '-' prints it, nothing else.",
)
@click.option(
    "--timeline",
    type=click.Path(path_type=Path),
    help="Write a run's timeline to this file, for ui.perfetto.dev or chrome://tracing.",
)
def report_command(
    result: str,
    results: Path,
    as_json: bool,
    file: Path | None,
    timeline: Path | None,
) -> ExitCode:
    """Rebuild the reports of a stored result, also of a run that was killed.

    DIRECTORY is a result directory, or the beginning of a name below --results.
    """
    loaded = load(*find(result, results))
    out: list[str] = []
    loaded.guarded(loaded.publish)
    if timeline is not None:
        publish_timeline(loaded.directory, timeline)
    if file is not None:
        loaded.guarded(lambda: _write(file, junit.render(loaded.suite())))
    if file != STDOUT:
        loaded.guarded(lambda: out.append(loaded.as_json() if as_json else loaded.summary()))
        click.echo(out[0], nl=False)
        if not as_json:
            click.echo(f"report: {loaded.directory.path / REPORT_HTML}")
    return ExitCode.PASS


def _write(file: Path, text: str) -> None:
    if file == STDOUT:
        click.echo(text, nl=False)
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultError(
            f"cannot write {file}: {error.strerror}; choose another file with --junit"
        ) from None
