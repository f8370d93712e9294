"""Running litmus programs: every schedule of each, their outcomes counted and graded, one verdict a
program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from attrs import field, frozen

from mmu.report import Report
from mmu.variant import Variant
from stress.engines.program import Executor, Run, Strategy
from stress.search.dpor import Dpor
from stress.selftest.litmus.base import (
    ACCEPTABLE,
    FORBIDDEN,
    INTERESTING,
    UNGRADED,
    Grade,
    Litmus,
    LitmusProgram,
)
from stress.selftest.litmus.registry import LITMUS

PASS: Final = "PASS"  # noqa: S105 - a verdict
FAIL: Final = "FAIL"
MAX_EXECUTIONS: Final = 20_000
LIMIT: Final = 3_000
"""Steps after which a schedule gets fair turns."""

_ORDER = (FORBIDDEN, UNGRADED, INTERESTING, ACCEPTABLE)


@frozen
class LitmusOutcome:
    """One outcome, how often it was seen, and its grade."""

    outcome: str
    count: int
    grade: Grade


@frozen
class LitmusResult:
    """What all schedules of one program came to. `executions` includes those that were cut short
    because others had covered them; `exhausted` says that no class of schedules is left."""

    litmus: Litmus
    outcomes: tuple[LitmusOutcome, ...]
    executions: int
    exhausted: bool
    reports: tuple[Report, ...] = field(default=())
    errors: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """PASS or FAIL."""
        return FAIL if self.problems else PASS

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it failed: a line each."""
        found = [f"{error.splitlines()[0]}" for error in self.errors]
        found += [
            f"ungraded outcome: {each.outcome}"
            for each in self.outcomes
            if each.grade.grade == UNGRADED
        ]
        reached = [
            f"forbidden outcome: {each.outcome}"
            for each in self.outcomes
            if each.grade.grade == FORBIDDEN
        ]
        if self.litmus.broken:
            return tuple(
                found
                if reached
                else [*found, "no forbidden outcome was reached, although the rule is left out"]
            )
        if not self.exhausted:
            found.append(f"not exhausted after {self.executions:,} executions")
        return (*found, *reached)

    def seen(self) -> set[str]:
        """The outcomes that were seen."""
        return {each.outcome for each in self.outcomes}


def run_litmus(
    litmus: Litmus,
    strategy: Strategy | None = None,
    max_executions: int = MAX_EXECUTIONS,
    *,
    variants: Sequence[Variant] = (),
    granularity: str = "atomic",
) -> LitmusResult:
    """Explore one program, with variants of the model if wanted: exhaustively, unless another
    strategy is given, which then makes `max_executions` schedules. `granularity` as for the
    runtime: `library` explores the rwlock's own steps."""
    search = Dpor() if strategy is None else strategy
    executor = Executor(
        LitmusProgram(litmus, variants),
        limit=LIMIT,
        granularity=granularity,
        keep_extras=isinstance(search, Dpor),
    )
    counts: Counter[str] = Counter()
    reports: dict[str, Report] = {}
    errors: dict[str, None] = {}
    executions = 0
    while executions < max_executions and not getattr(search, "exhausted", False):
        run = executor.execute(search)
        executions += 1
        if run.cut:
            continue
        counts[outcome_of(run, litmus)] += 1
        reports.update((report.signature, report) for report in run.reports)
        errors.update((error, None) for error in run.errors)
    outcomes = [
        LitmusOutcome(outcome, count, litmus.grade_of(outcome)) for outcome, count in counts.items()
    ]
    outcomes.sort(key=lambda each: (_ORDER.index(each.grade.grade), each.outcome))
    exhausted = bool(getattr(search, "exhausted", False))
    return LitmusResult(
        litmus, tuple(outcomes), executions, exhausted, tuple(reports.values()), tuple(errors)
    )


def outcome_of(run: Run, litmus: Litmus) -> str:
    """What the tasks have seen; or, when a rule was reported, its code. Of several codes it is one
    that the table does not know, if there is any, else that of a schedule that could not go on,
    else the first."""
    codes = [report.code for report in run.reports]
    for code in codes:
        if code not in litmus.grades:
            return code
    stuck = [report.code for report in run.reports if report.rule == "O10"]
    return (stuck or codes or [str(run.outcome)])[0]


def run_all(
    names: Iterable[str] = (), on_result: Callable[[LitmusResult], None] | None = None
) -> list[LitmusResult]:
    """Explore the named programs, or all; each result is handed to `on_result` as soon as it is
    there."""
    results = []
    for name in list(names) or list(LITMUS):
        result = run_litmus(LITMUS[name])
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


def table(results: Sequence[LitmusResult]) -> str:
    """The results for the console: a line a program, and under it a line for each outcome."""
    lines = []
    for result in results:
        litmus = result.litmus
        kind = "broken on purpose: " if litmus.broken else ""
        lines.append(
            f"{result.verdict}  {litmus.name:<34} {result.executions:>6,} executions  "
            f"{kind}{litmus.title}"
        )
        lines += [
            f"        {each.count:>6,} x  {each.outcome or '-':<28} {each.grade.grade:<11} "
            f"{each.grade.why}"
            for each in result.outcomes
        ]
        lines += [f"        !! {problem}" for problem in result.problems]
    failed = sum(result.verdict == FAIL for result in results)
    executions = sum(result.executions for result in results)
    lines.append(f"{len(results)} programs, {executions:,} executions, {failed} failed")
    return "\n".join(lines)
