"""The scenario that a command is given: loaded with what was changed on the command line, and every
mistake in one error."""

from __future__ import annotations

import secrets
from pathlib import Path

import click
from attrs import evolve

from mmu.variant import Variant
from stress.results import schedule_file
from stress.results.schedule_file import StoredSchedule
from stress.scenario.errors import ConfigError, Problem, VariantError
from stress.scenario.load import load
from stress.scenario.types import Scenario
from stress.scenario.variant_files import load_variants

MENDED = (
    'vm.profile="hardened"',
    "vm.variants=[]",
    "vm.variant_files=[]",
    "expect.rules=[]",
    "expect.codes=[]",
)
"""What turns a scenario that must fail into one that must pass."""
KEPT = (
    "vm.variants",
    "vm.profile",
    "vm.kernel",
    "vm.policy",
    "vm.variant_files",
    "expect.rules",
    "expect.codes",
)
"""What a scenario keeps when another one is explored in its place."""


def changed(
    overrides: tuple[str, ...], *, mended: bool, duration: float | None = None
) -> tuple[str, ...]:
    """What --duration (of a run) stands for, after it what --set says, then --mended. A duration
    is the whole of it: a run that goes on until its obligations are met needs --set to say so."""
    timed = (f"budget.duration_s={duration}", "budget.until_met=false")
    budget = () if duration is None else timed
    return (*budget, *overrides, *(MENDED if mended else ()))


def load_all(
    config: Path, overrides: tuple[str, ...], files: tuple[Path, ...]
) -> tuple[Scenario, tuple[Variant, ...]]:
    """The scenario and the variants from files; everything that is wrong with any of them in one
    error."""
    problems: list[Problem] = []
    variants: list[Variant] = []
    scenario = None
    try:
        scenario = load(config, overrides)
    except ConfigError as error:
        problems += error.problems
    named = [
        (Path(name), str(config))
        for name in (scenario.vm.variant_files if scenario is not None else ())
    ]
    for file, where in [*named, *((file, "--variant") for file in files)]:
        try:
            variants += load_variants(file)
        except VariantError as error:
            problems.append(
                Problem(
                    where,
                    str(file),
                    str(error),
                    "a file with a VARIANT that can be used (docs/api.md)",
                )
            )
    if problems or scenario is None:
        raise ConfigError(problems)
    return scenario, tuple(variants)


def read_schedule(path: Path) -> StoredSchedule:
    """The schedule in a file. The variant files that it names are code, which is said on
    stderr."""
    recorded = schedule_file.read(path)
    for file in recorded.variant_files:
        click.echo(f"stress: runs the code in {file}, which {path} names", err=True)
    return recorded


def seed_for(scenario: Scenario, given: int | None) -> int:
    """The seed that was given, else the scenario's, else a new one."""
    wanted = given if given is not None else scenario.seed
    return wanted if wanted is not None else secrets.randbelow(1 << 31)


def small_scenario(scenario: Scenario, overrides: tuple[str, ...]) -> Scenario:
    """What is explored for a scenario: itself, or the small one that it names, with its own design
    and expectations."""
    named = scenario.explore.scenario
    if named is None:
        return scenario
    wanted = tuple(item for item in overrides if item.partition("=")[0] not in KEPT)
    small, _ = load_all(Path(named), wanted, ())
    design = {
        key: getattr(scenario.vm, key)
        for key in ("profile", "kernel", "policy", "variants", "variant_files")
    }
    return evolve(
        small,
        title=scenario.title,
        vm=evolve(small.vm, **design),
        expect=scenario.expect,
        limits=scenario.limits,
    )
