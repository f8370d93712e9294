"""Why a schedule fails: the steps that matter, in the kernel's words, and what becomes of it when a switch is left out.

The schedule is replayed step by step, and every word is looked at before and after it is touched. What is shown are the
steps that do not commute with a step of another task and that lie in the past of the finding, by happens-before.
Counterfactuals are further runs: without a switch, and with random continuations after each prefix.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence, Set
from typing import Final

from attrs import evolve, field, frozen

from mmu.report import RULES, Report
from stress.engines.carrier import pinned
from stress.engines.program import Executor, Program, Run, Strategy
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.steps import ADD, FREE, LOAD, RELAX, STORE, WAIT, Access, Event
from stress.engines.tasks import ControlTask
from stress.errors import StressError
from stress.search.explain_data import (
    NO_FAILURE,
    SAME_FAILURE,
    SHUTS,
    Explanation,
    Finding,
    Inevitable,
    Picture,
    Row,
    Switch,
)
from stress.search.explain_replay import Recording, Step
from stress.search.order import GROUP, accesses
from stress.search.races import races_of
from stress.search.schedule import Divergence, Follow, Schedule, check_of
from stress.search.store import StoredSchedule, program_of
from stress.search.walk import RandomWalk

TRIES: Final = 30
"""Random continuations of a prefix."""
MOST_STEPS: Final = 400_000
"""What the random continuations of one prefix may cost; after long schedules fewer are tried."""
MOST_SWITCHES: Final = 60
"""So many switches are left out one by one; of a schedule with more, the last ones."""

TAIL: Final = 4
"""So many steps of the task that the finding is about are shown before it, whether they conflict or not."""
MOST_POINTS: Final = 6
"""Before so many of the switches that matter, the last ones, it is asked how likely the failure is."""


class NothingToExplainError(StressError):
    """The schedule breaks no rule."""


# What matters.


class Slice:
    """The steps that the course of a task up to step `last` depends on: its own ones before, those that wrote what they read, and
    so on. What the judges read in the end counts, too, and who freed what the finding names; what judges and statistics touch
    before does not. With `all_of_it` every step counts: what is found by looking at the end of everything may come of any."""

    def __init__(self, run: Run, steps: Sequence[Step], last: int, sentence: str = "", *, all_of_it: bool = False) -> None:
        self._steps = steps
        last = min(last, len(steps) - 1)
        self._partners: dict[int, list[int]] = {}
        self._sources: dict[int, list[int]] = {}
        self._own: dict[int, int] = {}
        """The step of the same task before each step."""
        self._tail = [] if all_of_it else _last_spoken(run, steps, last)
        self.last = self._tail[-1] if self._tail else last
        self._read(run, last)
        freed = [number for number in range(self.last) if (what := steps[number].freed) and what in sentence]
        self._pair(self.last, freed)
        self._sources.setdefault(self.last, []).extend(freed)
        self._past = set(range(last + 1)) if all_of_it else self._closure(last)

    def _read(self, run: Run, last: int) -> None:
        words: dict[int, _History] = {}
        before: dict[int, int] = {}
        judged = range(self.last, last + 1)
        for number, event in enumerate(run.trace[: last + 1]):
            task, kind, _ = event
            if task in before:
                self._own[number] = before[task]
            before[task] = number
            at_end = number in judged and task == run.trace[last][0]
            reads = at_end or (kind not in (STORE, ADD) and self._steps[number].where.method != "put")
            for each, word in self._touched(number, event, run.extras.get(number), at_end):
                partners, sources = words.setdefault(word, _History()).add(number, task, each)
                self._pair(number, partners)
                if reads:
                    self._sources.setdefault(number, []).extend(partners if at_end or kind == FREE else sources)

    def _touched(self, number: int, event: Event, extras: list[Access] | None, at_end: bool) -> list[Access]:
        if not (self._steps[number].what or at_end):
            return []
        return accesses(event, extras if at_end or event[1] in (WAIT, RELAX, FREE) else None)

    def _pair(self, number: int, partners: list[int]) -> None:
        for other in partners if self._steps[number].where.method != "put" else ():
            self._partners.setdefault(number, []).append(other)
            self._partners.setdefault(other, []).append(number)

    def _closure(self, last: int) -> set[int]:
        past: set[int] = set()
        waiting = [last]
        while waiting:
            number = waiting.pop()
            if number not in past:
                past.add(number)
                waiting += self._sources.get(number, [])
                if number in self._own:
                    waiting.append(self._own[number])
        return past

    @property
    def size(self) -> int:
        """How many steps there are, judges and statistics aside."""
        return sum(1 for number in self._past if self._steps[number].what)

    def partners(self, number: int) -> tuple[int, ...]:
        """The steps of other tasks in the past that this one conflicts with directly."""
        return tuple(sorted(set(self._partners.get(number, ())) & self._past))

    def kept(self) -> list[int]:
        """The steps to show: those that conflict, the last ones of the task that the finding is about, and of a lock or read
        section both halves or none, but for what is held in the end."""
        shown = {number for number in self._past if self._steps[number].what and self.partners(number)} | set(self._tail)
        for first, second in _halves(self._steps[: self.last + 1]):
            if first in shown or second in shown or first == second:
                shown |= {first, second} & self._past
        return sorted(number for number in shown if self._steps[number].what)


def _last_spoken(run: Run, steps: Sequence[Step], last: int) -> list[int]:
    """The last few steps up to `last` of the same task and operation that are no judge's."""
    mine = [number for number in range(last + 1) if steps[number].what and run.trace[number][0] == run.trace[last][0]]
    same = [number for number in mine if steps[number].where.operation == steps[mine[-1]].where.operation]
    return same[-TAIL:]


