"""`stress campaign`: one scenario on real threads with many seeds."""

from __future__ import annotations

from pathlib import Path

import click

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
)
from stress.commands.scenarios import changed, load_all
from stress.results.verdict import ExitCode
from stress.runs.campaign import CampaignRequest
from stress.runs.fanout.spread import Workers, scheduler_option


@click.command("campaign")
@scenario_option("run")
@click.option(
    "--seeds",
    "-n",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="How many runs, each with a seed of its own.",
)
@click.option(
    "--first-seed",
    type=SEED,
    default=1,
    show_default=True,
    help="Seed of the first run; the others count on.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(0),
    default=0,
    help="Runs at a time; by default one a CPU. 1 for honest times.",
)
@scheduler_option
@click.option(
    "--duration",
    type=Seconds(),
    help="Seconds a run, whatever the scenario says.",
)
@set_option("vm.vcpus=4")
@mended_option("Run")
@variant_option
@results_option()
@quiet_option()
@json_option("the summary")
def campaign(
    config: Path,
    seeds: int,
    first_seed: int,
    jobs: int,
    scheduler: str | None,
    duration: float | None,
    overrides: tuple[str, ...],
    mended: bool,
    files: tuple[Path, ...],
    results: Path,
    quiet: bool,
    as_json: bool,
) -> ExitCode:
    """Run a scenario with many seeds, several runs at a time, and judge them together.

    Every run is stored like one of 'stress run'. Stopped at any time, it keeps what has come to an
    end.
    """
    scenario, _ = load_all(config, changed(overrides, mended=mended, duration=duration), files)
    request = CampaignRequest(
        scenario=scenario,
        name=config.stem,
        seeds=tuple(range(first_seed, first_seed + seeds)),
        where=Workers(jobs, scheduler),
        results=results,
        variant_files=(*scenario.vm.variant_files, *map(str, files)),
    )
    return perform.campaign(request, quiet=quiet, as_json=as_json)
