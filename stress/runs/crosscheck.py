"""`stress crosscheck`: one scenario on both engines, and what only one of them has shown.

Real threads can only do what some schedule does. A site or a finding that they show and the
controlled engine does not, though it was given more time, is a hole in the controlled engine: a
finding against the harness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import evolve, frozen

from mmu.runtime import Runtime
from mmu.variant import Variant
from stress.engines.carrier import pinned
from stress.engines.scenario_program import ScenarioProgram
from stress.engines.session import Session, vm_config
from stress.engines.threads import ThreadEngine
from stress.observe.resources import Resources
from stress.observe.sites import Sites
from stress.results.verdict import ExitCode
from stress.scenario.scripts import SETUP
from stress.scenario.types import Lines, Scenario, Seconds
from stress.search.exploration import Exploration, SearchBudget
from stress.search.strategies import strategy_for

LONGER = 6
"""How many times as long as the threads the controlled engine may look for what they have shown."""


@frozen
class Crosscheck:
    """What both engines have shown; findings by rule and code."""

    name: str
    sites_threads: frozenset[str]
    sites_controlled: frozenset[str]
    findings_threads: frozenset[str]
    findings_controlled: frozenset[str]
    steps_threads: int
    schedules: int
    errors: tuple[str, ...]

    @property
    def holes(self) -> list[str]:
        """What only real threads have shown."""
        sites = [f"site {site}" for site in sorted(self.sites_threads - self.sites_controlled)]
        return sites + [
            f"finding {finding}"
            for finding in sorted(self.findings_threads - self.findings_controlled)
        ]

    @property
    def exit_code(self) -> ExitCode:
        """HARNESS_ERROR for a hole, INCONCLUSIVE when the threads have done nothing, else PASS."""
        if self.holes or self.errors:
            return ExitCode.HARNESS_ERROR
        return ExitCode.PASS if self.sites_threads and self.steps_threads else ExitCode.INCONCLUSIVE


def crosscheck(
    name: str,
    scenario: Scenario,
    seed: int,
    seconds: float,
    variants: tuple[Variant, ...] = (),
    on_phase: Callable[[str], None] = lambda _: None,
) -> Crosscheck:
    """Run `scenario` for `seconds` on threads, then under control until that has shown as much, or
    for `LONGER` times that."""
    on_phase(f"real threads for {seconds:g} s")
    threads, session = _on_threads(scenario, seed, seconds, variants)
    found = frozenset(
        f"{finding.report.rule} {finding.report.code}" for finding in session.findings()
    )
    on_phase(f"controlled engine, up to {LONGER * seconds:g} s")
    controlled = Sites(vm_config(scenario).layout)
    explorations = [
        _exploration(name, each, seed, variants, controlled) for each in _repeated(scenario)
    ]
    for turn in range(4 * LONGER):
        exploration = explorations[turn % len(explorations)]
        with pinned():
            exploration.run(SearchBudget(seconds=seconds / 4, stop_at_failure=False))
        if exploration.tally.errors or (
            threads.reached <= controlled.reached and found <= _codes(explorations)
        ):
            break
    return Crosscheck(
        name,
        frozenset(threads.reached),
        frozenset(controlled.reached),
        found,
        _codes(explorations),
        sum(actor.progress for actor in session.actors),
        sum(each.tally.schedules for each in explorations),
        (
            *session.errors(),
            *(error for each in explorations for error in each.tally.errors),
        ),
    )


def _repeated(scenario: Scenario) -> list[Scenario]:
    """Threads do a script again and again: so does the controlled engine, a few times over."""
    if not scenario.script:
        return [scenario]
    return [
        evolve(
            scenario,
            script={
                name: lines if name == SETUP else Lines(lines * times)
                for name, lines in scenario.script.items()
            },
        )
        for times in (1, 2, 4)
    ]


def _exploration(
    name: str, scenario: Scenario, seed: int, variants: tuple[Variant, ...], sites: Sites
) -> Exploration:
    return Exploration(
        ScenarioProgram(name, scenario, variants, observers=(sites,)),
        strategy_for("portfolio", seed),
        seeds=(lambda _: 0) if scenario.script else lambda number: seed + number // 4,
    )


def _codes(explorations: list[Exploration]) -> frozenset[str]:
    failures = [
        failure for exploration in explorations for failure in exploration.tally.failures.values()
    ]
    reports = [report for failure in failures for report in failure.reports]
    return frozenset(f"{report.rule} {report.code}" for report in reports)


def _on_threads(
    scenario: Scenario, seed: int, seconds: float, variants: tuple[Variant, ...]
) -> tuple[Sites, Session]:
    timed = evolve(scenario, budget=evolve(scenario.budget, duration_s=Seconds(seconds)))
    session = Session(timed, seed, Runtime(), variants)
    sites = Sites(session.vm.kvm.layout)
    session.probe.attach(sites)
    ThreadEngine(session, Resources(), lambda _: None).run()
    return sites, session


def lines(result: Crosscheck) -> Iterator[str]:
    """The console summary."""
    both = result.sites_threads & result.sites_controlled
    only = sorted(result.sites_controlled - result.sites_threads)
    yield (
        f"{result.name}: {result.steps_threads:,} steps of actors on threads, {result.schedules:,} "
        "controlled schedules"
    )
    yield (
        f"sites    {len(both)} on both engines, {len(result.sites_threads - both)} on threads "
        f"only, {len(only)} under control only"
    )
    yield from (f"  under control only: {site}" for site in only)
    shown = sorted(result.findings_threads | result.findings_controlled)
    for finding in shown:
        where = [
            name
            for name, found in (
                ("threads", result.findings_threads),
                ("control", result.findings_controlled),
            )
            if finding in found
        ]
        yield f"finding  {finding}: {' and '.join(where)}"
    yield from (f"HOLE     {hole}: seen on threads, never under control" for hole in result.holes)
    yield from (f"harness error: {error.splitlines()[0]}" for error in result.errors)
    verdict = {
        ExitCode.PASS: "AGREE    what threads have shown, the controlled engine has shown, too",
        ExitCode.INCONCLUSIVE: "INCONCLUSIVE  nothing happened on threads",
    }.get(
        result.exit_code,
        "DISAGREE the controlled engine misses what threads do; this is a defect of the harness",
    )
    yield verdict
