"""`stress rerun`: repeat a stored run or exploration exactly, and report what differs around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click

from stress.commands import perform
from stress.commands.options import json_option, quiet_option, results_option
from stress.results import environment
from stress.results.exploration_record import EXPLORATION_FORMAT, ExplorationRecord
from stress.results.inputs import VariantFile, check
from stress.results.kinds import FILES, find
from stress.results.run_record import Environment, RunRecord
from stress.results.store import RunDirectory
from stress.results.verdict import ExitCode
from stress.runs.explore_request import ExploreRequest
from stress.runs.run import RunRequest
from stress.scenario.errors import ResultError
from stress.scenario.load import structure
from stress.scenario.types import Scenario, Seed
from stress.scenario.variant_files import variants_from

COMPARED = {
    "version": "tdp-stress",
    "python": "Python",
    "implementation": "implementation",
    "free_threaded_build": "free-threaded build",
    "gil_enabled": "GIL",
    "platform": "platform",
    "cpu": "processor",
    "cpus": "CPUs",
    "memory_bytes": "memory",
}
"""What is compared of an environment, and how it is called; packages are compared one by one."""


def differences(then: Environment, now: Environment) -> Iterator[str]:
    """What is not as it was, a line each."""
    for key, name in COMPARED.items():
        before, after = getattr(then, key), getattr(now, key)
        if before != after:
            yield f"{name}: {_shown(before)} then, {_shown(after)} now"
    for name in sorted(then.packages.keys() | now.packages.keys()):
        before, after = (
            then.packages.get(name, "not recorded"),
            now.packages.get(name, "not recorded"),
        )
        if before != after:
            yield f"package {name}: {before} then, {after} now"


def run_request(record: RunRecord, where: str, results: Path) -> RunRequest:
    """The request that repeats a stored run. Raises `ResultError` if it cannot be repeated."""
    files = _files(record.variant_files, where)
    scenario = attrs.evolve(_scenario(record.scenario, where), seed=Seed(record.seed))
    made = variants_from(files)
    _same_variants(
        record.variants, (*scenario.vm.variants, *(variant.name for variant in made)), where
    )
    return RunRequest(scenario, record.name, record.seed, made, results, files)


def explore_request(record: ExplorationRecord, where: str) -> ExploreRequest:
    """The request that repeats a stored exploration. A budget of seconds becomes the number of
    schedules that were run in it: equal seeds have equal schedules, but a busy machine would run
    fewer. Raises `ResultError` if it cannot be repeated."""
    files = _files(record.variant_files, where)
    variants_from(files)
    asked = record.asked
    return ExploreRequest(
        scenario=_scenario(record.scenario, where),
        name=record.name,
        seed=record.seed,
        strategy=record.strategy,
        variant_files=files,
        schedules=asked.schedules if asked.seconds is None else record.schedules,
        exhaustive=asked.exhaustive,
        jobs=asked.jobs,
        keep_going=asked.keep_going,
    )


def _files(files: tuple[VariantFile, ...], where: str) -> tuple[str, ...]:
    """The variant files, which must be there, and as they were."""
    check(files, where)
    return tuple(file.path for file in files)


def _same_variants(then: tuple[str, ...], now: tuple[str, ...], where: str) -> None:
    """A run that has lost a variant on the way would be another run."""
    if then != now:
        raise ResultError(
            f"{where} was run with variants {', '.join(then) or 'none'}; what is stored makes "
            f"{', '.join(now) or 'none'} of it"
        )


def _scenario(data: dict[str, Any], where: str) -> Scenario:
    """The stored scenario. Where it says which small one to explore in its place is left out: that
    file may be gone, and it was read when the result was made."""
    plain = {key: value for key, value in data.items() if value is not None}
    plain["explore"] = {
        key: value for key, value in plain.get("explore", {}).items() if key != "scenario"
    }
    found, problems = structure(plain, {}, where)
    if found is None or problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ResultError(f"{where} holds a scenario that this version cannot run:\n{listed}")
    return found


def _shown(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@click.command("rerun")
@click.argument("result", metavar="DIRECTORY")
@results_option("Where names are looked up, and the new result goes.")
@quiet_option()
@json_option("the new result")
def rerun_command(result: str, results: Path, quiet: bool, as_json: bool) -> ExitCode:
    """Repeat a stored run or exploration with the same scenario, seed, variants and budget.

    DIRECTORY is a result directory, 'latest', or the beginning of a name below --results. What is
    different around it (Python, the GIL, packages, CPUs, the version) is said first, on stderr.
    Real threads still interleave as they please.
    """
    directory, kind = find(result, results)
    where = str(directory / FILES[kind])
    if kind == "run":
        record = RunDirectory(directory).read()
        request = run_request(record, where, results)
        _announce(record.id, record.verdict, record.environment)
        return perform.run(request, perform.printed(quiet=quiet, as_json=as_json))
    if kind == "exploration":
        explored = EXPLORATION_FORMAT.load(directory / FILES[kind])
        wanted = explore_request(explored, where)
        _announce(explored.id, explored.verdict, explored.environment)
        if explored.asked.seconds is not None:
            click.echo(
                f"  {explored.schedules:,} schedules, which is what it did in its "
                f"{explored.asked.seconds:g} s",
                err=True,
            )
        return perform.exploration(wanted, results, perform.printed(quiet=quiet, as_json=as_json))
    raise ResultError(
        f"{directory} is a {kind}: only a run or an exploration can be rerun; give 'stress "
        f"{kind}' its options anew"
    )


def _announce(name: str, verdict: str, then: Environment) -> None:
    """Print what is rerun, its verdict then, and what is different now."""
    click.echo(f"rerun: {name}, which was {verdict}", err=True)
    lines = list(differences(then, environment.observe()))
    for line in lines or ["nothing around it has changed"]:
        click.echo(f"  {line}", err=True)
