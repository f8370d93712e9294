"""Why a schedule fails: the steps that matter, in the kernel's words, and what becomes of it when a
switch is left out.

The schedule is replayed step by step, and every word is looked at before and after it is touched.
What is shown are the steps that do not commute with a step of another task and that lie in the past
of the finding, by happens-before. Counterfactuals are further runs: without a switch, and with
random continuations after each prefix.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from typing import Final

from attrs import evolve

from mmu.numbers.oracles import RULES
from mmu.report import Report
from stress.engines.program import Executor, Program, Run
from stress.scenario.errors import StressError
from stress.search.explain_data import SHUTS, ExplainedFinding, Explanation, StepRow, Switch
from stress.search.explain_laboratory import TRIES, Laboratory
from stress.search.explain_replay import Recording, Step
from stress.search.explain_slice import CausalSlice
from stress.search.explain_summary import summary
from stress.search.in_buffers import unseen_stores
from stress.search.races import races_of
from stress.search.schedule import Divergence, Follow, Schedule, check_of

MOST_STEPS: Final = 400_000
"""What the random continuations of one prefix may cost; after long schedules fewer are tried."""
MOST_SWITCHES: Final = 60
"""So many switches are left out one by one; of a schedule with more, the last ones."""
MOST_POINTS: Final = 6
"""Before so many of the switches that matter, the last ones, it is asked how likely the failure
is."""


class NothingToExplainError(StressError):
    """The schedule breaks no rule."""


def explain(
    program: Program,
    schedule: Schedule,
    *,
    steps: Sequence[tuple[str, str]] = (),
    predicted: bool = False,
    tries: int = TRIES,
    about: Set[str] = frozenset(),
) -> Explanation:
    """Explain a schedule that breaks a rule. With `steps` every step is compared with its recorded
    name; `predicted` looks for races that did no harm, too; `tries` is how many random
    continuations of a prefix are tried. What is explained is the first finding that answers to a
    name or has the signature in `about`, else the first one."""
    follow = Follow(schedule.choices, steps=steps)
    recording = Recording(program, follow)
    run = Executor(recording, keep_extras=True).execute(recording, schedule.seed)
    _refuse_divergence(follow, run, schedule)
    reports, races = (
        sorted(run.reports, key=lambda report: not (report.names() | {report.signature}) & about),
        False,
    )
    findings = [_finding(report, recording.found[report.signature]) for report in reports]
    if not findings and predicted:
        plain = Executor(program).execute(Follow(schedule.choices), schedule.seed)
        reports, races = list(races_of(plain)), True
        findings = [_finding(report, _step_of_race(plain, report)) for report in reports]
    if not findings:
        raise NothingToExplainError("the schedule breaks no rule: there is nothing to explain")
    tries = max(2, min(tries, MOST_STEPS // max(1, len(run.trace))))
    laboratory = Laboratory(program, schedule, reports[0], races, tries)
    return _told_of(laboratory, run, _with_buffers(recording.steps, run), findings)


def _with_buffers(steps: list[Step], run: Run) -> list[Step]:
    """The steps, those with a note that read a word to which another task's store was on its
    way."""
    for number, stores in unseen_stores(run).items():
        if steps[number].what:
            what = "; ".join([steps[number].what, *(_late(steps[store]) for store in stores)])
            steps[number] = evolve(steps[number], what=what)
    return steps


def _late(store: Step) -> str:
    where = f", made in {store.where.function}," if store.where.function else ""
    return f"{store.task}'s store to it{where} is still in its buffer"


def _told_of(
    laboratory: Laboratory, run: Run, steps: Sequence[Step], findings: Sequence[ExplainedFinding]
) -> Explanation:
    """The explanation of a run whose every step is known."""
    found, schedule = findings[0], laboratory.schedule
    everything = laboratory.predicted or found.step >= len(steps)
    switches, untried = _switches(laboratory, run, steps, found.step)
    rows, left_out = _rows(
        CausalSlice(run, steps, found.step, found.sentence, all_of_it=everything), steps, switches
    )
    shown = [row.step for row in rows if steps[row.step].change]
    before = rows[0].step - 1 if rows else -1
    inevitable = (
        laboratory.inevitable(min(found.step + 1, len(run.trace))) if not run.limit_hit else None
    )
    decisive = [switch.step for switch in switches if switch.decisive][-MOST_POINTS:]
    active = {row.task for row in rows}
    return Explanation(
        laboratory.program.name,
        schedule.seed,
        len(run.trace),
        len(schedule.turns()),
        summary(found, len(run.trace), rows, switches, inevitable),
        found,
        tuple(findings[1:]),
        tuple(name for name in run.names if name in active),
        rows,
        left_out,
        laboratory.pictures([before, *shown, min(found.step, len(steps) - 1)]),
        switches,
        untried,
        inevitable,
        tuple((kept, laboratory.failing(kept)) for kept in (0, *decisive))
        if not run.limit_hit
        else (),
        laboratory.tries,
        laboratory.predicted,
    )


def _refuse_divergence(follow: Follow, run: Run, schedule: Schedule) -> None:
    if follow.divergence is not None:
        raise follow.divergence
    if check_of(run.trace) != schedule.check:
        at = min(len(run.trace), len(schedule.choices))
        raise Divergence(
            at,
            f"{len(schedule.choices)} steps as recorded",
            f"{len(run.trace)} steps, or other ones",
        )


def _finding(report: Report, step: int) -> ExplainedFinding:
    meaning = RULES.get(report.rule, "")
    task = report.task.split("/")[0]
    waits = next((each.lines for each in report.sections if each.title == "waits for"), ())
    stands_for = f"{report.stands_for} {RULES[report.stands_for]}" if report.stands_for else ""
    return ExplainedFinding(
        report.rule,
        meaning,
        report.code,
        report.headline,
        report.sentence,
        report.source,
        task,
        step,
        waits,
        stands_for,
    )


def _step_of_race(run: Run, report: Report) -> int:
    """The step that completes a race which did no harm: the check is one pass, so what a prefix
    shows all longer ones show."""

    def shows(length: int) -> bool:
        prefix = Run(
            trace=run.trace[:length],
            extras=run.extras,
            follows=run.follows,
            barriers=run.barriers,
            names=run.names,
            scheduler=run.scheduler,
        )
        return any(other.signature == report.signature for other in races_of(prefix))

    return bisect_left(range(len(run.trace) + 1), True, key=shows) - 1


def _switches(
    laboratory: Laboratory, run: Run, steps: Sequence[Step], last: int
) -> tuple[tuple[Switch, ...], int]:
    """Every switch before the finding away from a task that could have gone on, and how many more
    there are than were tried."""
    trace = run.trace[: last + 1]
    where = [
        number
        for number in range(1, min(len(trace), len(steps)))
        if steps[number].away_from and trace[number][0] != trace[number - 1][0]
    ]
    tried = where[-max(3, min(MOST_SWITCHES, MOST_STEPS // (len(run.trace) + 1))) :]
    names = run.names
    return tuple(
        Switch(
            number,
            step,
            names[steps[step].away_from - 1],
            names[trace[step][0] - 1],
            laboratory.without(step, steps[step].away_from),
        )
        for number, step in enumerate(tried, 1)
    ), len(where) - len(tried)


def _rows(
    cut: CausalSlice, steps: Sequence[Step], switches: Sequence[Switch]
) -> tuple[tuple[StepRow, ...], int]:
    """The steps to show, repetition collapsed, and how many others there are in the past."""
    rows: list[StepRow] = []
    waiting = list(reversed(switches))
    told = list(_told(cut, steps))
    for number in told:
        step = steps[number]
        before: list[int] = []
        while waiting and waiting[-1].step <= number:
            before.append(waiting.pop().number)
        row = StepRow(
            number,
            step.task,
            step.what,
            step.where.function,
            step.where.operation,
            cut.partners(number),
            switches=tuple(before),
        )
        if rows and not before and not step.change and _alike(rows[-1], row):
            rows[-1] = evolve(
                rows[-1],
                more=rows[-1].more + 1,
                partners=tuple(sorted({*rows[-1].partners, *row.partners})),
            )
        else:
            rows.append(row)
    return tuple(rows), cut.size - len(told)


def _told(cut: CausalSlice, steps: Sequence[Step]) -> Iterator[int]:
    """The steps to show, without what a task has said already since another had its turn, and
    without the first half of taking a lock when the second follows at once."""
    kept = cut.kept()
    said: set[str] = set()
    task = ""
    for number, following in itertools.zip_longest(kept, kept[1:]):
        step = steps[number]
        if step.task != task:
            task, said = step.task, set()
        gate = (
            step.what.endswith(SHUTS) and following == number + 1 and steps[following].task == task
        )
        if number == cut.last or not (gate or (step.what in said and not step.change)):
            said.add(step.what)
            yield number


_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


def _alike(first: StepRow, second: StepRow) -> bool:
    """Whether one is the other again, numbers aside."""
    same = (first.task, first.function, first.operation) == (
        second.task,
        second.function,
        second.operation,
    )
    return same and _NUMBERS.sub("#", first.what) == _NUMBERS.sub("#", second.what)
