"""Why a schedule fails: the steps that matter, in the kernel's words, and what becomes of it when a switch is left out.

The schedule is replayed step by step, and every word is looked at before and after it is touched. What is shown are the
steps that do not commute with a step of another task and that lie in the past of the finding, by happens-before.
Counterfactuals are further runs: without a switch, and with random continuations after each prefix.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import evolve, field, frozen

from mmu.report import RULES, Report
from stress.engines.carrier import pinned
from stress.engines.program import Executor, Program, Run, Strategy
from stress.engines.scheduler import YIELD, Access, ControlTask, Event, Picker, Scheduler
from stress.errors import StressError
from stress.replaying import program_of
from stress.search.explain_data import (
    NO_FAILURE,
    SAME_FAILURE,
    Explanation,
    Finding,
    Inevitable,
    Row,
    Switch,
)
from stress.search.explain_replay import Recording, Step
from stress.search.order import GROUP, Order, accesses
from stress.search.races import races_of
from stress.search.schedule import Divergence, Follow, Schedule, check_of
from stress.search.store import StoredSchedule
from stress.search.walk import RandomWalk

TRIES: Final = 30
"""Random continuations of a prefix."""
MOST_STEPS: Final = 400_000
"""What the random continuations of one prefix may cost; after long schedules fewer are tried."""
MOST_SWITCHES: Final = 60
"""So many switches are left out one by one; of a schedule with more, the last ones."""


class NothingToExplainError(StressError):
    """The schedule breaks no rule."""


# What matters.


class Slice:
    """The steps that lie before a step by happens-before and conflict with one of another task there."""

    def __init__(self, run: Run, steps: Sequence[Step], last: int) -> None:
        self._steps = steps
        self._last = last = min(last, len(steps) - 1)
        order = Order([], {}, len(run.names))
        self._partners: dict[int, set[int]] = {}
        history: dict[int, _History] = {}
        for number, event in enumerate(run.trace[: last + 1]):
            order.trace.append(event)
            touched = self._touched(number, event, run.extras.get(number))
            order.advance(number, touched)
            for kind, word in touched:
                for other in history.setdefault(word, _History()).add(number, event[0], GROUP[kind]):
                    self._partners.setdefault(number, set()).add(other)
                    self._partners.setdefault(other, set()).add(number)
        self._past = {number for number in range(last + 1) if order.before(number, last)} | {last}

    def _touched(self, number: int, event: Event, extras: list[Access] | None) -> list[Access]:
        return accesses(event, extras) if self._steps[number].what else []

    @property
    def size(self) -> int:
        """How many steps the past has."""
        return len(self._past)

    def partners(self, number: int) -> tuple[int, ...]:
        """The steps of other tasks in the past that this one conflicts with directly."""
        return tuple(sorted(self._partners.get(number, set()) & self._past))

    def kept(self) -> list[int]:
        """The steps to show; of a lock or read section both halves or none."""
        shown = {number for number in self._past if self.partners(number)} | {self._last}
        for first, second in _halves(self._steps[: self._last + 1]):
            if first in shown or second in shown:
                shown |= {first, second} & self._past
        return sorted(number for number in shown if self._steps[number].what or number == self._last)


class _History:
    """The last two groups of operations on a word that commute within the group: who comes next conflicts with one of them."""

    __slots__ = ("before", "current", "group")

    def __init__(self) -> None:
        self.before: dict[int, int] = {}
        self.current: dict[int, int] = {}
        self.group = YIELD

    def add(self, number: int, task: int, group: int) -> list[int]:
        """Take in an operation; the latest ones of other tasks that it comes after."""
        if group and group == self.group:
            self.current[task] = number
        else:
            self.before, self.current, self.group = self.current, {task: number}, group
        return [other for who, other in self.before.items() if who != task]


_OPENING = re.compile(r"(?:\w*_)?(?:lock|write_lock|read_lock)\(")
_CLOSING = re.compile(r"(?:\w*_)?(?:unlock|write_unlock|read_unlock)\(")


def _halves(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    """Acquire and release of each lock and read section, as pairs of steps."""
    opened: dict[tuple[str, str], int] = {}
    for number, step in enumerate(steps):
        key = step.task, step.key
        if _CLOSING.match(step.what):
            first = opened.pop(key, None)
            if first is not None:
                yield first, number
        elif _OPENING.match(step.what):
            opened[key] = number
    for first in opened.values():
        yield first, first


# What becomes of it otherwise.


class _Without:
    """The strategy that follows a schedule up to a switch, does not switch but goes on with that task until it blocks or ends, and
    then takes the other turns in their order; what cannot be done of them is left out."""

    name = "without"
    exhausted = False

    def __init__(self, choices: Sequence[int], switch: int) -> None:
        self._choices = choices
        self._switch = switch

    def begin(self, scheduler: Scheduler) -> Picker:
        """From the first step on."""
        choices, switch, tasks = self._choices, self._switch, scheduler.tasks
        turns = [[number, len(list(group))] for number, group in itertools.groupby(choices[switch:])]
        turns.reverse()
        staying = True

        def can_run(number: int) -> bool:
            return number <= len(tasks) and tasks[number - 1].enabled and not tasks[number - 1].done

        def pick() -> ControlTask:
            nonlocal staying
            depth = len(scheduler.trace)
            if depth < switch:
                return tasks[choices[depth] - 1]
            if staying and can_run(choices[switch - 1]):
                return tasks[choices[switch - 1] - 1]
            staying = False
            while turns:
                turn = turns[-1]
                if turn[1] and can_run(turn[0]):
                    turn[1] -= 1
                    return tasks[turn[0] - 1]
                turns.pop()
            return scheduler.first()

        return pick

    def end(self, run: Run) -> None:
        """Nothing is learnt."""


@frozen
class Laboratory:
    """Runs a program in other orders and says whether it still fails in the same way: by the same rule and check. (A signature
    may name a page, which differs from order to order.)"""

    program: Program
    schedule: Schedule
    report: Report
    predicted: bool
    limit: int
    granularity: str
    tries: int = field(default=TRIES)

    def without(self, switch: int) -> str:
        """What comes of the schedule without the switch before step `switch`."""
        reports = self._reports(_Without(self.schedule.choices, switch))
        if not reports:
            return NO_FAILURE
        return SAME_FAILURE if self._is_same(reports) else reports[0].signature

    def fails(self, kept: int, number: int | None = None) -> bool:
        """Whether the first `kept` steps and then random continuation `number` (None: the default one) fail in the same way."""
        then = RandomWalk(number).begin if number is not None else None
        return self._is_same(self._reports(Follow(self.schedule.choices, until=kept, then=then)))

    def inevitable(self, last: int) -> Inevitable | None:
        """The earliest step from which on everything fails that is tried, by bisection: it takes for granted that what is
        inevitable stays so, and looks at the steps beside what it found. None when not even all of the first `last` steps
        make it so."""
        if not self._always(last):
            return None
        low, high = 0, last
        while low < high:
            middle = (low + high) // 2
            if self._always(middle):
                high = middle
            else:
                low = middle + 1
            if low == high and high < last and not self._always(high + 1):
                low, high = high + 2, last
        before = sum(self.fails(high - 1, number) for number in range(self.tries)) if high else self.tries
        return Inevitable(high - 1, self.tries, before)

    def _always(self, kept: int) -> bool:
        return self.fails(kept) and all(self.fails(kept, number) for number in range(self.tries))

    def _is_same(self, reports: Sequence[Report]) -> bool:
        return any(report.rule == self.report.rule and report.code == self.report.code for report in reports)

    def _reports(self, strategy: Strategy) -> tuple[Report, ...]:
        run = Executor(self.program, limit=self.limit, granularity=self.granularity).execute(strategy, self.schedule.seed)
        return run.reports or (tuple(races_of(run)) if self.predicted and run.completed else ())


# Putting it together.


def explain_stored(recorded: StoredSchedule, *, tries: int = TRIES) -> Explanation:
    """The explanation of a schedule file; raises `Divergence` when the schedule does not fit any more."""
    settings = recorded.scenario.explore
    with pinned():
        return explain(
            program_of(recorded),
            recorded.schedule,
            steps=recorded.steps,
            predicted=recorded.predicted or not recorded.signatures,
            limit=settings.max_steps,
            granularity=settings.lock_granularity,
            tries=tries,
        )


def explain(
    program: Program,
    schedule: Schedule,
    *,
    steps: Sequence[tuple[str, str]] = (),
    predicted: bool = False,
    limit: int = 20_000,
    granularity: str = "atomic",
    tries: int = TRIES,
) -> Explanation:
    """Explain a schedule that breaks a rule. With `steps` every step is compared with its recorded name; `predicted` looks for
    races that did no harm, too; `tries` is how many random continuations of a prefix are tried."""
    follow = Follow(schedule.choices, steps=steps)
    recording = Recording(program, follow)
    run = Executor(recording, limit=limit, granularity=granularity).execute(recording, schedule.seed)
    _refuse_divergence(follow, run, schedule)
    races = tuple(races_of(run)) if predicted and run.completed and not run.reports else ()
    findings = [_finding(report, recording.found[report.signature]) for report in run.reports]
    findings += [_finding(report, _step_of_race(run, report)) for report in races]
    if not findings:
        raise NothingToExplainError("the schedule breaks no rule: there is nothing to explain")
    first = (*run.reports, *races)[0]
    tries = max(2, min(tries, MOST_STEPS // max(1, len(run.trace))))
    laboratory = Laboratory(program, schedule, first, bool(races), limit, granularity, tries)
    switches, untried = _switches(laboratory, run, recording.steps, findings[0].step)
    cut = Slice(run, recording.steps, findings[0].step)
    rows, left_out = _rows(cut, recording.steps, switches)
    shown = [row.step for row in rows if recording.steps[row.step].change]
    drawing = Recording(program, Follow(schedule.choices), {rows[0].step - 1, *shown, rows[-1].step} if rows else {-1})
    Executor(drawing, limit=limit, granularity=granularity).execute(drawing, schedule.seed)
    inevitable = laboratory.inevitable(min(findings[0].step + 1, len(run.trace)))
    active = {row.task for row in rows}
    return Explanation(
        program.name,
        schedule.seed,
        len(run.trace),
        len(schedule.turns()),
        _summary(findings[0], rows, switches, inevitable),
        findings[0],
        tuple(findings[1:]),
        tuple(name for name in run.names if name in active),
        rows,
        left_out,
        tuple(drawing.pictures),
        switches,
        untried,
        inevitable,
        bool(races),
    )


def _refuse_divergence(follow: Follow, run: Run, schedule: Schedule) -> None:
    if follow.divergence is not None:
        raise follow.divergence
    if check_of(run.trace) != schedule.check:
        at = min(len(run.trace), len(schedule.choices))
        raise Divergence(at, f"{len(schedule.choices)} steps as recorded", f"{len(run.trace)} steps, or other ones")


def _finding(report: Report, step: int) -> Finding:
    meaning = RULES.get(report.rule, "")
    task = report.task.split("/")[0]
    return Finding(report.rule, meaning, report.code, report.headline, report.sentence, report.source, task, step)


def _step_of_race(run: Run, report: Report) -> int:
    """The step that completes a race which did no harm: the check is one pass, so what a prefix shows all longer ones show."""

    def shows(length: int) -> bool:
        prefix = Run(trace=run.trace[:length], extras=run.extras, names=run.names, scheduler=run.scheduler)
        return any(other.signature == report.signature for other in races_of(prefix))

    return bisect_left(range(len(run.trace) + 1), True, key=shows) - 1


def _switches(laboratory: Laboratory, run: Run, steps: Sequence[Step], last: int) -> tuple[tuple[Switch, ...], int]:
    """Every switch before the finding away from a task that could have gone on, and how many more there are than were tried."""
    trace = run.trace[: last + 1]
    where = [number for number in range(1, min(len(trace), len(steps))) if steps[number].free and trace[number][0] != trace[number - 1][0]]
    tried = where[-MOST_SWITCHES:]
    names = run.names
    return tuple(
        Switch(number, step, names[trace[step - 1][0] - 1], names[trace[step][0] - 1], laboratory.without(step))
        for number, step in enumerate(tried, 1)
    ), len(where) - len(tried)


def _rows(cut: Slice, steps: Sequence[Step], switches: Sequence[Switch]) -> tuple[tuple[Row, ...], int]:
    """The steps to show, repetition collapsed, and how many were left out of the past."""
    rows: list[Row] = []
    waiting = list(reversed(switches))
    kept = cut.kept()
    for number in kept:
        step = steps[number]
        before = 0
        while waiting and waiting[-1].step <= number:
            before = waiting.pop().number
        row = Row(number, step.task, step.what, step.where.function, step.where.operation, cut.partners(number), switch=before)
        if rows and not before and not step.change and _alike(rows[-1], row):
            rows[-1] = evolve(rows[-1], more=rows[-1].more + 1, partners=tuple(sorted({*rows[-1].partners, *row.partners})))
        else:
            rows.append(row)
    return tuple(rows), cut.size - len(kept)


_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


def _alike(first: Row, second: Row) -> bool:
    """Whether one is the other again, numbers aside."""
    same = (first.task, first.function, first.operation) == (second.task, second.function, second.operation)
    return same and _NUMBERS.sub("#", first.what) == _NUMBERS.sub("#", second.what)


# In a few sentences.

_TELLING = (
    re.compile(r".*(SPTE\(|invalid =|mmu_invalidate_seq)"),
    re.compile(r".*(->mode|->requests|memslots|host PTE|frame|frees|refcount|read section|call_rcu|exported|nx_huge|generation)"),
    re.compile(r"(?!.*(lock|unlock)\()"),
)


def _telling(row: Row) -> int:
    """How much a step says by itself: an SPTE more than a flag, a lock least."""
    return next((len(_TELLING) - place for place, pattern in enumerate(_TELLING) if pattern.match(row.what)), 0)


def _said(row: Row) -> str:
    """A step in a sentence."""
    return f"step {row.step}, {row.what or 'the last one'}" + (f" (in {row.function})" if row.function else "")


def _who(row: Row) -> str:
    return f"{row.task} ({row.operation})" if row.operation else row.task


def _summary(found: Finding, rows: Sequence[Row], switches: Sequence[Switch], inevitable: Inevitable | None) -> tuple[str, ...]:
    """Who did what between which two steps of whom, and what that broke."""
    decisive = [switch for switch in switches if switch.decisive]
    story = next(filter(None, (_story(rows, switch) for switch in decisive)), ()) or _without_switch(rows)
    when = "at the end, when everybody was done" if not rows or found.step > rows[-1].step else f"at step {found.step}"
    broken = f"That broke rule {found.rule}, which was noticed {when}: {found.sentence}."
    return (*story, broken, _matters(switches, decisive, inevitable))


def _story(rows: Sequence[Row], switch: Switch) -> tuple[str, ...]:
    """What others did while a task was kept from going on, as far as it matters to that task; nothing if none of it does."""
    mine = [row for row in rows if row.task == switch.away_from]
    before = [row for row in mine if row.step < switch.step]
    after = [row for row in mine if row.step >= switch.step]
    resumed = after[0].step if after else rows[-1].step + 1
    meant = [row for row in rows if switch.step <= row.step < resumed and row.task != switch.away_from]
    own = {row.step for row in mine}
    pairs = [(row, other) for row in meant for other in mine if other.step in row.partners and row.step not in own]
    if not pairs:
        return ()
    theirs, ours = max(pairs, key=lambda pair: (_telling(pair[0]) + _telling(pair[1]), pair[0].step))
    start = f"{_who(before[-1])} has done {_said(before[-1])}, and is interrupted." if before else f"{switch.away_from} has not begun."
    reply = f"{_who(theirs)} does {_said(theirs)}."
    if ours.step < switch.step:
        return start, f"Before it can go on, {reply} That undoes what its {_said(ours)}, relied on."
    return start, f"Before it goes on, {reply}", f"Then {_who(ours)} does {_said(ours)}: the two do not commute."


def _without_switch(rows: Sequence[Row]) -> tuple[str, ...]:
    """The last two steps of different tasks that conflict, where no single switch decides."""
    steps = {row.step: row for row in rows}
    pairs = [(steps[first], row) for row in rows for first in row.partners if first in steps and first < row.step]
    if not pairs:
        return ()
    first, second = max(pairs, key=lambda pair: (_telling(pair[0]) + _telling(pair[1]), pair[1].step))
    return f"{_who(first)} does {_said(first)}.", f"After it {_who(second)} does {_said(second)}: the two do not commute."


def _matters(switches: Sequence[Switch], decisive: Sequence[Switch], inevitable: Inevitable | None) -> str:
    if not switches:
        which = "No task was interrupted while it could have gone on"
    elif not decisive:
        which = f"None of the {len(switches)} switches is needed by itself"
    else:
        names = ", ".join(str(switch.number) for switch in decisive)
        which = f"Of {len(switches)} switches {names} matter{'s' if len(decisive) == 1 else ''}: without {'it' if len(decisive) == 1 else 'any of them'} nothing fails"
    if inevitable is None:
        return f"{which}."
    if inevitable.step < 0:
        return f"{which}; every order that was tried fails, from the first step on."
    return f"{which}; from step {inevitable.step} on the failure is inevitable, as far as was tried."
