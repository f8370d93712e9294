"""The steps that matter for a finding: those that do not commute with a step of another task and
lie in the past of the finding, by happens-before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from stress.engines.program import Run
from stress.engines.steps import ADD, FREE, LOAD, RELAX, STORE, WAIT, Access, Event
from stress.search.explain_replay import Step
from stress.search.happens_before import GROUP, accesses

TAIL: Final = 4
"""So many steps of the task that the finding is about are shown before it, whether they conflict or
not."""


class CausalSlice:
    """The steps that the course of a task up to step `last` depends on: its own ones before, those
    that wrote what they read, and so on. What the judges read in the end counts, too, and who freed
    what the finding names; what judges and statistics touch before does not. With `all_of_it` every
    step counts: what is found by looking at the end of everything may come of any."""

    def __init__(
        self,
        run: Run,
        steps: Sequence[Step],
        last: int,
        sentence: str = "",
        *,
        all_of_it: bool = False,
    ) -> None:
        self._steps = steps
        last = min(last, len(steps) - 1)
        self._partners: dict[int, list[int]] = {}
        self._sources: dict[int, list[int]] = {}
        self._own: dict[int, int] = {}
        """The step of the same task before each step."""
        self._tail = [] if all_of_it else _last_spoken(run, steps, last)
        self.last = self._tail[-1] if self._tail else last
        self._read(run, last)
        freed = [
            number
            for number in range(self.last)
            if (what := steps[number].freed) and what in sentence
        ]
        self._pair(self.last, freed)
        self._sources.setdefault(self.last, []).extend(freed)
        self._past = set(range(last + 1)) if all_of_it else self._closure(last)

    def _read(self, run: Run, last: int) -> None:
        words: dict[int, _History] = {}
        before: dict[int, int] = {}
        judged = range(self.last, last + 1)
        for number, event in enumerate(run.trace[: last + 1]):
            buffer, kind, _ = event
            task = run.buffers.get(buffer, buffer)
            if task in before:
                self._own[number] = before[task]
            before[task] = number
            at_end = number in judged and buffer == run.trace[last][0]
            reads = at_end or (
                kind not in (STORE, ADD) and self._steps[number].where.method != "put"
            )
            for each, word in self._touched(number, event, run.extras.get(number), at_end):
                partners, sources = words.setdefault(word, _History()).add(number, task, each)
                self._pair(number, partners)
                if reads:
                    self._sources.setdefault(number, []).extend(
                        partners if at_end or kind == FREE else sources
                    )

    def _touched(
        self, number: int, event: Event, extras: list[Access] | None, at_end: bool
    ) -> list[Access]:
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
        """The steps to show: those that conflict, the last ones of the task that the finding is
        about, and of a lock or read section both halves or none, but for what is held in the
        end."""
        shown = {
            number for number in self._past if self._steps[number].what and self.partners(number)
        } | set(self._tail)
        for first, second in _halves(self._steps[: self.last + 1]):
            if first in shown or second in shown or first == second:
                shown |= {first, second} & self._past
        return sorted(number for number in shown if self._steps[number].what)


def _last_spoken(run: Run, steps: Sequence[Step], last: int) -> list[int]:
    """The last few steps up to `last` of the same task and operation that are no judge's."""
    mine = [
        number
        for number in range(last + 1)
        if steps[number].what and run.trace[number][0] == run.trace[last][0]
    ]
    same = [
        number
        for number in mine
        if steps[number].where.operation == steps[mine[-1]].where.operation
    ]
    return same[-TAIL:]


class _History:
    """The last two groups of operations on a word that commute within the group, loads among them
    and loads aside."""

    __slots__ = ("_before", "_current", "_group", "_written", "_written_before", "_written_group")

    def __init__(self) -> None:
        self._before: dict[int, int] = {}
        self._current: dict[int, int] = {}
        self._group = -1
        self._written_before: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._written_group = -1

    def add(self, number: int, task: int, kind: int) -> tuple[list[int], list[int]]:
        """Take in an operation; the latest ones of other tasks that it conflicts with, and those
        whose value it finds."""
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
    """Acquire and release of each lock and read section, as pairs of steps; for what is still held,
    the same step twice."""
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
