"""Schedules as values: who ran at every step, as a short string and as a file that names every
step.

A schedule counts steps of tasks, not bytecodes, so it means the same in every process, on every
Python version, with and without the GIL. The string is enough to replay; the file also says what
every step was, so that a replay on a changed model, scenario or variant stops where the first
difference is.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import zlib
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from typing import Any, Final

from attrs import frozen

from stress.engines.program import Run
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.steps import (
    ACQUIRE,
    BUFFER_SHIFT,
    KINDS,
    LOAD,
    NO_WORD,
    OWNER_SHIFT,
    RMW,
    SPAWN,
    START,
    TASK_LIST,
    WAIT,
    Event,
)
from stress.engines.tasks import ControlledTask
from stress.scenario.errors import StressError

MOST_STEPS: Final = 10_000_000
"""Steps of a schedule that is read."""
MOST_BYTES: Final = 1 << 25
"""What such a schedule may unpack to."""
MOST_BITS: Final = 70
"""Of a number in a schedule: seeds have 64."""
PREFIX: Final = "tdp1-"
_INLINE: Final = 31
_SERIAL: Final = (1 << OWNER_SHIFT) - 1
_WORD: Final = (1 << BUFFER_SHIFT) - 1
OWN: Final = " in its own buffer"
"""What is said of a load that has read its task's own store before that reached memory."""


class ScheduleError(StressError):
    """A schedule string or file that cannot be read."""


@frozen
class Schedule:
    """Who ran at every step, by task index from 1 on, of the program built with `seed`; `check`
    sums up what the steps were."""

    seed: int
    choices: tuple[int, ...]
    check: int

    @staticmethod
    def of(run: Run) -> Schedule:
        """The schedule of a run."""
        return Schedule(run.seed, tuple(task for task, _, _ in run.trace), check_of(run.trace))

    def turns(self) -> list[tuple[int, int]]:
        """Runs of steps of one task: (task index, steps)."""
        return [(task, len(list(group))) for task, group in itertools.groupby(self.choices)]

    def encode(self) -> str:
        """The string form."""
        data = bytearray(_number(self.seed) + _number(self.check) + _number(len(self.choices)))
        for task, steps in self.turns():
            if task < 7 and steps < _INLINE:
                data.append(task << 5 | steps)
            else:
                data += bytes([7 << 5]) + _number(task) + _number(steps)
        packed = zlib.compress(bytes(data), 9)
        body = b"z" + packed if len(packed) < len(data) else b"r" + bytes(data)
        return PREFIX + base64.urlsafe_b64encode(body).decode().rstrip("=")

    @staticmethod
    def decode(text: str) -> Schedule:
        """The schedule that `encode` made `text` of; raises `ScheduleError`."""
        if not text.startswith(PREFIX):
            raise ScheduleError(f"{text[:20]!r} is no schedule: one begins with {PREFIX!r}")
        try:
            body = base64.b64decode(
                text[len(PREFIX) :] + "=" * (-len(text[len(PREFIX) :]) % 4),
                altchars=b"-_",
                validate=True,
            )
            return _read(_unpacked(body[1:]) if body[:1] == b"z" else body[1:])
        except (binascii.Error, zlib.error, IndexError, ValueError) as error:
            raise ScheduleError(
                f"the schedule string is damaged ({error}): copy all of it"
            ) from None


def _unpacked(body: bytes) -> bytes:
    unpack = zlib.decompressobj()
    data = unpack.decompress(body, MOST_BYTES)
    if not unpack.eof:
        raise ValueError("it is cut off, or far too long")
    return data


def _number(value: int) -> bytes:
    """Seven bits a byte, lowest first."""
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)


def _read(data: bytes) -> Schedule:
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if shift > MOST_BITS:
                raise ValueError("a number that is too large")
            if byte < 128:
                return value

    seed, check, length = number(), number(), number()
    choices: list[int] = []
    while position < len(data):
        byte = data[position]
        position += 1
        task, steps = (byte >> 5, byte & _INLINE) if byte >> 5 < 7 else (number(), number())
        if not task or not steps or len(choices) + steps > MOST_STEPS:
            raise ValueError("a turn without a task or steps")
        choices += [task] * steps
    if len(choices) != length or not choices:
        raise ValueError(f"{len(choices)} of {length} steps are there")
    return Schedule(seed, tuple(choices), check)


def check_of(trace: Sequence[Event]) -> int:
    """A 32-bit sum over every step of a schedule."""
    return zlib.crc32(b"".join(b"%d,%d,%d;" % event for event in trace))


class Divergence(StressError):
    """A replay met something else than what was recorded."""

    def __init__(self, step: int, expected: str, found: str) -> None:
        super().__init__(
            f"the replay diverges at step {step}: expected {expected}, found {found}; "
            "the model, the scenario or a variant has changed since the schedule was recorded"
        )
        self.step = step
        self.expected = expected
        self.found = found


def difference_at_end(run: Run, schedule: Schedule) -> Divergence | None:
    """Where a replay that followed every choice still differs from the recorded schedule, None if
    it does not."""
    if check_of(run.trace) == schedule.check:
        return None
    found, recorded = len(run.trace), len(schedule.choices)
    return Divergence(
        min(found, recorded),
        f"{recorded} steps as recorded",
        f"{found} steps" if found != recorded else "as many steps, but other ones",
    )


