"""`stress replay`, `stress minimise` and `stress explain`: what to do with a schedule that fails."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import click
from attrs import evolve
from rich.console import Console

from stress import replaying
from stress.commands.scenarios import load_all
from stress.errors import StressError
from stress.options import json_option, quiet_option, variant_option
from stress.search import explain_text, store
from stress.search.explain import explain_stored
from stress.search.strategies import strategy_for
from stress.verdict import ExitCode
from stress.zoo import page as zoo_page


@click.command()
@click.argument("schedule")
@click.option("--config", "-c", type=click.Path(path_type=Path), help="The scenario, for a schedule given as a string.")
@click.option("--from", "start", type=click.IntRange(0), metavar="STEP", help="Follow the schedule up to this step only ...")
@click.option("--then", "then", metavar="STRATEGY", help="... and go on with this strategy.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the strategy after --then.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the scenario given with --config.")
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
    """Run a recorded schedule again, step by step: a schedule file, or a schedule string with --config."""
    if config is None:
        recorded = store.read(Path(schedule))
        if overrides:
            raise StressError("--set goes with --config: a schedule file has its scenario in it")
        recorded = evolve(recorded, variant_files=(*recorded.variant_files, *map(str, files)))
    else:
        scenario, _ = load_all(config, overrides, files)
        recorded = store.of_string(config, scenario, tuple(map(str, files)), schedule)
    outcome = replaying.run(recorded, start, strategy_for(then, seed) if then else None)
    click.echo(replaying.text(recorded, outcome, quiet=quiet))
    return outcome.exit_code


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Where the small schedule goes; by default beside the file.")
@quiet_option("the last line")
def minimise(file: Path, output: Path | None, quiet: bool) -> ExitCode:
    """Make a failing schedule as small as it gets: fewer actors, operations, memory and context switches."""
    with Console(stderr=True).status("minimising") if not quiet else contextlib.nullcontext():
        result = replaying.minimise_stored(store.read(file))
    target = output or file.with_name(file.stem.removesuffix(".json") + ".min.json")
    replaying.write(target, result)
    click.echo(replaying.minimised_text(result, target, quiet=quiet))
    return ExitCode.FAIL


@click.command()
@click.argument("what", metavar="FILE|NAME")
@json_option("the explanation of a schedule")
def explain(what: str, as_json: bool) -> ExitCode:
    """Say why a schedule fails, or what a variant breaks.

    FILE is a schedule: the interleaving, the page table on the way, and which switches it takes. NAME is a mutant, a defect
    of the posted series or an inverted control (stress list variants): rule, origin, interleaving, and the report it brings.
    """
    if not Path(what).exists() and os.sep not in what and not what.endswith(".json"):
        for piece in zoo_page.page(what):
            click.echo(piece)
        return ExitCode.PASS
    explanation = explain_stored(store.read(Path(what)))
    click.echo(json.dumps(explanation.as_data(), indent=1) if as_json else explain_text.text(explanation))
    return ExitCode.FAIL
