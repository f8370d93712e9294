"""The certificate: the evidence behind a verdict of `stress.results.verdict`. It never changes the
verdict.

It is made once, when the verdict is drawn, and stored with the result, so that every report of it
says the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from attrs import field, frozen

from mmu.numbers.oracles import RULES
from stress.observe.close_calls import CLOSE_CALLS, STEPS, THREADS_US
from stress.observe.possible import possible, possible_points
from stress.observe.rules_judged import JUDGED
from stress.results.known_kills import KnownKills
from stress.results.verdict import Obligation
from stress.scenario.counters import COUNTERS, MEMSLOT_CALLS
from stress.scenario.types import Scenario

COMMON = 100.0
"""From so many close calls per million operations on they are called common."""

OPERATIONS: dict[str, tuple[str, ...]] = {
    "vcpu_accesses": ("vcpu_accesses",),
    "device_accesses": ("device_accesses",),
    "memslot calls": MEMSLOT_CALLS,
    "exports and un-exports": ("exports", "unexports"),
    "host ranges": ("host_ranges", "pages_aged"),
    "dirty_log_reads": ("dirty_log_reads",),
    "NX switches and recoveries": ("nx_toggles", "nx_pages_recovered"),
    "attribute_changes": ("attribute_changes",),
}
"""The actors' operations by kind, a counter or the sum of several. Faults, flushes and zaps follow
from them."""

DISTURBANCES: dict[str, str] = {
    "delays": "delays_asked",
    "standstills": "stutters",
    "failures_injected": "failures_asked",
}
"""For each kind of disturbance the counter of those that took effect, and that of the attempts."""


@frozen
class Disturbance:
    """One kind of disturbance that was on (`name` is the counter of its effects, see
    `DISTURBANCES`): how often it was tried, and how often it took effect."""

    name: str
    attempts: int
    hits: int


@frozen
class CloseCall:
    """How often a near miss was seen, and how often that is: none, rare or common per million
    operations."""

    name: str
    meaning: str
    seen: int
    per_million: float
    grade: str


@frozen
class Bound:
    """No failure in `trials` of `what`: at 95 % confidence a failure is less probable than `upper`,
    each time."""

    what: str
    trials: int
    upper: float


@frozen
class Gap:
    """Something that was not exercised: a heading, and the names."""

    what: str
    names: tuple[str, ...]


@frozen
class Exercise:
    """What both engines store of what they did; a certificate is made of it and of what only one of
    them knows."""

    scenario: Scenario
    threads: bool
    counters: Mapping[str, int]
    obligations: tuple[Obligation, ...]
    judged: Mapping[str, int]
    points: Collection[str]
    selftest: KnownKills | None
    failed: bool
    exhausted: bool = False


@frozen
class Certificate:
    """What was done, what it would have caught, what risk is left, and what was not touched.

    `judged` is, a rule, how often it had something to decide. `bounds` and `proof` are empty when
    something failed; `assumption` says what they rest on.
    """

    verdict: str
    budget: str
    operations: tuple[tuple[str, int], ...]
    obligations: tuple[Obligation, ...]
    disturbances: tuple[Disturbance, ...]
    judged: tuple[tuple[str, int], ...]
    close: str
    close_calls: tuple[CloseCall, ...]
    selftest: KnownKills | None
    gaps: tuple[Gap, ...]
    bounds: tuple[Bound, ...] = ()
    assumption: str = ""
    proof: str = ""
    guarantees: tuple[str, ...] = field(default=())


def certify(
    exercise: Exercise,
    verdict: str,
    budget: str,
    *,
    bounds: tuple[Bound, ...] = (),
    assumption: str = "",
    proof: str = "",
    guarantees: tuple[str, ...] = (),
    gaps: tuple[Gap, ...] = (),
) -> Certificate:
    """What both engines have in common, and what the caller adds."""
    operations = operations_of(exercise.counters)
    close_calls = tuple(close_calls_of(exercise, sum(count for _, count in operations)))
    return Certificate(
        verdict=verdict,
        budget=budget,
        operations=operations,
        obligations=exercise.obligations,
        disturbances=tuple(_disturbances(exercise)),
        judged=tuple((rule, exercise.judged.get(rule, 0)) for rule in _rules_on(exercise)),
        close=f"{THREADS_US} us" if exercise.threads else f"{STEPS} steps",
        close_calls=close_calls,
        selftest=exercise.selftest,
        gaps=(*_gaps(exercise, close_calls), *gaps),
        bounds=bounds,
        assumption=assumption,
        proof=proof,
        guarantees=guarantees,
    )


def operations_of(counters: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The operations by kind, those that happened."""
    sums = (
        (kind, sum(counters.get(name, 0) for name in names)) for kind, names in OPERATIONS.items()
    )
    return tuple((kind, count) for kind, count in sums if count)


