"""`stress explore`: a scenario under a controlled scheduler."""

from __future__ import annotations

import os
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
    verbose_option,
)
from stress.commands.scenarios import changed, load_all, seed_for, small_scenario
from stress.engines.carrier_choice import MEMORIES
from stress.results.verdict import ExitCode
from stress.runs.explore_request import ExploreRequest
from stress.runs.fanout.spread import places, scheduler_option
from stress.scenario.errors import StressError
from stress.search.strategies import EVERYTHING, is_exhaustive, strategy_for


@click.command("explore")
@scenario_option("explore")
@click.option(
    "--strategy",
    "-s",
    help=(
        "How schedules are chosen (stress list strategies); by default the scenario's, else a "
        "portfolio."
    ),
)
@click.option("--schedules", "-n", type=click.IntRange(1), help="How many schedules to run.")
@click.option(
    "--duration",
    type=Seconds(),
    help="How many seconds to explore; 10 without --schedules.",
)
@click.option(
    "--exhaustive",
    is_flag=True,
    help="Explore every order of events (strategy dpor); not coming to the end is INCONCLUSIVE.",
)
@click.option(
    "--seed",
    type=SEED,
    help="Seed of every random choice; by default the scenario's, else a new one.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(0),
    help="Processes, 0 is one a CPU; by default 1, and with --scheduler all its places.",
)
@scheduler_option
@click.option(
    "--memory",
    type=click.Choice(MEMORIES),
    help="Memory order: sc, or tso for x86's store buffers; by default the scenario's.",
)
@click.option("--keep-going", is_flag=True, help="Go on after a failure, to find others.")
@set_option("vm.vcpus=1")
@mended_option("Explore")
@variant_option
@results_option()
@quiet_option()
@verbose_option
@json_option("the result")
def explore_scenario(
    config: Path,
    strategy: str | None,
    schedules: int | None,
    duration: float | None,
    exhaustive: bool,
    seed: int | None,
    jobs: int | None,
    scheduler: str | None,
    memory: str | None,
    keep_going: bool,
    overrides: tuple[str, ...],
    mended: bool,
    files: tuple[Path, ...],
    results: Path,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> ExitCode:
    """Explore a scenario under a controlled scheduler: every failure can be replayed.

    Of the strategies that come to an end, dfs, delay and preemption give up a schedule that comes
    to a state they were in before; the key explore.states says how many states they remember.
    """
    overrides = changed(overrides, mended=mended)
    if memory is not None:
        overrides = (*overrides, f'explore.memory="{memory}"')
    scenario, _ = load_all(config, overrides, files)
    scenario = small_scenario(scenario, overrides)
    strategy = strategy or ("dpor" if exhaustive else scenario.explore.strategy)
    strategy_for(strategy, 0)
    if exhaustive and strategy not in EVERYTHING:
        raise StressError(
            f"--exhaustive needs a strategy that explores everything, dpor or dfs; {strategy!r} "
            "does not"
        )
    if scheduler is not None and is_exhaustive(strategy):
        raise StressError(
            f"{strategy} keeps a list of what is left, which workers cannot share; explore without "
            "--scheduler"
        )
    seed = seed_for(scenario, seed)
    if jobs is None:
        jobs = max(2, places(scheduler)) if scheduler is not None else 1
    request = ExploreRequest(
        scenario=scenario,
        name=config.stem,
        seed=seed,
        strategy=strategy,
        variant_files=(*scenario.vm.variant_files, *map(str, files)),
        schedules=schedules,
        seconds=duration if duration is not None or schedules is not None or exhaustive else 10.0,
        exhaustive=exhaustive,
        jobs=jobs or os.cpu_count() or 1,
        keep_going=keep_going,
        scheduler=scheduler,
    )
    return perform.exploration(
        request, results, perform.printed(quiet=quiet, verbose=verbose, as_json=as_json)
    )
