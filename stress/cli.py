"""The command line: verbs only; each calls one function elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
from pathlib import Path
from types import FrameType

import click
from attrs import evolve
from rich.console import Console

from mmu.variant import Variant
from stress import crosscheck as crosschecking
from stress import performing, replaying
from stress.again import again_command
from stress.bench.figures import run_bench
from stress.campaign.runs import Repeated
from stress.compare import command as compare_command
from stress.engines.carrier import pinned
from stress.errors import ConfigError, Problem, StressError, VariantError
from stress.explore import ExploreRequest
from stress.fanout.spread import Where, places, scheduler_option
from stress.litmus import run as litmus_run
from stress.litmus.registry import LITMUS
from stress.report import catalogue
from stress.report.command import report_command, schema_command
from stress.results.command import group as results_group
from stress.run import RunRequest
from stress.scenario.load import load
from stress.scenario.types import Scenario, Seed
from stress.search import explain_text, store
from stress.search.explain import explain_stored
from stress.search.strategies import EVERYTHING, is_exhaustive, strategy_for
from stress.study import command as study_command
from stress.trace.cli import trace
from stress.variants import load_variants
from stress.verdict import ExitCode
from stress.zoo import command as zoo_command
from stress.zoo import page as zoo_page

RESULTS = Path("results")
MENDED = ('vm.profile="hardened"', "vm.variants=[]", "vm.variant_files=[]", "expect.rules=[]", "expect.codes=[]")
"""What turns a scenario that must fail into one that must pass."""


KEPT = ("vm.variants", "vm.profile", "vm.kernel", "vm.policy", "vm.variant_files", "expect.rules", "expect.codes")
"""What a scenario keeps when another one is explored in its place."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tdp-stress", prog_name="stress")
def cli() -> None:
    """Stress KVM's TDP MMU model with an exported root, and judge it.

    Exit codes: 0 PASS, 1 FAIL, 2 INCONCLUSIVE, 3 HARNESS_ERROR, 4 usage or configuration, 5 regression.
    """


@cli.command()
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


