"""One attempt to kill one variant: on one engine, with one seed, within a limit of time."""

from __future__ import annotations

from typing import Literal

from attrs import evolve, frozen

from mmu.report import Report
from mmu.runtime import Runtime
from stress.engines.session import Session
from stress.engines.threads import ThreadEngine
from stress.mutants.case import Case
from stress.observe.resources import Resources
from stress.runs.explore import explore
from stress.runs.explore_request import ExploreRequest
from stress.scenario.types import Budget, Flag, Scenario, Seconds

Engine = Literal["controlled", "threads"]
ENGINES: tuple[Engine, ...] = ("controlled", "threads")
SETTLE_S = 0.05
"""How long threads go on after the kill, to see what else fires."""


@frozen
class Fired:
    """A report that an attempt brought about: its rule, the code of the check, and what it says in
    one line; `as_rules` are all rules that it stands for."""

    rule: str
    code: str
    headline: str
    as_rules: tuple[str, ...]


@frozen
class Attempt:
    """What became of one attempt.

    `seconds` and `work` are the time to the first expected report and the work until then:
    schedules under control, steps of actors on threads; None where none came. `done` is all the
    work. `by` is the strategy that found it. `fired` is everything that was reported; `errors` what
    went wrong with the harness.
    """

    name: str
    engine: Engine
    seed: int
    killed: bool
    seconds: float | None = None
    work: int | None = None
    by: str = ""
    fired: tuple[Fired, ...] = ()
    errors: tuple[str, ...] = ()
    done: int = 0

    def rules(self) -> tuple[str, ...]:
        """Every rule that fired, in order and once."""
        return tuple(dict.fromkeys(rule for each in self.fired for rule in each.as_rules))


def under_control(name: str, case: Case, scenario: Scenario, seed: int, limit_s: float) -> Attempt:
    """Explore until something expected fires, or the limit."""
    strategy = case.strategy or scenario.explore.strategy
    result = explore(ExploreRequest(scenario, case.scenario, seed, strategy, seconds=limit_s))
    tally, expected = result.tally, set(scenario.expect.rules)
    fired = tuple(
        fired_of(report) for failure in tally.failures.values() for report in failure.reports
    )
    found = Attempt(
        name,
        "controlled",
        seed,
        False,
        fired=fired,
        errors=tuple(tally.errors),
        done=tally.schedules,
    )
    kill = next(
        (failure for failure in tally.failures.values() if failure.names() & expected), None
    )
    if kill is None:
        return found
    return evolve(
        found, killed=True, seconds=kill.after_s, work=kill.after_schedules, by=kill.strategy
    )


def on_threads(name: str, scenario: Scenario, seed: int, limit_s: float) -> Attempt:
    """Run on real threads until something expected fires, or the limit; where only the end of a run
    shows that, for the scenario's own time and until its obligations are met."""
    budget = Budget(
        duration_s=Seconds(min(limit_s, scenario.budget.duration_s)),
        until_met=Flag(True),
        cap_s=Seconds(limit_s),
        settle_s=Seconds(SETTLE_S),
        max_findings=scenario.budget.max_findings,
    )
    session = Session(evolve(scenario, budget=budget), seed, Runtime())
    outcome = ThreadEngine(session, Resources(), lambda _: None).run()
    findings = session.findings()
    steps = sum(actor.moved() for actor in session.actors)
    found = Attempt(
        name,
        "threads",
        seed,
        False,
        fired=tuple(fired_of(finding.report) for finding in findings),
        done=steps,
    )
    kill = next(
        (finding for finding in findings if finding.report.names() & set(scenario.expect.rules)),
        None,
    )
    if kill is None:
        return evolve(found, errors=session.errors())
    return evolve(
        found,
        killed=True,
        seconds=round(max(0.0, kill.at_s - outcome.setup_s), 3),
        work=steps,
        by="threads",
    )


def fired_of(report: Report) -> Fired:
    """A report in short."""
    rules = tuple(sorted(name for name in report.names() if name != report.code))
    return Fired(report.rule, report.code, report.headline, rules)