class _History:
    """The last two groups of operations on a word that commute within the group, loads among them and loads aside."""

    __slots__ = ("_before", "_current", "_group", "_written", "_written_before", "_written_group")

    def __init__(self) -> None:
        self._before: dict[int, int] = {}
        self._current: dict[int, int] = {}
        self._group = -1
        self._written_before: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._written_group = -1

    def add(self, number: int, task: int, kind: int) -> tuple[list[int], list[int]]:
        """Take in an operation; the latest ones of other tasks that it conflicts with, and those whose value it finds."""
        group = GROUP[kind]
        if not group or group != self._group:
            self._before, self._current, self._group = self._current, {}, group
        self._current[task] = number
        joins = group and group == self._written_group
        sources = self._written_before if joins else self._written
        if group != GROUP[LOAD]:
            if not joins:
                self._written_before, self._written, self._written_group = self._written, {}, group
            self._written[task] = number
        return _of_others(self._before, task), _of_others(sources, task)


def _of_others(numbers: dict[int, int], task: int) -> list[int]:
    return [number for who, number in numbers.items() if who != task]


_OPENING = re.compile(r"(?:\w*_)?(?:lock|write_lock|read_lock)\(")
_CLOSING = re.compile(r"(?:\w*_)?(?:unlock|write_unlock|read_unlock)\(")


