"""`stress hunt`: a design, or an idea, tried on every scenario there is."""

from __future__ import annotations

import os
from pathlib import Path

import click
from attrs import evolve
from rich.table import Table

from stress.commands.console import columns, console
from stress.commands.options import (
    SEED,
    Seconds,
    quiet_option,
    results_option,
    set_option,
    variant_option,
)
from stress.commands.scenarios import load_all, read_schedule, seed_for
from stress.report import brief
from stress.results.verdict import ExitCode, Verdict
from stress.runs.explore_store import ExplorationKeeper
from stress.runs.hunt import Ground, HuntRequest, HuntResult, hunt
from stress.runs.replay import minimise_stored, minimised_text, write_minimised
from stress.scenario.load import load
from stress.scenario.shipped import configs_root
from stress.scenario.types import Expect, Scenario

DEFAULT_S = 60.0


@click.command("hunt")
@variant_option
@click.option(
    "--duration", type=Seconds(), default=DEFAULT_S, show_default=True, help="Seconds to hunt."
)
@click.option("--seed", type=SEED, help="Seed of every random choice; by default a new one.")
@click.option(
    "--jobs", "-j", type=click.IntRange(0), default=0, help="Processes; 0, the default, one a CPU."
)
@set_option('vm.policy="republish"')
@results_option()
@quiet_option("the last line")
def hunt_command(
    files: tuple[Path, ...],
    duration: float,
    seed: int | None,
    jobs: int,
    overrides: tuple[str, ...],
    results: Path,
    quiet: bool,
) -> ExitCode:
    """Try a design on every scenario for `stress explore`: with --variant an idea of yours. The
    time goes where new orders of events are still found. What fails is made as small as it gets."""
    scenarios = _scenarios(overrides, files)
    if seed is None:
        seed = seed_for(next(iter(scenarios.values())), None)
    request = HuntRequest(
        scenarios, tuple(map(str, files)), duration, seed, jobs or os.cpu_count() or 1
    )
    screen = console(quiet=quiet)
    with screen.status("hunting") as status:

        def show(grounds: list[Ground], seconds: float) -> None:
            schedules = sum(ground.tally.schedules for ground in grounds)
            status.update(f"hunting: {seconds:.0f} of {duration:g} s, {schedules:,} schedules")

        done = hunt(request, show)
    if not quiet:
        _print_grounds(done)
    if done.found is not None:
        _tell_failure(done, results, quiet=quiet)
    for error in done.errors:
        click.echo(f"harness error: {error.splitlines()[0]}", err=True)
    click.echo(_verdict_line(done))
    return done.verdict.exit_code


def _scenarios(overrides: tuple[str, ...], files: tuple[Path, ...]) -> dict[str, Scenario]:
    """Every scenario that is explored and has no variant of its own, by its name."""
    paths = sorted((configs_root() / "explore").glob("*.toml"))
    return {
        path.stem: evolve(load_all(path, overrides, files)[0], expect=Expect())
        for path in paths
        if not load(path).vm.variants
    }


def _print_grounds(done: HuntResult) -> None:
    table = Table(box=None, header_style="bold")
    for name in ("scenario", "schedules", "new orders", "seconds"):
        table.add_column(name, justify="left" if name == "scenario" else "right")
    tried = [ground for ground in done.grounds if ground.tally.schedules]
    for ground in sorted(tried, key=lambda each: -each.tally.schedules):
        table.add_row(
            ground.name,
            f"{ground.tally.schedules:,}",
            f"{ground.tally.classes:,}",
            f"{ground.seconds:.1f}",
        )
    console(width=100).print(table)


def _tell_failure(done: HuntResult, results: Path, *, quiet: bool) -> None:
    """Keep the exploration that failed, and make its first schedule as small as it gets."""
    found = done.found
    assert found is not None
    keeper = ExplorationKeeper(found.request, results)
    keeper.look(found.tally)
    record, _, trouble = keeper.finish(found)
    if trouble:
        click.echo(f"stress: {trouble}", err=True)
    directory = keeper.directory.path
    if not quiet:
        click.echo(brief.of_exploration(record, directory, columns()))
    file = directory / record.failures[0].file
    with console(stderr=True).status("minimising"):
        small = minimise_stored(read_schedule(file))
    target = file.with_name(f"{file.stem}.min.json")
    write_minimised(target, small)
    click.echo(minimised_text(small, target, quiet=quiet))


def _verdict_line(done: HuntResult) -> str:
    schedules = sum(ground.tally.schedules for ground in done.grounds)
    tried = sum(ground.turns > 0 for ground in done.grounds)
    head = f"{done.verdict.name}  hunt, seed {done.request.seed}, {done.seconds:.1f} s: "
    what = f"{schedules:,} schedules of {tried} scenarios"
    if done.found is not None:
        return f"{head}{done.found.request.name} fails, after {what}"
    if done.verdict is Verdict.INCONCLUSIVE and done.owing:
        owing = ", ".join(done.owing[:3]) + (", ..." if len(done.owing) > 3 else "")
        return f"{head}no finding in {what}, but {owing} prove nothing yet: hunt longer"
    return f"{head}no finding in {what}"