class Follow:
    """The strategy that does what a schedule says, up to `until`, and then what `then` says, or the
    default: go on with the running task while it can, else with the first that can.

    With `steps`, (task, operation) of each, every step is compared; `divergence` is the first
    difference.
    """

    name = "replay"
    exhausted = False

    def __init__(
        self,
        choices: Sequence[int],
        *,
        steps: Sequence[tuple[str, str]] = (),
        until: int | None = None,
        then: Callable[[Scheduler], Picker] | None = None,
    ) -> None:
        self._choices = choices
        self._steps = steps
        self._until = min(len(choices), until if until is not None else len(choices))
        self._then = then
        self.divergence: Divergence | None = None

    def begin(self, scheduler: Scheduler) -> Picker:
        """From the first step on."""
        choices, until, steps = self._choices, self._until, self._steps
        tasks = scheduler.tasks
        names = WordNames(scheduler)
        rest = self._then(scheduler) if self._then is not None else scheduler.first

        def pick() -> ControlledTask:
            depth = len(scheduler.trace)
            if depth >= until:
                scheduler.pick = rest
                return rest()
            number = choices[depth]
            if number > len(tasks) or not tasks[number - 1].enabled or tasks[number - 1].done:
                self._diverged(scheduler, depth, number)
            task = tasks[number - 1]
            if steps and not (
                task.name == steps[depth][0] and _is(names.announced(task), steps[depth][1])
            ):
                self._diverged(scheduler, depth, number)
            return task

        return pick

    def _diverged(self, scheduler: Scheduler, depth: int, number: int) -> None:
        tasks = scheduler.tasks
        names = WordNames(scheduler)
        wanted = tasks[number - 1].name if number <= len(tasks) else f"task {number}"
        expected = (
            f"{self._steps[depth][0]}: {self._steps[depth][1]}"
            if self._steps
            else f"{wanted} to go on"
        )
        if number > len(tasks):
            found = f"only {len(tasks)} tasks"
        else:
            task = tasks[number - 1]
            found = f"{task.name}: " + (
                "it is over"
                if task.done
                else names.announced(task) + ("" if task.enabled else ", which is blocked")
            )
        self.divergence = Divergence(depth, expected, found)
        scheduler.give_up()

    def end(self, run: Run) -> None:
        """Nothing is learnt."""


_IN_VAIN: Final = (RMW, WAIT, ACQUIRE)
"""Operations that are recorded as loads when they have changed nothing."""


def _is(announced: str, recorded: str) -> bool:
    """Whether what is announced is what was recorded; a compare-exchange that failed was recorded
    as a load, as was a wait that ended by time, and whom a spawn makes is known only afterwards, as
    is where a load reads from."""
    recorded = recorded.removesuffix(OWN)
    if announced == recorded:
        return True
    if recorded.startswith(KINDS[LOAD]):
        return announced in {recorded.replace(KINDS[LOAD], KINDS[kind], 1) for kind in _IN_VAIN}
    return announced.startswith(KINDS[SPAWN]) and recorded.startswith(KINDS[SPAWN])


def is_own(word: int) -> bool:
    """Whether it stands for a word in a task's own store buffer."""
    return word > _WORD


def word_of(word: int) -> int:
    """The word itself, where it may stand for one in a store buffer."""
    return word & _WORD


class WordNames:
    """Words by the names of their objects: `mmu_lock`, `SPTE#3[1]`, where #n is the nth object of
    that name. Objects that are made later do not change the names of earlier ones."""

    def __init__(
        self, scheduler: Scheduler, describe: Callable[[Any], str | None] | None = None
    ) -> None:
        """`describe(object)` may give a better name than the object's own."""
        self._registry = scheduler.registry
        self._tasks = scheduler.tasks
        self._describe = describe
        self._taken = 0
        self._firsts: list[int] = []
        self._entries: dict[int, tuple[str, Any]] = {}
        self._counts: dict[str, int] = {}

    def thing(self, word: int) -> tuple[Any, int]:
        """The object a word belongs to, and its index in it; (None, 0) for a task's own word."""
        word = word_of(word)
        first = self._first(word)
        return (self._entries[first][1], word - first) if first else (None, 0)

    def word(self, word: int) -> str:
        """The name of a word."""
        word = word_of(word)
        if word in (NO_WORD, TASK_LIST):
            return ""
        if not word & _SERIAL:
            index = (word >> OWNER_SHIFT) - 1
            return self._tasks[index].name if index < len(self._tasks) else f"task {index + 1}"
        first = self._first(word)
        name, thing = self._entries[first]
        return f"{name}[{word - first}]" if hasattr(type(thing), "__getitem__") else name

    def event(self, event: Event) -> str:
        """An event without its task: "load mmu_seq"."""
        _, kind, word = event
        if kind == START:
            return KINDS[kind]
        own = OWN if is_own(word) else ""
        return f"{KINDS[kind]} {self.word(word)}".rstrip() + own

    def announced(self, task: ControlledTask) -> str:
        """What a task is about to do."""
        return self.event((task.index, task.kind, task.word))

    def _first(self, word: int) -> int:
        """The first word of the object that `word` belongs to; 0 for a task's own, and for the list
        of tasks."""
        if word == TASK_LIST or not word & _SERIAL:
            return 0
        while self._taken < len(self._registry):
            first, thing = self._registry[self._taken]
            self._taken += 1
            name = (self._describe(thing) if self._describe else None) or str(
                object.__getattribute__(thing, "name")
            )
            self._counts[name] = count = self._counts.get(name, 0) + 1
            self._entries[first] = (name if count == 1 else f"{name}#{count}", thing)
            insort(self._firsts, first)
        return self._firsts[bisect_right(self._firsts, word) - 1]