def _halves(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    """Acquire and release of each lock and read section, as pairs of steps; for what is still held, the same step twice."""
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
        return Inevitable(high - 1, self.tries, self.failing(high - 1) if high else self.tries)

    def failing(self, kept: int) -> int:
        """How many random continuations of the first `kept` steps fail in the same way."""
        return sum(self.fails(kept, number) for number in range(self.tries))

    def pictures(self, after: Sequence[int]) -> tuple[Picture, ...]:
        """The page tables after these steps of the schedule."""
        drawing = Recording(self.program, Follow(self.schedule.choices), after)
        Executor(drawing).execute(drawing, self.schedule.seed)
        return tuple(drawing.pictures)

    def _always(self, kept: int) -> bool:
        return self.fails(kept) and all(self.fails(kept, number) for number in range(self.tries))

    def _is_same(self, reports: Sequence[Report]) -> bool:
        return any(report.rule == self.report.rule and report.code == self.report.code for report in reports)

    def _reports(self, strategy: Strategy) -> tuple[Report, ...]:
        run = Executor(self.program).execute(strategy, self.schedule.seed)
        return run.reports or (tuple(races_of(run)) if self.predicted and run.completed else ())


# Putting it together.


def explain_stored(recorded: StoredSchedule, *, tries: int = TRIES, about: Set[str] = frozenset()) -> Explanation:
    """The explanation of a schedule file; raises `Divergence` when the schedule does not fit any more."""
    with pinned():
        return explain(
            program_of(recorded),
            recorded.schedule,
            steps=recorded.steps,
            predicted=recorded.predicted or not recorded.signatures,
            tries=tries,
            about=about,
        )


def explain(
    program: Program,
    schedule: Schedule,
    *,
    steps: Sequence[tuple[str, str]] = (),
    predicted: bool = False,
    tries: int = TRIES,
    about: Set[str] = frozenset(),
) -> Explanation:
    """Explain a schedule that breaks a rule. With `steps` every step is compared with its recorded name; `predicted` looks for
    races that did no harm, too; `tries` is how many random continuations of a prefix are tried. What is explained is the first
    finding that answers to a name or has the signature in `about`, else the first one."""
    follow = Follow(schedule.choices, steps=steps)
    recording = Recording(program, follow)
    run = Executor(recording, keep_extras=True).execute(recording, schedule.seed)
    _refuse_divergence(follow, run, schedule)
    reports, races = sorted(run.reports, key=lambda report: not (report.names() | {report.signature}) & about), False
    findings = [_finding(report, recording.found[report.signature]) for report in reports]
    if not findings and predicted:
        plain = Executor(program).execute(Follow(schedule.choices), schedule.seed)
        reports, races = list(races_of(plain)), True
        findings = [_finding(report, _step_of_race(plain, report)) for report in reports]
    if not findings:
        raise NothingToExplainError("the schedule breaks no rule: there is nothing to explain")
    tries = max(2, min(tries, MOST_STEPS // max(1, len(run.trace))))
    laboratory = Laboratory(program, schedule, reports[0], races, tries)
    return _told_of(laboratory, run, recording.steps, findings)


def _told_of(laboratory: Laboratory, run: Run, steps: Sequence[Step], findings: Sequence[Finding]) -> Explanation:
    """The explanation of a run whose every step is known."""
    found, schedule = findings[0], laboratory.schedule
    everything = laboratory.predicted or found.step >= len(steps)
    switches, untried = _switches(laboratory, run, steps, found.step)
    rows, left_out = _rows(Slice(run, steps, found.step, found.sentence, all_of_it=everything), steps, switches)
    shown = [row.step for row in rows if steps[row.step].change]
    before = rows[0].step - 1 if rows else -1
    inevitable = laboratory.inevitable(min(found.step + 1, len(run.trace))) if not run.limit_hit else None
    decisive = [switch.step for switch in switches if switch.decisive][-MOST_POINTS:]
    active = {row.task for row in rows}
    return Explanation(
        laboratory.program.name,
        schedule.seed,
        len(run.trace),
        len(schedule.turns()),
        _summary(found, len(run.trace), rows, switches, inevitable),
        found,
        tuple(findings[1:]),
        tuple(name for name in run.names if name in active),
        rows,
        left_out,
        laboratory.pictures([before, *shown, min(found.step, len(steps) - 1)]),
        switches,
        untried,
        inevitable,
        tuple((kept, laboratory.failing(kept)) for kept in (0, *decisive)) if not run.limit_hit else (),
        laboratory.tries,
        laboratory.predicted,
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
    waits = next((each.lines for each in report.sections if each.title == "waits for"), ())
    stands_for = f"{report.stands_for} {RULES[report.stands_for]}" if report.stands_for else ""
    return Finding(report.rule, meaning, report.code, report.headline, report.sentence, report.source, task, step, waits, stands_for)


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
    tried = where[-max(3, min(MOST_SWITCHES, MOST_STEPS // (len(run.trace) + 1))) :]
    names = run.names
    return tuple(
        Switch(number, step, names[trace[step - 1][0] - 1], names[trace[step][0] - 1], laboratory.without(step))
        for number, step in enumerate(tried, 1)
    ), len(where) - len(tried)


def _rows(cut: Slice, steps: Sequence[Step], switches: Sequence[Switch]) -> tuple[tuple[Row, ...], int]:
    """The steps to show, repetition collapsed, and how many others there are in the past."""
    rows: list[Row] = []
    waiting = list(reversed(switches))
    told = list(_told(cut, steps))
    for number in told:
        step = steps[number]
        before: list[int] = []
        while waiting and waiting[-1].step <= number:
            before.append(waiting.pop().number)
        row = Row(number, step.task, step.what, step.where.function, step.where.operation, cut.partners(number), switches=tuple(before))
        if rows and not before and not step.change and _alike(rows[-1], row):
            rows[-1] = evolve(rows[-1], more=rows[-1].more + 1, partners=tuple(sorted({*rows[-1].partners, *row.partners})))
        else:
            rows.append(row)
    return tuple(rows), cut.size - len(told)


def _told(cut: Slice, steps: Sequence[Step]) -> Iterator[int]:
    """The steps to show, without what a task has said already since another had its turn, and without the first half of taking
    a lock when the second follows at once."""
    kept = cut.kept()
    said: set[str] = set()
    task = ""
    for number, following in itertools.zip_longest(kept, kept[1:]):
        step = steps[number]
        if step.task != task:
            task, said = step.task, set()
        gate = step.what.endswith(SHUTS) and following == number + 1 and steps[following].task == task
        if number == cut.last or not (gate or (step.what in said and not step.change)):
            said.add(step.what)
            yield number


_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


def _alike(first: Row, second: Row) -> bool:
    """Whether one is the other again, numbers aside."""
    same = (first.task, first.function, first.operation) == (second.task, second.function, second.operation)
    return same and _NUMBERS.sub("#", first.what) == _NUMBERS.sub("#", second.what)


# In a few sentences.

_TELLING = (
    re.compile(r".*(SPTE\(|role\.invalid|INVALID|zapped|mmu_invalidate_seq|which belongs to|^frees)"),
    re.compile(r".*(->mode|->requests|memslots|host PTE|frame|frees|refcount|read section|call_rcu|exported|nx_huge|generation)"),
    re.compile(r""),
)
_SAYS_NOTHING = re.compile(r"(\w+_)?(un)?lock\(|.*: 0 -> FROZEN$")
_OBJECT = re.compile(r"\b(?:0x[0-9a-f]{5,}|\w+\[\d+\])")
"""A page-table page, or a numbered object, in a headline."""
MOST_TELLING: Final = 2 * len(_TELLING) - 1
"""What two steps say together of which at least one is about an SPTE, or the like, and the other about something near it."""
LEAST_TELLING: Final = 4
"""Two steps that say less together, such as the locks or counters of each other, are no story."""


@frozen
class _Point:
    """What the finding is about: the step that it came of, if it was found as it happened, and the objects that it names."""

    cause: Row | None
    names: frozenset[str]

    def telling(self, row: Row) -> int:
        """How much a step says by itself: an SPTE more than a flag, a lock nothing, what the finding names more."""
        if _SAYS_NOTHING.match(row.what):
            return 0
        own = next(len(_TELLING) - place for place, pattern in enumerate(_TELLING) if pattern.match(row.what))
        return own + any(name in row.what for name in self.names)

    def of_pair(self, pair: tuple[Row, Row]) -> tuple[int, int]:
        """How much a conflict says, most if it is what the finding came of, and how late it is."""
        return self.telling(pair[0]) + self.telling(pair[1]) + 3 * (self.cause in pair), pair[0].step + pair[1].step


def _said(row: Row) -> str:
    """A step in a sentence."""
    return f"step {row.step}, {row.what or 'the last one'}" + (f" (in {row.function})" if row.function else "")


def _who(row: Row) -> str:
    return f"{row.task} ({row.operation})" if row.operation else row.task


def _summary(found: Finding, steps: int, rows: Sequence[Row], switches: Sequence[Switch], inevitable: Inevitable | None) -> tuple[str, ...]:
    """Who did what between which two steps of whom, and what that broke."""
    decisive = [switch for switch in switches if switch.decisive]
    cause = rows[-1] if rows and found.step < steps else None
    point = _Point(cause, frozenset(_OBJECT.findall(found.headline)))
    stories = [told for switch in decisive if (told := _story(rows, switch, point)) is not None]
    if inevitable is not None and inevitable.step < 0 and not stories and cause is not None:
        alone: tuple[str, ...] = (f"{_who(cause)} does {_said(cause)}; what others do before it does not matter.",)
    elif inevitable is not None and inevitable.step < 0 and not stories and found.task and found.step >= steps:
        alone = (f"It shows in {found.task}, when everybody else is done, in whatever order they went.",)
    else:
        alone = _without_switch(rows, point)
    story = tuple(f"{line}." for line in found.waits) or (max(stories)[1] if stories else alone)
    broken = f"That broke rule {found.title}, which was noticed {found.when(steps)}: {found.sentence.rstrip('.')}."
    return (*story, broken, _matters(switches, decisive, inevitable))


def _story(rows: Sequence[Row], switch: Switch, point: _Point) -> tuple[tuple[int, int], tuple[str, ...]] | None:
    """What others did while a task was kept from going on, as far as it matters to that task, with how telling it is; None if none
    of it does."""
    mine = [row for row in rows if row.task == switch.away_from]
    before = [row for row in mine if row.step < switch.step]
    after = [row for row in mine if row.step >= switch.step]
    resumed = after[0].step if after else rows[-1].step + 1
    meant = [row for row in rows if switch.step <= row.step < resumed and row.task != switch.away_from]
    pairs = [(row, other) for row in meant for other in mine if other.step in row.partners]
    theirs, ours = max(pairs, key=point.of_pair, default=(None, None))
    if theirs is None or ours is None or point.of_pair((theirs, ours))[0] < LEAST_TELLING:
        return None
    start = f"{_who(before[-1])} has done {_said(before[-1])}, and is interrupted." if before else f"{switch.away_from} has hardly begun."
    reply = f"{_who(theirs)} does {_said(theirs)}."
    if ours.step < switch.step:
        meets = "changes what it has seen in" if " -> " in ours.what else "meets its"
        end = [f"Before it goes on, {reply}", f"That {meets} {_said(ours)}."]
    else:
        meets = "" if ours is rows[-1] else ", which meets that"
        end = [f"Before it goes on, {reply}", f"Then {_who(ours)} does {_said(ours)}{meets}."]
    story = (start, *end)
    return point.of_pair((theirs, ours)), story


def _without_switch(rows: Sequence[Row], point: _Point) -> tuple[str, ...]:
    """The two steps of different tasks whose conflict says most, where no single switch decides."""
    steps = {row.step: row for row in rows}
    pairs = [(steps[first], row) for row in rows for first in row.partners if first in steps and first < row.step]
    if not pairs and rows:
        return (f"{_who(rows[-1])} does {_said(rows[-1])}; nobody gets in its way.",)
    if not pairs:
        return ("No step of one task gets in the way of another task's.",)
    first, second = max(pairs, key=point.of_pair)
    if point.cause is None and point.of_pair((first, second))[0] < MOST_TELLING:
        return ("No two steps say it by themselves: see what became of the page tables.",)
    return f"{_who(first)} does {_said(first)}.", f"After it {_who(second)} does {_said(second)}, which meets that."


def _matters(switches: Sequence[Switch], decisive: Sequence[Switch], inevitable: Inevitable | None) -> str:
    if not switches:
        which = "No task was interrupted while it could have gone on"
    elif not decisive and len(switches) == 1:
        which = "The one switch is not needed"
    elif not decisive:
        which = f"None of the {len(switches)} switches is needed by itself"
    elif len(switches) == 1:
        which = "The one switch matters: without it nothing fails"
    elif len(decisive) == 1:
        which = f"Of {len(switches)} switches only number {decisive[0].number} matters: without it nothing fails"
    else:
        names = ", ".join(str(switch.number) for switch in decisive)
        which = f"Of {len(switches)} switches numbers {names} matter: take any one of them away and nothing fails"
    if inevitable is None:
        return f"{which}."
    if inevitable.step < 0:
        return f"{which}; every order that was tried fails, from the first step on."
    return f"{which}; from step {inevitable.step} on the failure is inevitable, as far as was tried."
