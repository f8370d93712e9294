"""Happens-before over the events of a schedule: which operations conflict, and vector clocks.

Two operations on one word commute when both are loads, both are additions, or both are a reader's
on a lock. Everything else that touches one word is ordered as it happened. Two schedules that
differ only in the order of operations that commute are one *class* (a Mazurkiewicz trace): nobody
in the model can tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from stress.engines.program import Run
from stress.engines.steps import (
    ADD,
    ENDING,
    LOAD,
    MB,
    READ_ACQUIRE,
    READ_RELEASE,
    RELAX,
    STORE,
    WAIT,
    YIELD,
    Access,
    Event,
)

EXCLUSIVE: Final = 0
LOADS: Final = 1
NOBODY: Final = -1
MANY: Final = -2
GROUP: Final = tuple(
    {
        LOAD: 1,
        WAIT: 1,
        RELAX: 1,
        ADD: 2,
        READ_ACQUIRE: 3,
        READ_RELEASE: 3,
        YIELD: -1,
        ENDING: -1,
        MB: -1,
    }.get(kind, EXCLUSIVE)
    for kind in range(16)
)
"""The group of each kind: members of one group commute on a word, `EXCLUSIVE` operations with
nothing; -1 touches nothing."""

Clock = list[int]
_MASK: Final = (1 << 64) - 1
FIRST: Final = hash((0, 0))
"""What the first operations on a word come after."""


def accesses(event: Event, extras: list[Access] | None) -> list[Access]:
    """Everything that an event touched, as (kind, word)."""
    _, kind, word = event
    mine = [(kind, word)] if GROUP[kind] >= 0 and word else []
    return mine + [(kind, word) for kind, word in extras if GROUP[kind] >= 0] if extras else mine


def conflict(first: list[Access], second: list[Access]) -> bool:
    """Whether two events do not commute."""
    for kind, word in first:
        group = GROUP[kind]
        for other, where in second:
            if where == word and (not group or group != GROUP[other]):
                return True
    return False


def class_of(run: Run) -> int:
    """A 64-bit number that two schedules share when they are one class, whatever process or Python
    made them."""
    if run.key is None:
        run.key = Fingerprint().take(run.trace, run.extras)
    return run.key


class Fingerprint:
    """The class of a schedule as far as it has gone: two beginnings that share it are one class, in
    which every task has seen the same and every word holds the same."""

    __slots__ = ("_last", "_taken", "_total", "_words")

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._words: dict[int, list[int]] = {}
        """Of each word: the group of its latest operations, the number of all before them, and the
        sum of theirs."""
        self._taken = 0
        self._total = 0

    def take(self, trace: list[Event], extras: dict[int, list[Access]]) -> int:
        """Take in what has come since the last call; the number of all there is, of 64 bits."""
        last, words, total = self._last, self._words, self._total
        for position, (task, kind, word) in enumerate(
            trace[self._taken :] if self._taken else trace, self._taken
        ):
            if extras and position in extras:
                mark = self._take_many(
                    task, kind, word, accesses((task, kind, word), extras[position])
                )
            elif (
                mine := GROUP[kind]
            ) >= 0 and word:  # `_enter`, without the call: most events are of this kind
                state = words.get(word)
                if state is None:
                    state = words[word] = [mine, FIRST, 0]
                elif not mine or state[0] != mine:
                    state[0] = mine
                    state[1] = hash((state[1], state[2]))
                    state[2] = 0
                mark = hash((task, kind, word, last.get(task, 0), state[1]))
                state[2] += mark
            else:
                mark = hash((task, kind, last.get(task, 0)))
            last[task] = mark
            total += mark
        self._taken, self._total = len(trace), total & _MASK
        return self._total

    def _take_many(self, task: int, kind: int, word: int, touched: list[Access]) -> int:
        """An event that touches several words."""
        before = [_enter(where, GROUP[what], self._words) for what, where in touched]
        mark = hash((task, kind, word, self._last.get(task, 0), *before))
        for _, where in touched:
            state = self._words[where]
            state[2] += mark
        return mark


def _enter(word: int, mine: int, words: dict[int, list[int]]) -> int:
    """An operation of group `mine` on `word`: what it comes after."""
    state = words.get(word)
    if state is None:
        words[word] = [mine, FIRST, 0]
        return FIRST
    if not mine or state[0] != mine:
        state[:] = mine, hash((state[1], state[2])), 0
    return state[1]


class _Word:
    """What has happened to one word.

    `base` is the clock of everything before the current group of commuting operations, `gathered`
    that of the group itself; `base_task` and `gathered_task` are the one task whose own clock that
    is, or `MANY`. `history` are the events, of a group of loads only the last of each task and
    kind. In a weak order `loads` is the clock of all loads before the current group, `old_loads` of
    those before the last write, and `everything` that of whoever has touched the word; there is no
    history.
    """

    __slots__ = (
        "base",
        "base_task",
        "everything",
        "gathered",
        "gathered_task",
        "group",
        "history",
        "loads",
        "old_loads",
        "starts",
        "toucher",
    )

    def __init__(self, nothing: Clock) -> None:
        self.base = self.gathered = self.loads = self.old_loads = self.everything = nothing
        self.base_task = self.gathered_task = self.toucher = NOBODY
        self.group = EXCLUSIVE
        self.history: list[int] = []
        self.starts = 0

    def open(self, group: int, weak: bool) -> None:
        """An operation of `group` comes after the current group."""
        if weak and self.group == LOADS:
            self.loads = join(self.loads, self.gathered)
        elif (
            self.group == EXCLUSIVE
        ):  # whose clock has everything before it in it, or all that one learns from it
            if self.gathered_task != NOBODY:
                self.base, self.base_task = self.gathered, self.gathered_task
        else:
            self.base, self.base_task = join(self.base, self.gathered), MANY
        self.gathered_task = NOBODY
        self.group = group
        self.starts = len(self.history)
        if group != LOADS:
            self.old_loads = self.loads

    def gather(self, task: int, clock: Clock) -> None:
        """An event of the current group has this clock."""
        if self.gathered_task in (NOBODY, task):
            self.gathered, self.gathered_task = clock, task
        else:
            self.gathered, self.gathered_task = join(self.gathered, clock), MANY

    def touch(self, task: int, clock: Clock) -> None:
        """In a weak order: an event with this clock touches the word."""
        if self.toucher in (NOBODY, task):
            self.everything, self.toucher = clock, task
        else:
            self.everything, self.toucher = join(self.everything, clock), MANY

    def note(self, position: int, trace: list[Event]) -> None:
        """Remember the event; a load makes an earlier one superfluous that is of the same task and
        kind, and in the same group. Of what changes the word none is: somebody may have been able
        to go on between two of them only."""
        history = self.history
        if self.group == LOADS:
            same = trace[position][:2]
            for index in range(self.starts, len(history)):
                if trace[history[index]][:2] == same:
                    del history[index]
                    break
        history.append(position)


def join(first: Clock, second: Clock) -> Clock:
    """The earliest clock that is at or after both."""
    return [one if one > other else other for one, other in zip(first, second, strict=True)]


class HappensBefore:
    """The happens-before order of a schedule: `clocks[i][t]` is how many events of task t are at or
    before event i, and `numbers[i]` the number of event i within its own task, from 1 on.

    The `weak` order is the memory model's: a load is ordered after the write it reads from, but no
    write is ordered after a load that came before it, for nobody learns of a load; nor is a plain
    store after the write that it overwrites unseen.
    """

    def __init__(
        self,
        trace: list[Event],
        extras: dict[int, list[Access]],
        tasks: int,
        *,
        weak: bool = False,
        follows: Mapping[int, int] | None = None,
        barriers: Mapping[int, int] | None = None,
    ) -> None:
        """`follows` and `barriers` are the scheduler's: which earlier event an event could not have
        come before, and how many events come before one whatever it touches."""
        self.weak = weak
        self.follows = follows or {}
        self.barriers = barriers or {}
        self.trace = trace
        self.extras = extras
        self.tasks = tasks + 1
        self.clocks: list[Clock] = []
        self.numbers: list[int] = []
        self.words: dict[int, _Word] = {}
        self.current: list[Clock] = [[0] * self.tasks for _ in range(self.tasks)]
        """Each task's clock after its last event so far; clocks are never changed once made."""
        self._nothing: Clock = [0] * self.tasks

    def touched(self, position: int) -> list[Access]:
        """What event `position` touched."""
        return accesses(self.trace[position], self.extras.get(position))

    def arrive(self, position: int) -> None:
        """Event `position` is next: its task comes after what the event follows."""
        before = self.follows.get(position)
        if before is not None:
            task = self.trace[position][0]
            self.current[task] = join(self.current[task], self.clocks[before])

    def advance(self, position: int, touched: list[Access]) -> Clock:
        """Take in event `position`; returns its clock. Events must come in order."""
        if self.follows:
            self.arrive(position)
        task = self.trace[position][0]
        clock = self.current[task].copy()
        if position in self.barriers:
            clock = self._after_all(self.barriers[position], clock)
        words, weak = self.words, self.weak
        records = []
        for kind, word in touched:
            record = words.get(word)
            if record is None:
                record = words[word] = _Word(self._nothing)
            records.append(record)
            group = GROUP[kind]
            if not group or group != record.group:
                record.open(group, weak)
            origin = record.base_task
            if origin in (task, NOBODY) or (weak and kind == STORE):
                continue
            # Who knows of one event of a task knows all that the task knew then.
            if origin == MANY or record.base[origin] > clock[origin]:
                clock = join(clock, record.base)
        clock[task] += 1
        for record in records:
            record.gather(task, clock)
            if weak:
                record.touch(task, clock)
            else:
                record.note(position, self.trace)
        self.current[task] = clock
        self.clocks.append(clock)
        self.numbers.append(clock[task])
        return clock

    def _after_all(self, count: int, clock: Clock) -> Clock:
        """The clock after the first `count` events."""
        for task in range(1, self.tasks):
            last = next((at for at in range(count - 1, -1, -1) if self.trace[at][0] == task), None)
            if last is not None:
                clock = join(clock, self.clocks[last])
        return clock

    def clock_of(self, task: int, touched: list[Access]) -> Clock:
        """The clock of an operation that `task` would do now, without taking it in; its own event
        not counted."""
        clock = self.current[task]
        for kind, word in touched:
            record = self.words.get(word)
            if record is not None:
                group = GROUP[kind]
                clock = join(
                    clock,
                    record.base
                    if group and group == record.group
                    else join(record.base, record.gathered),
                )
        return clock

    def before(self, first: int, second: int) -> bool:
        """Whether event `first` happens before event `second`."""
        return self.clocks[second][self.trace[first][0]] >= self.numbers[first]


def order_of(run: Run, *, weak: bool = False) -> HappensBefore:
    """The happens-before order of a schedule in which no event has been taken in yet."""
    return HappensBefore(
        run.trace,
        run.extras,
        len(run.names),
        weak=weak,
        follows=run.follows,
        barriers=run.barriers,
    )
