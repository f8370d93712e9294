"""Agreement of the engines: one small scenario on both, and what only one of them has shown.

Real threads can only do what some schedule does. A site or a finding that they show and the
controlled engine does not, though it was given more time, is a hole in the controlled engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from attrs import evolve, field, frozen

from mmu.report import Report
from mmu.runtime import Runtime
from stress.engines.carrier import pinned
from stress.engines.scenario_program import ScenarioProgram
from stress.engines.session import Session, vm_config
from stress.engines.threads import ThreadEngine
from stress.mutants.case import Case
from stress.observe.resources import Resources
from stress.observe.sites import Sites
from stress.runs.fanout.task import current_slot
from stress.scenario.scripts import SETUP
from stress.scenario.types import Budget, Lines, Scenario, Seconds
from stress.search.exploration import Exploration, SearchBudget
from stress.search.strategies import strategy_for
from stress.selftest.registry import without_variants

AGREED_CASES = (
    "delete-vs-dma",
    "fault-vs-delete",
    "detach-vs-delete",
    "unexport-vs-io-fault",
    "exit-with-device",
    "move",
)
"""Small scenarios in which the controlled engine comes upon everything within some dozen
schedules."""
THREADS_S = 0.5
"""How long threads run, in seconds."""
TURN_S = 0.25
"""How long one form of a script is explored before the next has its turn, in seconds."""

State = Literal["agree", "DISAGREE", "error", "idle"]


@frozen
class Agreement:
    """What both engines have shown of one scenario: `both` and `controlled_only` count sites and
    kinds of findings, `holes` names those that only threads have shown. `steps` are those of actors
    on threads."""

    scenario: str
    both: int = 0
    controlled_only: int = 0
    holes: tuple[str, ...] = ()
    steps: int = 0
    schedules: int = 0
    errors: tuple[str, ...] = field(default=())

    @property
    def state(self) -> State:
        """In a word; idle is a scenario in which threads have done nothing."""
        if self.errors:
            return "error"
        if self.holes:
            return "DISAGREE"
        return "agree" if self.both and self.steps else "idle"


def agreement(name: str, seed: int, limit_s: float) -> Agreement:
    """Run a shipped small scenario on threads, then under control until that has shown as much,
    for at most `limit_s` seconds."""
    scenario = without_variants(Case(f"explore/{name}"))
    threads, session = _on_threads(scenario, seed, limit_s)
    shown = threads.reached | _kinds(finding.report for finding in session.findings())
    reached = Sites(vm_config(scenario).layout)
    searches = [_search(name, each, seed, reached) for each in _repeated(scenario)]
    controlled = _until_shown(searches, reached, shown, limit_s)
    return Agreement(
        name,
        len(shown & controlled),
        len(controlled - shown),
        tuple(sorted(shown - controlled)),
        _steps(session),
        sum(search.tally.schedules for search in searches),
        (*session.errors(), *(error for search in searches for error in search.tally.errors)),
    )


def _until_shown(
    searches: list[Exploration], reached: Sites, wanted: set[str], limit_s: float
) -> set[str]:
    """Explore in turns until everything that is wanted was shown; what was."""
    controlled: set[str] = set()
    for turn in range(max(len(searches), round(limit_s / TURN_S))):
        search = searches[turn % len(searches)]
        with pinned(current_slot()):
            search.run(SearchBudget(seconds=TURN_S, stop_at_failure=False))
        failures = [failure for each in searches for failure in each.tally.failures.values()]
        controlled = reached.reached | _kinds(
            report for failure in failures for report in failure.reports
        )
        if search.tally.errors or wanted <= controlled:
            break
    return controlled


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


def _search(name: str, scenario: Scenario, seed: int, sites: Sites) -> Exploration:
    return Exploration(
        ScenarioProgram(name, scenario, observers=(sites,)),
        strategy_for("portfolio", seed),
        seeds=(lambda _: 0) if scenario.script else lambda number: seed + number // 4,
    )


def _kinds(reports: Iterable[Report]) -> set[str]:
    return {f"finding {report.rule} {report.code}" for report in reports}


def _on_threads(scenario: Scenario, seed: int, limit_s: float) -> tuple[Sites, Session]:
    """A run of `THREADS_S`; a longer one where nothing has happened in that."""
    seconds = THREADS_S
    while True:
        budget = Budget(Seconds(seconds))
        session = Session(evolve(scenario, budget=budget), seed, Runtime())
        sites = Sites(session.vm.kvm.layout)
        session.probe.attach(sites)
        ThreadEngine(session, Resources(), lambda _: None).run()
        if _steps(session) or seconds >= limit_s:
            return sites, session
        seconds *= 4


def _steps(session: Session) -> int:
    return sum(actor.progress for actor in session.actors)