@cli.command("explore")
@click.option("--config", "-c", required=True, type=click.Path(path_type=Path), help="Scenario to explore (TOML).")
@click.option("--strategy", "-s", help="How schedules are chosen (stress list strategies); by default the scenario's, else a portfolio.")
@click.option("--schedules", "-n", type=click.IntRange(1), help="How many schedules to run.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="How many seconds to explore; 10 without --schedules.")
@click.option("--exhaustive", is_flag=True, help="Explore every order of events (strategy dpor); not coming to the end is INCONCLUSIVE.")
@click.option("--seed", type=click.IntRange(0), help="Seed of every random choice; by default the scenario's, else a new one.")
@click.option("--jobs", "-j", type=click.IntRange(0), help="Processes, 0 is one a CPU; by default 1, and with --scheduler all its places.")
@scheduler_option
@click.option("--keep-going", is_flag=True, help="Go on after a failure, to find others.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key, such as vm.vcpus=1. May be repeated.")
@click.option("--mended", is_flag=True, help="Explore the mended design: profile hardened, no variants, nothing expected.")
@click.option("--variant", "files", multiple=True, type=click.Path(path_type=Path), help="Python file with a Variant. May be repeated.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Where result directories go.")
@click.option("--quiet", "-q", is_flag=True, help="Print the verdict line only.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, nothing else.")
def explore_scenario(
    config: Path,
    strategy: str | None,
    schedules: int | None,
    duration: float | None,
    exhaustive: bool,
    seed: int | None,
    jobs: int | None,
    scheduler: str | None,
    keep_going: bool,
    overrides: tuple[str, ...],
    mended: bool,
    files: tuple[Path, ...],
    results: Path,
    quiet: bool,
    as_json: bool,
) -> ExitCode:
    """Explore a scenario under a controlled scheduler: every failure can be replayed.

    Of the strategies that come to an end, dfs, delay and preemption give up a schedule that comes to a state they were in before;
    the key explore.states says how many states they remember.
    """
    if mended:
        overrides = (*overrides, *MENDED)
    scenario, _ = load_all(config, overrides, files)
    scenario = small_scenario(scenario, overrides)
    strategy = strategy or ("dpor" if exhaustive else scenario.explore.strategy)
    strategy_for(strategy, 0)
    if exhaustive and strategy not in EVERYTHING:
        raise StressError(f"--exhaustive needs a strategy that explores everything, dpor or dfs; {strategy!r} does not")
    if scheduler is not None and is_exhaustive(strategy):
        raise StressError(f"{strategy} keeps a list of what is left, which workers cannot share; explore without --scheduler")
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
    return performing.exploration(request, results, quiet=quiet, as_json=as_json)


@cli.command("campaign")
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


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Where the small schedule goes; by default beside the file.")
@click.option("--quiet", "-q", is_flag=True, help="Print the last line only.")
def minimise(file: Path, output: Path | None, quiet: bool) -> ExitCode:
    """Make a failing schedule as small as it gets: fewer actors, operations, memory and context switches."""
    with Console(stderr=True).status("minimising") if not quiet else contextlib.nullcontext():
        result = replaying.minimise_stored(store.read(file))
    target = output or file.with_name(file.stem.removesuffix(".json") + ".min.json")
    replaying.write(target, result)
    click.echo(replaying.minimised_text(result, target, quiet=quiet))
    return ExitCode.FAIL


@cli.command()
@click.argument("what", metavar="FILE|NAME")
@click.option("--json", "as_json", is_flag=True, help="Print the explanation of a schedule as JSON, nothing else.")
def explain(what: str, as_json: bool) -> ExitCode:
    """Say why a schedule fails, or what a variant breaks.

    FILE is a schedule: the interleaving, the page table on the way, and which switches it takes. NAME is a mutant, a defect
    of the posted series or an inverted control (stress list variants): rule, origin, interleaving, and the report it brings.
    """
    if not Path(what).exists() and os.sep not in what and not what.endswith(".json"):
        click.echo(zoo_page.page(what))
        return ExitCode.PASS
    explanation = explain_stored(store.read(Path(what)))
    click.echo(json.dumps(explanation.as_data(), indent=1) if as_json else explain_text.text(explanation))
    return ExitCode.FAIL


@cli.command("crosscheck")
@click.option("--config", "-c", required=True, type=click.Path(path_type=Path), help="Scenario to run on both engines (TOML).")
@click.option("--duration", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="Seconds on real threads.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every random choice.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key. May be repeated.")
@click.option("--variant", "files", multiple=True, type=click.Path(path_type=Path), help="Python file with a Variant. May be repeated.")
def crosscheck_engines(config: Path, duration: float, seed: int, overrides: tuple[str, ...], files: tuple[Path, ...]) -> ExitCode:
    """Run a scenario on real threads and under control, and compare what both have shown."""
    scenario, variants = load_all(config, overrides, files)
    scenario = small_scenario(scenario, overrides)
    result = crosschecking.crosscheck(config.stem, scenario, seed, duration, variants, lambda phase: click.echo(f"{phase} ...", err=True))
    click.echo("\n".join(crosschecking.lines(result)))
    return result.exit_code


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="List the programs.")
def litmus(names: tuple[str, ...], listing: bool) -> ExitCode:
    """Explore litmus programs to the end and grade their outcomes: one small program for each synchronisation rule."""
    unknown = [name for name in names if name not in LITMUS]
    if unknown:
        raise StressError(f"there is no litmus program {', '.join(unknown)}: see 'stress litmus --list'")
    if listing:
        click.echo("\n".join(f"{name:<40} {program.title}" for name, program in LITMUS.items()))
        return ExitCode.PASS
    with pinned():
        results = litmus_run.run_all(names, lambda result: click.echo(f"{result.verdict}  {result.litmus.name}", err=True))
    click.echo(litmus_run.table(results))
    return ExitCode.PASS if all(result.verdict == litmus_run.PASS for result in results) else ExitCode.FAIL


