"""`stress crosscheck`: what both engines show of one scenario."""

from __future__ import annotations

from pathlib import Path

import click

from stress.commands.options import config_option, set_option, variant_option
from stress.commands.scenarios import load_all, small_scenario
from stress.results.verdict import ExitCode
from stress.runs import crosscheck as crosschecking


@click.command("crosscheck")
@config_option("run on both engines")
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds on real threads.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of every random choice.",
)
@set_option()
@variant_option
def crosscheck_engines(
    config: Path, duration: float, seed: int, overrides: tuple[str, ...], files: tuple[Path, ...]
) -> ExitCode:
    """Run a scenario on real threads and under control, and compare what both have shown."""
    scenario, variants = load_all(config, overrides, files)
    scenario = small_scenario(scenario, overrides)
    result = crosschecking.crosscheck(
        config.stem,
        scenario,
        seed,
        duration,
        variants,
        lambda phase: click.echo(f"{phase} ...", err=True),
    )
    click.echo("\n".join(crosschecking.lines(result)))
    return result.exit_code
