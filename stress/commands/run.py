"""`stress run`: one scenario on real threads."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import evolve

from stress.commands import perform
from stress.commands.options import (
    SEED,
    Seconds,
    json_option,
    mended_option,
    quiet_option,
    results_option,
    scenario_option,
    set_option,
    variant_option,
    verbose_option,
)
from stress.commands.scenarios import changed, load_all, seed_for
from stress.results.verdict import ExitCode
from stress.runs.run import RunRequest
from stress.scenario.types import Seed


@click.command()
@scenario_option("run")
@click.option(
    "--seed",
    type=SEED,
    help="Seed of every random choice; by default the scenario's, else a new one.",
)
@click.option(
    "--duration",
    type=Seconds(),
    help="Seconds to run, whatever the scenario says.",
)
@set_option("vm.vcpus=4")
@mended_option("Run it on")
@variant_option
@results_option()
@quiet_option()
@verbose_option
@json_option("the stored run")
def run(
    config: Path,
    seed: int | None,
    duration: float | None,
    overrides: tuple[str, ...],
    mended: bool,
    files: tuple[Path, ...],
    results: Path,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> ExitCode:
    """Run a scenario and judge it."""
    scenario, variants = load_all(
        config, changed(overrides, mended=mended, duration=duration), files
    )
    seed = seed_for(scenario, seed)
    files_used = (*scenario.vm.variant_files, *map(str, files))
    request = RunRequest(
        evolve(scenario, seed=Seed(seed)), config.stem, seed, variants, results, files_used
    )
    return perform.run(request, perform.printed(quiet=quiet, verbose=verbose, as_json=as_json))
