"""The selftest: every mutant must die, nothing may fire on the correct model or on an inverted
control.

It is planned as jobs (`plan`), carried out in parallel (`run`), and told as rows: one for each
mutant and engine, one for each control, one for each way of running the correct model.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from attrs import define, evolve, field, frozen

from mmu.export.policies import POLICIES
from mmu.numbers.oracles import RULES
from stress.mutants.case import Case, Control, Mutant
from stress.mutants.controls import CONTROLS
from stress.results.environment import observe
from stress.results.run_record import Environment
from stress.results.verdict import Judgement, Verdict
from stress.runs.fanout.spread import Workers, spread
from stress.runs.fanout.task import FanoutTask, Trouble
from stress.scenario.errors import StressError
from stress.scenario.types import Oracles, RuleName, Scenario
from stress.selftest.agreement import AGREED_CASES, Agreement, agreement
from stress.selftest.attempt import ENGINES, Attempt, Engine
from stress.selftest.detectors.detectors import SelfTestResult, run_all
from stress.selftest.jobs import Job, run_jobs
from stress.selftest.registry import all_mutants, entry, scenario_of, without_variants

THREADS_SHARE = 0.8
"""At least so many of the mutants that have a case for threads must die there: four in five."""
AGREEMENT_FACTOR = 6
"""How many times as long as for a mutant the controlled engine may look for what threads have
shown."""
CORRECT_CASES = (
    "delete-vs-dma",
    "fault-vs-delete",
    "two-vcpus",
    "detach-vs-delete",
    "unexport-vs-io-fault",
    "migrate-vs-dma",
    "exit-with-device",
    "move",
)
"""Small scenarios of which every policy is explored without any variant."""


UNFINISHED: Final = "the selftest has not finished"
"""Why attempts are left, while it goes on or after it was killed."""


@frozen
class Options:
    """What to try and how hard. Empty `names`, `oracles` and `tags` choose everything. Limits are
    seconds an attempt; `correct_s` is how long the correct model runs in all, `budget_s` a bound on
    everything (None: no bound). `off` are rules whose reports are dropped, to see what only they
    catch. `mutants`, `controls`, `detectors` and `agreement` (of the engines) say whether those are
    tried at all. `jobs` attempts are made at a time (0: as many as there is room for), here or with
    the workers of a Dask `scheduler`."""

    names: tuple[str, ...] = ()
    oracles: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    engines: tuple[Engine, ...] = ENGINES
    strategies: tuple[str, ...] = ()
    seeds: int = 3
    first_seed: int = 1
    jobs: int = 2
    scheduler: str | None = None
    controlled_s: float = 10.0
    threads_s: float = 20.0
    correct_s: float = 60.0
    budget_s: float | None = None
    off: tuple[str, ...] = ()
    mutants: bool = True
    controls: bool = True
    detectors: bool = True
    agreement: bool = True


@define
class MatrixRow:
    """All attempts on one variant with one engine (and strategy), or on the correct model under one
    policy.

    `kind` is "mutant", "control" or "correct"; `must` whether the selftest fails if nothing
    expected fires.
    """

    kind: str
    name: str
    engine: Engine
    scenario: str
    strategy: str
    expects: tuple[str, ...]
    wanted: int
    attempts: list[Attempt] = field(factory=list)

    @property
    def killed(self) -> int:
        """How many attempts ended with an expected report."""
        return sum(attempt.killed for attempt in self.attempts)

    @property
    def by_others(self) -> int:
        """How many attempts brought up something, but nothing that was expected."""
        return sum(bool(attempt.fired) and not attempt.killed for attempt in self.attempts)

    @property
    def errors(self) -> tuple[str, ...]:
        """What went wrong with the harness."""
        return tuple(dict.fromkeys(error for attempt in self.attempts for error in attempt.errors))

    @property
    def seconds(self) -> tuple[float, ...]:
        """Times to the kill, sorted."""
        return tuple(
            sorted(attempt.seconds for attempt in self.attempts if attempt.seconds is not None)
        )

    @property
    def work(self) -> tuple[int, ...]:
        """Schedules or steps to the kill, sorted."""
        return tuple(sorted(attempt.work for attempt in self.attempts if attempt.work is not None))

    @property
    def whole(self) -> bool:
        """Whether every attempt was made that was wanted: only then a mutant that has not died
        lives."""
        return bool(self.attempts) and len(self.attempts) >= self.wanted

    def fired(self) -> Counter[str]:
        """By rule: in how many attempts it fired."""
        return Counter(rule for attempt in self.attempts for rule in attempt.rules())

    def found_by(self) -> Counter[str]:
        """By strategy: how many kills were its."""
        return Counter(attempt.by for attempt in self.attempts if attempt.killed)

    @property
    def done(self) -> int:
        """All the work of all attempts."""
        return sum(attempt.done for attempt in self.attempts)

    @property
    def state(self) -> str:
        """In a word: killed, other oracle, alive, silent, fired, error, idle (it did nothing at
        all), not tried (or not as often as it takes to call it alive)."""
        if not self.attempts:
            return "not tried"
        if self.kind != "mutant":
            fired = any(attempt.fired for attempt in self.attempts)
            return (
                "FIRED" if fired else "error" if self.errors else "silent" if self.done else "idle"
            )
        if self.killed:
            return "killed"
        if not self.whole:
            return "not tried"
        return "other oracle" if self.by_others else "error" if self.errors else "ALIVE"


@define
class Selftest:
    """A finished selftest, or one that was cut short: `left` jobs were not tried, `stopped` says
    why unless the time was up. `detectors` are the self-tests of the detectors on injected mistakes
    and stalls, `agreements` what both engines have shown of small scenarios, where those were asked
    for."""

    options: Options
    rows: list[MatrixRow]
    cannot: dict[str, str]
    """Why real threads cannot show a mutant, by its name."""
    date: str
    wall_s: float = 0.0
    left: int = 0
    environment: Environment = field(factory=observe)
    detectors: tuple[SelfTestResult, ...] = ()
    stopped: str = ""
    agreements: tuple[Agreement, ...] = ()

    def of_kind(self, kind: str, engine: Engine | None = None) -> list[MatrixRow]:
        """The rows of one kind."""
        return [row for row in self.rows if row.kind == kind and engine in (None, row.engine)]

    def medians(self, engine: Engine) -> tuple[float, ...]:
        """The median time to the kill of every mutant that died on this engine, sorted."""
        return tuple(
            sorted(
                statistics.median(row.seconds)
                for row in self.of_kind("mutant", engine)
                if row.seconds
            )
        )


def chosen(options: Options) -> list[Mutant]:
    """The mutants that the options choose; raises `StressError` for names, oracles or tags that
    there are not."""
    known = all_mutants()
    every = list(known.values())
    tags = {tag for mutant in every for tag in mutant.tags}
    for what, given, there in (
        ("rule", options.oracles, RULES),
        ("rule", options.off, RULES),
        ("tag", options.tags, tags),
    ):
        unknown = [name for name in given if name not in there]
        if unknown:
            raise StressError(
                f"there is no {what} {', '.join(unknown)}: there are {', '.join(sorted(there))}"
            )
    for name in options.names:
        entry(name)
    names, oracles, wanted = set(options.names), set(options.oracles), set(options.tags)
    found = [mutant for mutant in every if not names or mutant.name in names]
    found = [mutant for mutant in found if not oracles or oracles & set(mutant.expects)]
    return [mutant for mutant in found if not wanted or wanted & set(mutant.tags)]


def run(
    options: Options, on_attempt: Callable[[Selftest, MatrixRow, Attempt], None] = lambda *_: None
) -> Selftest:
    """Make every attempt, in parallel processes. `on_attempt` is called after each, with what there
    is so far."""
    start = time.monotonic()
    mutants = chosen(options)
    everything = not (options.names or options.oracles or options.tags)
    detectors = tuple(run_all()) if options.detectors and everything else ()
    rows: list[MatrixRow] = []
    jobs: list[tuple[Job, MatrixRow]] = []
    for row, mine in plan(options, mutants):
        rows.append(row)
        jobs += [(job, row) for job in mine]
    agreeing = _agreeing(options) if everything else []
    if not jobs and not detectors and not agreeing:
        raise StressError(
            "nothing is left to try: no mutant has the names, oracles, tags and engines that were "
            "asked for"
        )
    cannot = {mutant.name: mutant.threads_cannot for mutant in mutants if mutant.threads is None}
    test = Selftest(
        options,
        rows,
        cannot,
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        left=len(jobs) + len(agreeing),
        detectors=detectors,
        stopped=UNFINISHED,
    )
    owners = {id(job): row for job, row in jobs}

    def done(job: Job, attempt: Attempt) -> None:
        row = owners[id(job)]
        row.attempts.append(attempt)
        test.left -= 1
        test.wall_s = time.monotonic() - start
        on_attempt(test, row, attempt)

    until = start + options.budget_s if options.budget_s is not None else None
    where = Workers(options.jobs, options.scheduler)
    test.left, test.stopped = run_jobs((job for job, _ in jobs), where, done, until)
    if agreeing and not test.stopped:
        test.agreements, test.stopped = _agreements(options, agreeing, where, until)
    test.left += len(agreeing) - len(test.agreements)
    test.wall_s = time.monotonic() - start
    return test


def plan(options: Options, mutants: Sequence[Mutant]) -> Iterator[tuple[MatrixRow, list[Job]]]:
    """Every row with its jobs: mutants first, then controls, then the correct model."""
    for mutant in mutants if options.mutants else ():
        yield from _of_mutant(options, mutant)
    if not options.oracles and not options.tags:
        if options.controls:
            yield from _of_controls(options)
        if options.correct_s and not options.names:
            yield from _correct(options)


def _of_mutant(options: Options, mutant: Mutant) -> Iterator[tuple[MatrixRow, list[Job]]]:
    if "controlled" in options.engines:
        for strategy in options.strategies or ("",):
            yield _planned(
                options, "mutant", mutant, evolve_case(mutant.controlled, strategy), "controlled"
            )
    if "threads" in options.engines and mutant.threads is not None:
        yield _planned(options, "mutant", mutant, mutant.threads, "threads")


def _of_controls(options: Options) -> Iterator[tuple[MatrixRow, list[Job]]]:
    for control in CONTROLS.values():
        if not options.names or control.name in options.names:
            for case in control.tried:
                engine: Engine = "controlled" if case.scenario.startswith("explore/") else "threads"
                if engine in options.engines:
                    yield _planned(options, "control", control, case, engine)


def evolve_case(case: Case, strategy: str) -> Case:
    """The case with another strategy, unless that is empty."""
    return evolve(case, strategy=strategy) if strategy else case


def _planned(
    options: Options, kind: str, variant: Mutant | Control, case: Case, engine: Engine
) -> tuple[MatrixRow, list[Job]]:
    limit = _limit(options, engine) if kind == "mutant" else _limit(options, engine) / 4
    scenario = _without(scenario_of(case, variant), options.off)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [Job(variant.name, case, scenario, engine, seed, limit) for seed in seeds]
    return MatrixRow(
        kind, variant.name, engine, case.scenario, case.strategy, variant.expects, len(jobs)
    ), jobs


def _limit(options: Options, engine: Engine) -> float:
    return options.controlled_s if engine == "controlled" else options.threads_s


def _without(scenario: Scenario, off: Iterable[str]) -> Scenario:
    """The scenario with some rules switched off."""
    return evolve(scenario, oracles=Oracles(tuple(RuleName(rule) for rule in off)))


def _correct(options: Options) -> Iterator[tuple[MatrixRow, list[Job]]]:
    """The correct model under every policy: small scenarios explored, `quick` on threads; each gets
    an equal share of time."""
    cases: list[tuple[Engine, Case]] = [
        ("controlled", Case(f"explore/{name}")) for name in CORRECT_CASES
    ]
    cases += [("threads", Case("quick"))] * len(CORRECT_CASES)
    policies = [name for name, policy in POLICIES.items() if not policy.expects]
    wanted = [
        (engine, case, policy)
        for engine, case in cases
        for policy in policies
        if engine in options.engines
    ]
    share = options.correct_s / max(1, len(wanted))
    rows: dict[tuple[Engine, str, str], tuple[MatrixRow, list[Job]]] = {}
    for number, (engine, case, policy) in enumerate(wanted):
        scenario = _without(
            without_variants(case, f'vm.policy="{policy}"', "budget.duration_s=36000"), options.off
        )
        row, jobs = rows.setdefault(
            (engine, case.scenario, policy),
            (MatrixRow("correct", policy, engine, case.scenario, "", (), 0), []),
        )
        row.wanted += 1
        jobs.append(Job("", case, scenario, engine, options.first_seed + number, max(share, 0.1)))
    yield from rows.values()


def _agreeing(options: Options) -> list[str]:
    """The scenarios on which the engines have to agree."""
    return list(AGREED_CASES) if options.agreement and set(options.engines) == set(ENGINES) else []


def _agreements(
    options: Options, names: list[str], where: Workers, until: float | None
) -> tuple[tuple[Agreement, ...], str]:
    """What the engines have shown of these scenarios, each in a process of its own, and why that
    ended before `until`, if it did."""
    found: dict[int, Agreement] = {}

    def done(number: int, result: Agreement | Trouble) -> None:
        if isinstance(result, Trouble):
            result = Agreement(names[number], errors=(result.text,))
        found[number] = result

    limit = AGREEMENT_FACTOR * options.controlled_s
    tasks = [FanoutTask(agreement, (name, options.first_seed, limit), 2 * limit) for name in names]
    why = spread(tasks, where, done, until)
    return tuple(found[number] for number in sorted(found)), why


def judgement_of(test: Selftest) -> Judgement:
    """PASS only if every mutant was tried and died, enough of them on threads, and nothing fired
    that must not."""
    reasons: list[tuple[Verdict, str]] = []
    for result in test.detectors:
        reasons += [
            (Verdict.FAIL, f"detector self-test {result.test.name}: {problem}")
            for problem in result.problems
        ]
    for row in test.rows:
        where = f"{row.name}, {row.engine}, {row.scenario}"
        if row.state == "FIRED":
            rules = ", ".join(row.fired())
            reasons.append(
                (
                    Verdict.FAIL,
                    f"{'control' if row.kind == 'control' else 'correct model'} {where}: "
                    f"{rules} fired",
                )
            )
        elif row.state == "idle":
            reasons.append((Verdict.INCONCLUSIVE, f"{where}: nothing happened"))
        elif row.state == "error":
            reasons.append((Verdict.HARNESS_ERROR, f"{where}: {row.errors[0].splitlines()[0]}"))
        elif row.state in ("ALIVE", "other oracle") and row.engine == "controlled":
            what = (
                "lives"
                if row.state == "ALIVE"
                else f"killed only by {', '.join(row.fired())}, not by {' or '.join(row.expects)}"
            )
            reasons.append((Verdict.FAIL, f"{where}: {what}"))
    reasons += [reason for each in test.agreements for reason in _disagreement(each)]
    threads = [row for row in test.of_kind("mutant", "threads") if row.whole]
    dead = sum(row.state == "killed" for row in threads)
    if dead < THREADS_SHARE * len(threads):
        reasons.append(
            (
                Verdict.FAIL,
                f"real threads killed {dead} of {len(threads)} mutants, at least "
                f"{THREADS_SHARE:.0%} needed",
            )
        )
    if test.left:
        reasons.append(
            (
                Verdict.INCONCLUSIVE,
                f"{test.left} attempts were not made: {test.stopped or 'the time was up'}",
            )
        )
    if not reasons:
        return Judgement(Verdict.PASS, (summary(test),))
    return Judgement(
        max(verdict for verdict, _ in reasons),
        tuple(text for _, text in sorted(reasons, key=lambda item: -item[0])),
    )


def _disagreement(found: Agreement) -> Iterator[tuple[Verdict, str]]:
    """What speaks against the engines; nothing where they agree."""
    where = f"engines on {found.scenario}"
    for hole in found.holes:
        yield Verdict.HARNESS_ERROR, f"{where}: {hole}: seen on threads, never under control"
    for error in found.errors:
        yield Verdict.HARNESS_ERROR, f"{where}: {error.splitlines()[0]}"
    if found.state == "idle":
        yield Verdict.INCONCLUSIVE, f"{where}: threads have done nothing"


def summary(test: Selftest) -> str:
    """What happened, in one sentence."""
    parts = []
    for engine in ENGINES:
        rows = [row for row in test.of_kind("mutant", engine) if row.attempts]
        if rows:
            medians = test.medians(engine)
            middle = f", median {statistics.median(medians):.2f} s" if medians else ""
            parts.append(
                f"{engine}: {sum(row.state == 'killed' for row in rows)} of {len(rows)} mutants "
                f"killed{middle}"
            )
    if test.detectors:
        parts.append(
            f"{sum(not result.problems for result in test.detectors)} of {len(test.detectors)} "
            "detector self-tests as they must be"
        )
    if test.agreements:
        agreed = sum(each.state == "agree" for each in test.agreements)
        parts.append(f"engines agree on {agreed} of {len(test.agreements)} scenarios")
    silent = test.of_kind("control") + test.of_kind("correct")
    if silent:
        parts.append(
            f"{sum(row.state == 'FIRED' for row in silent)} of {len(silent)} silent cases fired"
        )
    return "; ".join(parts)
