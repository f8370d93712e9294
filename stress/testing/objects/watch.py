"""Plain objects as shared state: what the code under test reads and writes of attributes,
variables and items is a step of its task, if another task may get in its way.

Whether it may is found out: schedules in which all accesses are looked at say which parts of which
objects two tasks have touched, at least one of them to write. When a part turns out to be shared
that was not before, the exploration begins anew; so in the end everything that any schedule has
shared is a step in all of them.

An object is known by where it was made or first stored, which is the same in every schedule in
which its task did the same: task, function, line, and how many before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from hashlib import blake2b
from types import CodeType, FrameType
from typing import Any, Final

from stress.engines.steps import ADD, LOAD, RMW, STORE, Access
from stress.search.happens_before import GROUP
from stress.testing.objects import spots
from stress.testing.objects.decode import Instruction, decoded
from stress.testing.objects.frames import Operands
from stress.testing.objects.hooks import InstructionHooks
from stress.testing.objects.spots import ATTRIBUTE, ITEM, Spot
from stress.testing.objects.undo import Undo
from stress.testing.plain.session import PlainSession, inside, state_of_caller

_KEYS: Final = (int, str, bytes, bool, type(None), float)
"""Types of keys that tell items apart by their values, in every process."""
_ALL: Final = "*"
"""The part of a container that every change of all of it writes, and every access of one item
reads."""
SPINNING: Final = 3
"""A task that looks at one place so often may be spinning."""
SPINNING_UNSEEN: Final = 1_000
"""The same for a place that nobody else has ever touched."""
_MOST_KNOWN: Final = 20_000
_ANY: Final = "#"
"""The part of a container that every change of one item writes, and every look at all of it
reads."""


class SharedParts:
    """What is known of a program's objects after some of its schedules."""

    def __init__(self) -> None:
        self.shared: set[str] = set()
        """The names of parts that two tasks touch, not only to read."""
        self.told: frozenset[str] = frozenset()
        """Marks of parts that are shared, too: of what an exploration has found on its way."""
        self.spins = False
        """Whether a task has spun: that has to be seen in every schedule, as it never ends."""
        self._surveyed: set[str] = set()
        self._users: dict[str, set[tuple[int, int]]] = {}

    def note(self, part: str, task: int, kind: int) -> None:
        """A task touches a part."""
        self._users.setdefault(part, set()).add((task, GROUP[kind]))

    def found(self) -> bool:
        """Whether parts are shared that were not known to be; from now on they are."""
        new = {part for part, users in self._users.items() if _conflict(users)} - self.shared
        self.shared |= new
        self._users.clear()
        return bool(new)

    def surveyed(self) -> None:
        """What is known now, everybody can find out who looks at the same few schedules."""
        self._surveyed = set(self.shared)

    def marks(self) -> list[str]:
        """What stands for the parts that were found later."""
        return sorted(map(mark_of, self.shared - self._surveyed))

    def is_shared(self, part: str) -> bool:
        """Whether operations on a part are steps."""
        return part in self.shared or (bool(self.told) and mark_of(part) in self.told)


@functools.lru_cache(65536)
def mark_of(part: str) -> str:
    """Eight characters that stand for the name of a part."""
    return blake2b(part.encode(), digest_size=4).hexdigest()


def _conflict(users: set[tuple[int, int]]) -> bool:
    return any(
        task != other and (not group or group != another)
        for task, group in users
        for other, another in users
    )


_known: dict[int, tuple[CodeType, dict[int, Instruction] | None]] = {}
"""The instructions of code, by its id: its own hash takes all of it in."""


def instructions_of(code: CodeType) -> dict[int, Instruction] | None:
    """The instructions of `code` that matter; None for code that is not under test."""
    known = _known.get(id(code))
    if known is None:
        if len(_known) > _MOST_KNOWN:
            _known.clear()
        known = _known[id(code)] = (code, decoded(code) if spots.is_under_test(code) else None)
    return known[1]


def is_watched(code: CodeType) -> bool:
    """Whether any instruction of `code` matters."""
    return bool(instructions_of(code))


