"""`stress study`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stress.commands.console import console
from stress.commands.options import Seconds, json_option, quiet_option, results_option
from stress.results.store import REPORT_HTML, RunDirectory, keep
from stress.results.verdict import ExitCode, Verdict
from stress.runs.fanout.spread import Workers, scheduler_option
from stress.runs.study import runs
from stress.runs.study.answer import Answer, answer
from stress.runs.study.page import page
from stress.runs.study.plan import Study, planned, read_study
from stress.runs.study.render import efficient, markdown, safe
from stress.runs.study.study_record import STUDY_FORMAT, STUDY_JSON, record_of
from stress.scenario.errors import ResultError

STUDY_MD = "study.md"
STUDY_TOML = "study.toml"


@click.command("study")
@click.option(
    "--config",
    "-c",
    required=True,
    type=click.Path(path_type=Path),
    help="The study (TOML), such as configs/studies/keep-valid.toml.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Go on with this result directory; what is there is not made again.",
)
@click.option(
    "--seeds", type=click.IntRange(1), help="Runs at every place, instead of the study's."
)
@click.option(
    "--duration",
    type=Seconds(),
    help="Seconds a run, instead of the study's.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(0),
    help=(
        "Runs at a time, 0 is one a CPU; by default 1, as more disturb each other's times, and "
        "with --scheduler as many as it has places."
    ),
)
@scheduler_option
@results_option()
@json_option("the answer")
@quiet_option("the last lines")
def command(
    config: Path,
    resume: Path | None,
    seeds: int | None,
    duration: float | None,
    jobs: int | None,
    scheduler: str | None,
    results: Path,
    as_json: bool,
    quiet: bool,
) -> ExitCode:
    """Run a grid of policies and places, and say what a delete costs, who is cheaper where, and how
    sure that is."""
    changes: dict[str, Any] = {
        key: value
        for key, value in (("seeds", seeds), ("duration_s", duration))
        if value is not None
    }
    study = read_study(config, changes)
    if resume is not None and not resume.is_dir():
        raise ResultError(f"{resume}: no such directory; give that of an earlier 'stress study'")
    directory = (
        RunDirectory(resume)
        if resume is not None
        else RunDirectory.create(results, f"study-{study.name}", 0)
    )
    directory.write_text(STUDY_JSON, STUDY_FORMAT.text(record_of(so_far(study, directory))))
    progress = console(stderr=True, quiet=quiet or as_json)
    where = Workers(jobs if jobs is not None else 0 if scheduler else 1, scheduler)
    failed, stopped = runs.make(
        study,
        directory.path,
        where,
        lambda step: progress.print(line_of(step), highlight=False, markup=False, soft_wrap=True),
    )
    found = so_far(study, directory)
    verdict, trouble = conclude(found, directory, failed)
    if as_json:
        click.echo(STUDY_FORMAT.text(record_of(found)), nl=False)
    else:
        click.echo(
            markdown(found)
            if not quiet
            else f"Safe. {' '.join(safe(found))}\nEfficient. {' '.join(efficient(found))}"
        )
        click.echo(f"results: {directory.path}")
    if trouble:
        click.echo(f"stress: {trouble}", err=True)
    if stopped:
        click.echo(
            f"stress: {stopped} after {found.made} of {found.planned} runs; go on with --resume "
            f"{directory.path}",
            err=True,
        )
    return verdict.exit_code


def so_far(study: Study, directory: RunDirectory) -> Answer:
    """What the runs in a directory say."""
    return answer(study, runs.records(study, directory.path), sum(1 for _ in planned(study)))


def conclude(found: Answer, directory: RunDirectory, failed: int) -> tuple[Verdict, str]:
    """Store what a study has found, with its reports, as `stress.results.store.keep` does."""
    record = record_of(found)

    def reports() -> None:
        directory.write_text(REPORT_HTML, page(record))
        directory.write_text(STUDY_MD, markdown(found))
        directory.write_text(STUDY_TOML, found.study.path.read_text(encoding="utf-8"))

    text = (STUDY_JSON, STUDY_FORMAT.text(record))
    return keep(directory, verdict_of(found, failed), text, reports)


def verdict_of(found: Answer, failed: int) -> Verdict:
    """A finding fails the study; runs that are missing, or in which nothing was deleted, leave it
    open."""
    if any(cell.findings for cell in found.cells.values()):
        return Verdict.FAIL
    if failed:
        return Verdict.HARNESS_ERROR
    whole = found.made == found.planned and not found.idle()
    return Verdict.PASS if whole else Verdict.INCONCLUSIVE


def line_of(step: runs.StudyProgress) -> str:
    """Progress in a line."""
    minutes, seconds = divmod(round(step.left_s), 60)
    trouble = f": {step.trouble}" if step.trouble else ""
    return (
        f"{step.done} of {step.total}, {minutes}:{seconds:02} left  {step.run.policy}, "
        f"{step.run.place.name}, seed {step.run.seed}{trouble}"
    )