@cli.command()
@click.argument("schedule")
@click.option("--config", "-c", type=click.Path(path_type=Path), help="The scenario, for a schedule given as a string.")
@click.option("--from", "start", type=click.IntRange(0), metavar="STEP", help="Follow the schedule up to this step only ...")
@click.option("--then", "then", metavar="STRATEGY", help="... and go on with this strategy.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the strategy after --then.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the scenario given with --config.")
@click.option("--variant", "files", multiple=True, type=click.Path(path_type=Path), help="Python file with a Variant. May be repeated.")
@click.option("--quiet", "-q", is_flag=True, help="Print the last line only.")
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


@cli.command("list")
@click.argument("what", type=click.Choice(["all", *catalogue.KINDS]), default="all")
def list_things(what: str) -> ExitCode:
    """List scenarios, policies, profiles, kernels, oracles, variants, defects of the posted series, or counters."""
    click.echo(catalogue.listing(what), nl=False)
    return ExitCode.PASS


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--quick", is_flag=True, help="Fewer repetitions: a first impression.")
def bench(as_json: bool, quick: bool) -> ExitCode:
    """Measure the checked paths as ratios within one process."""
    click.echo(run_bench(quick=quick, as_json=as_json), nl=False)
    return ExitCode.PASS


for command in (
    zoo_command.command,
    compare_command.command,
    study_command.command,
    report_command,
    schema_command,
    results_group,
    again_command,
    trace,
):
    cli.add_command(command)


def load_all(config: Path, overrides: tuple[str, ...], files: tuple[Path, ...]) -> tuple[Scenario, tuple[Variant, ...]]:
    """The scenario and the variants from files; everything that is wrong with any of them in one error."""
    problems: list[Problem] = []
    variants: list[Variant] = []
    scenario = None
    try:
        scenario = load(config, overrides)
    except ConfigError as error:
        problems += error.problems
    named = [(Path(name), str(config)) for name in (scenario.vm.variant_files if scenario is not None else ())]
    for file, where in [*named, *((file, "--variant") for file in files)]:
        try:
            variants += load_variants(file)
        except VariantError as error:
            problems.append(Problem(where, str(file), str(error), "a Python file that defines VARIANT = Variant(...)"))
    if problems or scenario is None:
        raise ConfigError(problems)
    return scenario, tuple(variants)


def seed_for(scenario: Scenario, given: int | None) -> int:
    """The seed that was given, else the scenario's, else a new one."""
    wanted = given if given is not None else scenario.seed
    return wanted if wanted is not None else secrets.randbelow(1 << 31)


def small_scenario(scenario: Scenario, overrides: tuple[str, ...]) -> Scenario:
    """What is explored for a scenario: itself, or the small one that it names, with its own design and expectations."""
    named = scenario.explore.scenario
    if named is None:
        return scenario
    wanted = tuple(item for item in overrides if item.partition("=")[0] not in KEPT)
    small, _ = load_all(Path(named), wanted, ())
    design = {key: getattr(scenario.vm, key) for key in ("profile", "kernel", "policy", "variants", "variant_files")}
    return evolve(small, title=scenario.title, vm=evolve(small.vm, **design), expect=scenario.expect, limits=scenario.limits)


def main() -> None:
    """Entry point of the `stress` command."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    code = invoke(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the verdict is known: an impatient Ctrl-C must not replace its code
    try:
        sys.stdout.flush()
    except OSError as error:  # a closed pipe or a full disk: the verdict stands, but nobody has read it
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the interpreter's own last flush
        if not isinstance(error, BrokenPipeError):
            click.echo(f"stress: cannot write the output: {error.strerror}", err=True)
            code = max(code, ExitCode.HARNESS_ERROR)
    sys.exit(code)


def invoke(arguments: list[str]) -> int:
    """Run the command line; every user error is one message on stderr and exit code 4."""
    try:
        code = cli.main(arguments, prog_name="stress", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except StressError as error:
        click.echo(f"stress: {error}", err=True)
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("stress: interrupted", err=True)
        return ExitCode.INCONCLUSIVE
    except BrokenPipeError:
        return ExitCode.PASS
    except OSError as error:
        click.echo(f"stress: cannot write the output: {error.strerror}", err=True)
        return ExitCode.HARNESS_ERROR
    return int(code) if isinstance(code, int) else ExitCode.PASS


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run like Ctrl-C: everybody stops, the results are written."""
    raise KeyboardInterrupt
