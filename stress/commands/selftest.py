"""`stress selftest`."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import click
from rich.console import Console

from stress.commands.console import console
from stress.commands.options import SEED, Seconds, json_option, quiet_option, results_option
from stress.report import junit
from stress.report.publish import JUNIT_XML
from stress.results.store import CONSOLE_TXT, REPORT_HTML, RunDirectory, keep
from stress.results.verdict import ExitCode
from stress.runs.fanout.spread import scheduler_option
from stress.scenario.errors import ResultError
from stress.selftest import matrix, matrix_page, selftest
from stress.selftest.attempt import ENGINES, Attempt, Engine
from stress.selftest.cases import of_selftest
from stress.selftest.selftest import MatrixRow, Options, Selftest
from stress.selftest.stored import (
    SELFTEST_FORMAT,
    SELFTEST_JSON,
    SelftestRecord,
    record_of,
    selftest_of,
)

SELFTEST_MD = "selftest.md"
WIDTH = 180


@click.command("selftest")
@click.argument("names", nargs=-1)
@click.option(
    "--oracle",
    "oracles",
    multiple=True,
    metavar="RULE",
    help="Only mutants that this rule must catch, such as O4.",
)
@click.option("--tag", "tags", multiple=True, help="Only mutants with this tag.")
@click.option(
    "--engine", "engines", multiple=True, type=click.Choice(ENGINES), help="Only this engine."
)
@click.option(
    "--strategy",
    "-s",
    "strategies",
    multiple=True,
    help="Explore with this strategy instead of each scenario's; several make a row each.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Attempts for each mutant and engine.",
)
@click.option(
    "--first-seed",
    type=SEED,
    default=1,
    show_default=True,
    help="Seed of the first attempt; the others count on.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(0),
    default=0,
    help="Attempts at a time; by default one a CPU.",
)
@scheduler_option
@click.option(
    "--controlled-limit",
    type=Seconds(),
    default=10.0,
    show_default=True,
    help="Seconds an exploration may take.",
)
@click.option(
    "--threads-limit",
    type=Seconds(),
    default=20.0,
    show_default=True,
    help="Seconds a run on threads may take.",
)
@click.option(
    "--correct",
    type=Seconds(min_open=False),
    default=60.0,
    show_default=True,
    help="CPU seconds for the correct model, on which nothing may fire.",
)
@click.option(
    "--budget",
    type=Seconds(),
    help="Seconds for everything; what is left then is INCONCLUSIVE.",
)
@click.option(
    "--mutants/--no-mutants", default=True, show_default=True, help="Whether mutants are tried."
)
@click.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Whether controls are tried.",
)
@click.option(
    "--detectors/--no-detectors",
    default=True,
    show_default=True,
    help="Whether the detectors' own self-tests run.",
)
@click.option(
    "--agreement/--no-agreement",
    default=True,
    show_default=True,
    help="Whether the engines are compared: what threads show must be seen under control.",
)
@click.option(
    "--without",
    "off",
    multiple=True,
    metavar="RULE",
    help="Drop this rule's reports, to see what only it catches.",
)
@results_option()
@quiet_option()
@json_option("the result")
def command(
    names: tuple[str, ...],
    oracles: tuple[str, ...],
    tags: tuple[str, ...],
    engines: tuple[Engine, ...],
    strategies: tuple[str, ...],
    seeds: int,
    first_seed: int,
    jobs: int,
    scheduler: str | None,
    controlled_limit: float,
    threads_limit: float,
    correct: float,
    budget: float | None,
    mutants: bool,
    controls: bool,
    detectors: bool,
    agreement: bool,
    off: tuple[str, ...],
    results: Path,
    quiet: bool,
    as_json: bool,
) -> ExitCode:
    """Prove that the harness detects: every mutant must die, nothing may fire on correct code.

    NAMES choose mutants and controls (stress list variants); without any, all are tried.
    """
    options = Options(
        names=names,
        oracles=oracles,
        tags=tags,
        engines=engines or ENGINES,
        strategies=strategies,
        seeds=seeds,
        first_seed=first_seed,
        jobs=jobs,
        scheduler=scheduler,
        controlled_s=controlled_limit,
        threads_s=threads_limit,
        correct_s=correct,
        budget_s=budget,
        off=off,
        mutants=mutants,
        controls=controls,
        detectors=detectors,
        agreement=agreement,
    )
    screen = console(width=WIDTH)
    progress = console(stderr=True, quiet=quiet or as_json)
    directory = RunDirectory.create(results, "selftest", first_seed)

    def made(test: Selftest, row: MatrixRow, attempt: Attempt) -> None:
        with contextlib.suppress(ResultError):  # a full disk must not end the selftest
            directory.write_text(SELFTEST_JSON, SELFTEST_FORMAT.text(record_of(test)))
        line = progress_line(row, attempt)
        progress.print(line, highlight=False, markup=False, soft_wrap=True)

    test = selftest.run(options, made)
    record = record_of(test)
    verdict, trouble = keep(
        directory,
        selftest.judgement_of(test).verdict,
        (SELFTEST_JSON, SELFTEST_FORMAT.text(record)),
        lambda: publish(directory, record),
    )
    if as_json:
        click.echo(SELFTEST_FORMAT.text(record), nl=False)
    elif quiet:
        click.echo(matrix.verdict_line(test))
    else:
        matrix.console_tables(test, screen)
        click.echo(f"results: {directory.path}")
    if trouble:
        click.echo(f"stress: {trouble}", err=True)
    return verdict.exit_code


def progress_line(row: MatrixRow, attempt: Attempt) -> str:
    """One attempt in a line."""
    if row.kind == "mutant":
        end = (
            f"killed after {attempt.seconds:.2f} s" if attempt.seconds is not None else "NOT killed"
        )
    else:
        end = "FIRED" if attempt.fired else "silent"
    rules = f" by {' '.join(attempt.rules())}" if attempt.fired else ""
    trouble = (
        f": {attempt.errors[0].splitlines()[0]}" if attempt.errors and not attempt.killed else ""
    )
    return f"{row.name}, {row.engine}, seed {attempt.seed}: {end}{rules}{trouble}"


def publish(directory: RunDirectory, record: SelftestRecord) -> None:
    """Every report of a stored selftest: Markdown, plain text, JUnit."""
    test = selftest_of(record)
    directory.write_text(REPORT_HTML, matrix_page.page(record))
    directory.write_text(SELFTEST_MD, matrix.markdown(test))
    directory.write_text(CONSOLE_TXT, console_text(test))
    directory.write_text(JUNIT_XML, junit.render(of_selftest(record)))


def console_text(test: Selftest) -> str:
    """What the console shows of a selftest."""
    out = io.StringIO()
    matrix.console_tables(test, Console(file=out, width=WIDTH))
    return out.getvalue()
