"""`stress run` and `stress campaign`: on real threads."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import evolve

from stress import performing
from stress.campaign.runs import Repeated
from stress.commands.scenarios import MENDED, RESULTS, load_all, seed_for
from stress.fanout.spread import Where, scheduler_option
from stress.run import RunRequest
from stress.scenario.types import Seed
from stress.verdict import ExitCode


@click.command()
@click.option("--config", "-c", required=True, type=click.Path(path_type=Path), help="Scenario to run (TOML).")
@click.option("--seed", type=click.IntRange(0), help="Seed of every random choice; by default the scenario's, else a new one.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="Seconds to run, instead of the scenario's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key, such as vm.vcpus=4. May be repeated.")
@click.option("--mended", is_flag=True, help="Run it on the mended design: profile hardened, no variants, nothing expected.")
@click.option("--variant", "files", multiple=True, type=click.Path(path_type=Path), help="Python file with a Variant. May be repeated.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Where result directories go.")
@click.option("--quiet", "-q", is_flag=True, help="Print the verdict line only.")
@click.option("--json", "as_json", is_flag=True, help="Print the stored run as JSON, nothing else.")
def run(
    config: Path,
    seed: int | None,
    duration: float | None,
    overrides: tuple[str, ...],
    mended: bool,
    files: tuple[Path, ...],
    results: Path,
    quiet: bool,
    as_json: bool,
) -> ExitCode:
    """Run a scenario and judge it."""
    if duration is not None:
        overrides = (*overrides, f"budget.duration_s={duration}")
    if mended:
        overrides = (*overrides, *MENDED)
    scenario, variants = load_all(config, overrides, files)
    seed = seed_for(scenario, seed)
    files_used = (*scenario.vm.variant_files, *map(str, files))
    request = RunRequest(evolve(scenario, seed=Seed(seed)), config.stem, seed, variants, results, files_used)
    return performing.run(request, quiet=quiet, as_json=as_json)


@click.command("campaign")
@click.option("--config", "-c", required=True, type=click.Path(path_type=Path), help="Scenario to run (TOML).")
@click.option("--seeds", "-n", type=click.IntRange(1), default=5, show_default=True, help="How many runs, each with a seed of its own.")
@click.option("--first-seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of the first run; the others count on.")
@click.option("--jobs", "-j", type=click.IntRange(0), default=0, help="Runs at a time; by default one a CPU. 1 for honest times.")
@scheduler_option
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="Seconds a run, instead of the scenario's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key, such as vm.vcpus=4. May be repeated.")
@click.option("--mended", is_flag=True, help="Run the mended design: profile hardened, no variants, nothing expected.")
@click.option("--variant", "files", multiple=True, type=click.Path(path_type=Path), help="Python file with a Variant. May be repeated.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Where result directories go.")
@click.option("--quiet", "-q", is_flag=True, help="Print the verdict line only.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, nothing else.")
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

    Every run is stored like one of 'stress run'. Stopped at any time, it keeps what has come to an end.
    """
    if duration is not None:
        overrides = (*overrides, f"budget.duration_s={duration}")
    if mended:
        overrides = (*overrides, *MENDED)
    scenario, _ = load_all(config, overrides, files)
    request = Repeated(
        scenario=scenario,
        name=config.stem,
        seeds=tuple(range(first_seed, first_seed + seeds)),
        where=Where(jobs, scheduler),
        results=results,
        variant_files=(*scenario.vm.variant_files, *map(str, files)),
    )
    return performing.campaign(request, quiet=quiet, as_json=as_json)