class Part:
    """One shared part of an object, as reports show it."""

    __slots__ = ("_read", "name")

    def __init__(self, name: str, read: Callable[[], Any]) -> None:
        self.name = name
        self._read = read

    def peek(self, index: int = 0) -> Any:  # noqa: ARG002 - one word
        """Its value, without a step."""
        return self._read()


class Watch:
    """Looks at what the tasks of one schedule do to objects. With `looking` every access is noted,
    without it only those of parts that are known to be shared are steps."""

    def __init__(
        self, session: PlainSession, parts: SharedParts, hooks: InstructionHooks, *, looking: bool
    ) -> None:
        self.notes: dict[int, str] = {}
        """Of steps, by number, what was read or written."""
        self._hooks = hooks
        self._session = session
        self._scheduler = session.scheduler
        self._parts = parts
        self._looking = looking
        self._names: dict[int, tuple[str, str, Any]] = {}
        """Of objects by id: the name that is the same in every schedule, the one for people, and
        the object, which must live as long as its id is used."""
        self._counts: dict[tuple[int, str], int] = {}
        self._words: dict[str, int] = {}
        self._deeds: dict[int, int] = {}
        """How often each task has done what may have changed something."""
        self._visits: dict[tuple[int, int, int], int] = {}
        self._states: dict[tuple[int, int, int], Hashable] = {}
        self._undo = Undo(session, parts.is_shared)

    def on(self) -> AbstractContextManager[None]:
        """A block in which what the calling thread does is looked at."""
        return self._hooks.thread()

    def look_at(self, frame: FrameType) -> None:
        """A frame is about to carry out an instruction."""
        if inside() is self._session:
            instructions = instructions_of(frame.f_code)
            instruction = instructions.get(frame.f_lasti) if instructions is not None else None
            if instruction is not None:
                self._look(frame, instruction)

    def _look(self, frame: FrameType, instruction: Instruction) -> None:
        operands = Operands(frame, instruction.depth)
        if instruction.is_call:
            self._did_something()
        if instruction.passes is not None:
            for value in instruction.passes(frame, operands):
                if spots.is_nameable(value):
                    self._name(value, frame, instruction)
        if instruction.touches is not None:
            touched = list(instruction.touches(frame, operands))
            if touched:
                self._touch(touched, frame, instruction, operands)

    def _touch(
        self,
        touched: list[Spot],
        frame: FrameType,
        instruction: Instruction,
        operands: Operands,
    ) -> None:
        scheduler = self._scheduler
        if scheduler.quiet or scheduler.serial or len(scheduler.tasks) < 2:
            for spot in touched:  # nobody else is there yet: objects get their names
                parts = [part for part, _ in self._accesses(spot, frame, instruction)]
                self._undo.before(spot, parts)
            return
        if any(spot.mode not in (spots.READ, spots.READ_ALL) for spot in touched):
            self._did_something()
        found = [(spot, [*self._accesses(spot, frame, instruction)]) for spot in touched]
        accesses = self._shared_of(found)
        only_looks = all(kind == LOAD for kind in accesses.values())
        if only_looks:
            self._wait_if_spinning(frame, SPINNING if accesses else SPINNING_UNSEEN)
        if accesses:
            self._step(accesses)
        for spot, parts_of_spot in found:
            self._undo.before(spot, [part for part, _ in parts_of_spot])
        if accesses:
            self._note(touched, instruction, operands)

    def _shared_of(self, found: list[tuple[Spot, list[tuple[str, int]]]]) -> dict[int, int]:
        """The words of the shared parts among those that are touched, with how; all parts are noted
        while they are looked at."""
        task = self._scheduler.running.index
        accesses: dict[int, int] = {}
        for spot, parts in found:
            for part, kind in parts:
                if self._looking:
                    self._parts.note(part, task, kind)
                if self._parts.is_shared(part):
                    word = self._word(part, spot)
                    accesses[word] = _both(accesses.get(word), kind)
        return accesses

    def _did_something(self) -> None:
        """The running task writes, or calls something that may: from here on it is another."""
        index = self._scheduler.running.index
        self._deeds[index] = self._deeds.get(index, 0) + 1

    def _wait_if_spinning(self, frame: FrameType, often: int) -> None:
        """A task that comes to the same look again and again, in the same state and without having
        done anything, waits until something that it has read is written."""
        index = self._scheduler.running.index
        where = (index, id(frame), frame.f_lasti)
        visits = self._visits[where] = self._visits.get(where, 0) + 1
        if visits < often:
            return
        state = (self._deeds.get(index, 0), state_of_caller())
        if self._states.get(where) == state:
            self._parts.spins = True
            self._scheduler.relax()
        self._states[where] = state

    def _step(self, accesses: dict[int, int]) -> None:
        scheduler = self._scheduler
        (word, kind), *more = sorted(accesses.items(), key=_by_weight)
        scheduler.step(kind, word)
        if more:
            others: list[Access] = [(other, where) for where, other in more]
            scheduler.extras.setdefault(len(scheduler.trace) - 1, []).extend(others)
        if scheduler.watched:
            for where, what in accesses.items():
                if what != LOAD and where in scheduler.watched:
                    scheduler.wrote(where)

    def _note(self, touched: list[Spot], instruction: Instruction, operands: Operands) -> None:
        """What a step has read, or what it changes to what."""
        spot = touched[0]
        old = spots.value_text(spot)
        if spot.mode == spots.READ:
            note = old
        elif spot.space != ITEM and instruction.name:
            new = operands[-2] if spot.space == ATTRIBUTE else operands[-1]
            note = f"{old} -> {spots.short(new)}"
        elif spot.space == ITEM and spot.key is not None and spot.mode != spots.READ_ALL:
            note = f"was {old}"
        else:
            note = old
        self.notes[len(self._scheduler.trace) - 1] = note

    # Names.

    def _accesses(
        self, spot: Spot, frame: FrameType, instruction: Instruction
    ) -> Iterator[tuple[str, int]]:
        """The parts that an access touches, by name, and how."""
        owner = self._owner(spot, frame, instruction)
        if owner is None:
            return
        writes = spot.mode not in (spots.READ, spots.READ_ALL)
        if spot.space != ITEM:
            yield f"{owner}.{spot.key}", STORE if writes else LOAD
        elif spot.key is None or not isinstance(spot.key, _KEYS):
            yield f"{owner}[{_ANY}]", STORE if writes else LOAD
            if writes:
                yield f"{owner}[{_ALL}]", STORE
        else:
            yield f"{owner}[{spot.key!r}]", STORE if writes else LOAD
            yield f"{owner}[{_ALL}]", LOAD
            if writes:
                yield f"{owner}[{_ANY}]", STORE if spot.mode == spots.INSERT else ADD

    def _owner(self, spot: Spot, frame: FrameType, instruction: Instruction) -> str | None:
        if not spots.is_owned_by_user(spot.thing):
            return None
        return self._name(spot.thing, frame, instruction, spot)

    def _name(
        self, thing: Any, frame: FrameType, instruction: Instruction, spot: Spot | None = None
    ) -> str:
        known = self._names.get(id(thing))
        if known is not None:
            return known[0]
        path = self._session.path_of(thing)
        label = spots.label_of(thing, instruction.name, spot)
        if path is None:
            running = self._scheduler.running
            site = f"{running.index}:{frame.f_code.co_qualname}:{instruction.line}"
            count = self._counts.get((running.index, site), 0)
            self._counts[running.index, site] = count + 1
            path = f"{site}#{count}"
        else:
            self._undo.keep(thing)
            label = path.rpartition(":")[2] or label
        self._names[id(thing)] = (path, label, thing)
        return path

    def _word(self, part: str, spot: Spot) -> int:
        word = self._words.get(part)
        if word is None:
            label = self._names[id(spot.thing)][1]
            whole = part.endswith((f"[{_ALL}]", f"[{_ANY}]"))
            shown = spot._replace(key=None) if whole else spot
            thing = Part(spots.part_label(label, shown), functools.partial(spots.value_of, shown))
            word = self._words[part] = self._session.number(thing, part)
        return word


def _both(kind: int | None, other: int) -> int:
    return other if kind in (None, other) else RMW


def _by_weight(item: tuple[int, int]) -> tuple[int, int]:
    """What a step is called after: a change before a look, of two the first."""
    return (_WEIGHTS[item[1]], 0)


_WEIGHTS: Final = {STORE: 0, RMW: 0, ADD: 1, LOAD: 2}