def close_calls_of(exercise: Exercise, operations: int) -> Iterator[CloseCall]:
    """Every kind of close call that the scenario can bring about, graded by its rate."""
    able = possible(CLOSE_CALLS, exercise.scenario, threads=exercise.threads)
    for name in able:
        seen = exercise.counters.get(name, 0)
        rate = 1e6 * seen / operations if operations else 0.0
        yield CloseCall(name, CLOSE_CALLS[name], seen, rate, grade_of(seen, rate))


def grade_of(seen: int, per_million: float) -> str:
    """none, rare or common."""
    return "none" if not seen else "common" if per_million >= COMMON else "rare"


def _disturbances(exercise: Exercise) -> Iterator[Disturbance]:
    """Those that were on."""
    counters = exercise.counters
    able = possible(DISTURBANCES.values(), exercise.scenario, threads=exercise.threads)
    for effect, attempts in DISTURBANCES.items():
        if attempts in able:
            yield Disturbance(effect, counters.get(attempts, 0), counters.get(effect, 0))


def _gaps(exercise: Exercise, close_calls: tuple[CloseCall, ...]) -> Iterator[Gap]:
    """What could have happened and did not."""
    counters = exercise.counters
    able = possible(COUNTERS, exercise.scenario, threads=exercise.threads)
    yield from _gap(
        "rules with nothing to decide",
        (
            f"{rule} ({JUDGED[rule]})"
            for rule in _rules_on(exercise)
            if not exercise.judged.get(rule)
        ),
    )
    yield from _gap(
        "rules switched off", (rule for rule in RULES if rule in exercise.scenario.oracles.off)
    )
    # then one schedule stood for many, and what was close in the others was not counted
    if not exercise.exhausted:
        yield from _gap(
            "never close",
            (f"{call.name} ({call.meaning})" for call in close_calls if not call.seen),
        )
    yield from _gap(
        "never happened",
        (name for name in able if not counters.get(name) and name not in CLOSE_CALLS),
    )
    yield from _gap(
        "points never reached",
        (
            name
            for name in possible_points(exercise.scenario, threads=exercise.threads)
            if name not in exercise.points
        ),
    )
    yield from _gap("disturbances off", _switched_off(exercise))


def _rules_on(exercise: Exercise) -> list[str]:
    return [rule for rule in RULES if rule not in exercise.scenario.oracles.off]


def _switched_off(exercise: Exercise) -> Iterator[str]:
    config = exercise.scenario.disturbances
    off = {
        "delays": exercise.threads and not config.delay_shares(),
        "failing attach": not config.fail_attach,
        "failing fd": not config.fail_fd,
        "failing prepare": not config.fail_prepare,
        "failing switch": not config.fail_switch and exercise.scenario.vm.policy == "republish",
    }
    yield from (name for name, is_off in off.items() if is_off)


def _gap(what: str, names: Iterator[str]) -> Iterator[Gap]:
    found = tuple(names)
    if found:
        yield Gap(what, found)
