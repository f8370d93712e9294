"""`stress replay`: run a recorded schedule again, step by step."""

from __future__ import annotations

from pathlib import Path

import click
from attrs import evolve

from stress.commands.options import SEED, quiet_option, variant_option
from stress.commands.scenarios import load_all, read_schedule
from stress.results import schedule_file
from stress.results.verdict import ExitCode
from stress.runs.replay import replay_stored, replay_text
from stress.scenario.errors import StressError
from stress.search.strategies import strategy_for


@click.command()
@click.argument("schedule")
@click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path),
    help="The scenario, for a schedule given as a string.",
)
@click.option(
    "--from",
    "start",
    type=click.IntRange(0),
    metavar="STEP",
    help="Follow the schedule up to this step only ...",
)
@click.option("--then", "then", metavar="STRATEGY", help="... and go on with this strategy.")
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Seed of the strategy after --then.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of the scenario given with --config.",
)
@variant_option
@quiet_option("the last line")
def replay(
    schedule: str,
    config: Path | None,
    start: int | None,
    then: str | None,
    seed: int,
    overrides: tuple[str, ...],
    files: tuple[Path, ...],
    quiet: bool,
) -> ExitCode:
    """Run a recorded schedule again, step by step: a schedule file, or a schedule string with
    --config."""
    if config is None:
        recorded = read_schedule(Path(schedule))
        if overrides:
            raise StressError("--set goes with --config: a schedule file has its scenario in it")
        recorded = evolve(recorded, variant_files=(*recorded.variant_files, *map(str, files)))
    else:
        scenario, _ = load_all(config, overrides, files)
        recorded = schedule_file.of_string(config, scenario, tuple(map(str, files)), schedule)
    outcome = replay_stored(recorded, start, strategy_for(then, seed) if then else None)
    click.echo(replay_text(recorded, outcome, quiet=quiet))
    return outcome.exit_code
