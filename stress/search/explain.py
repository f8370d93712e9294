"""Why a schedule fails: the steps that matter, in the kernel's words, and what becomes of it when a switch is left out.

The schedule is replayed step by step, and every word is looked at before and after it is touched. What is shown are the
steps that do not commute with a step of another task and that lie in the past of the finding, by happens-before.
Counterfactuals are further runs: without a switch, and with random continuations after each prefix.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any, Final

from attrs import evolve, field, frozen

from mmu.paging.spte import PRESENT_HIGH
from mmu.report import RULES, Report
from mmu.stack import short_path
from stress.engines.carrier import pinned
from stress.engines.controlled import ControlledRuntime
from stress.engines.locks import ControlledLock, ControlledRwLock
from stress.engines.program import Executor, Instance, Program, Run, Strategy
from stress.engines.scheduler import (
    ACQUIRE,
    OWNER_SHIFT,
    READ_ACQUIRE,
    READ_RELEASE,
    RELEASE,
    START,
    YIELD,
    Access,
    ControlTask,
    Event,
    Picker,
    Scheduler,
    frames_of,
)
from stress.errors import StressError
from stress.replaying import program_of
from stress.search.explain_data import (
    NO_FAILURE,
    SAME_FAILURE,
    Doing,
    Explanation,
    Finding,
    Inevitable,
    Picture,
    Row,
    Switch,
    Words,
    raw,
    rwlock_words,
)
from stress.search.explain_text import draw
from stress.search.order import GROUP, Order, accesses
from stress.search.races import races_of
from stress.search.schedule import Follow, Names, Schedule
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


# Where a step happens.


@frozen
class Where:
    """The call stack of a step: the runtime's `method`, the primitives it is part of, the kernel function, the operation of the
    actor that is in progress, and the table page that is being given to RCU."""

    method: str = ""
    calls: tuple[str, ...] = ()
    function: str = ""
    operation: str = ""
    page: Any = None


@frozen
class _Code:
    """What a function is to an explanation: its part of the tree, and the kernel's name for it."""

    area: str
    kernel: str


_FUNCTION = re.compile(r"\b(?:_{0,2}[a-z][a-z0-9_]*)\(\)|^KVM_[A-Z_]+|^[A-Z][A-Z_]{5,}")
_OWN_NAMES: Final = {"HardwareWalker": "hardware page walk", "HostMemory.access": "memory access", "Device.transact": "DMA"}
_codes: dict[CodeType, _Code] = {}


def where_of(frame: FrameType | None) -> Where:
    """The place in the model of a task that stands at a step."""
    method, operation, page = "", "", None
    calls: list[str] = []
    functions: list[str] = []
    while frame is not None:
        code = frame.f_code
        known = _codes.get(code) or _codes.setdefault(code, _code(code))
        if known.area == "engine" and not calls and not functions:
            method = code.co_name
        elif known.area == "sync":
            calls += [code.co_qualname, type(frame.f_locals.get("self")).__name__]
        elif known.area == "mmu":
            functions.append(known.kernel)
            if code.co_qualname == "PageTableMemory.retire":
                page = frame.f_locals["page"]
        elif code.co_qualname == "Actor.perform":
            operation = str(frame.f_locals["op"])
        frame = frame.f_back
    return Where(method, tuple(calls), next(filter(None, functions), ""), operation, page)


def _code(code: CodeType) -> _Code:
    path = short_path(code.co_filename)
    if path.startswith(("stress/engines/", "stress/search/")):
        return _Code("engine", "")
    if path.startswith("mmu/sync/"):
        return _Code("sync", "")
    if not path.startswith("mmu/"):
        return _Code("", "")
    own = next((name for start, name in _OWN_NAMES.items() if code.co_qualname.startswith(start)), "")
    first = code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else ""
    found = _FUNCTION.search(first.split("\n")[0])
    return _Code("mmu", own or (found.group() if found else ""))


# Whose a word is.


class Objects:
    """The model's objects by their words: the role a word has, and whom it belongs to. Without a VM nobody is known."""

    def __init__(self, vm: Any) -> None:
        self._vm = vm
        self._known: dict[int, tuple[str, Any]] = {}
        self._pages = -1

    def of(self, thing: Any) -> tuple[str, Any]:
        """The role and owner of a word's object; ("", None) when it is not known."""
        if self._vm is None:
            return "", None
        if id(thing) not in self._known and self._vm.kvm.tables._next.peek() != self._pages:
            self._look()
        return self._known.get(id(thing), ("", None))

    def _look(self) -> None:
        vm = self._vm
        self._pages = vm.kvm.tables._next.peek()
        for page in list(vm.kvm.tables.by_spte.values()):
            self._enter_page(page)
        for state in vm.requests._vcpus.peek():
            self._known |= {id(state.mode): ("mode", state.name), id(state.requests): ("requests", state.name)}
        for vcpu in vm._vcpus.peek():
            self._known[id(vcpu.immediate_exit)] = "immediate_exit", vcpu.state.name
        for sets in vm.memslots._sets:
            for letter, each in zip("AB", sets, strict=True):
                name = f"memslots[{each.as_id}]{letter}"
                self._known |= {id(each.index): ("slots", name), id(each.generation): ("generation", name)}

    def _enter_page(self, page: Any) -> None:
        self._known[id(raw(page, "spt"))] = "spt", page
        if raw(page, "__class__").__name__.endswith("RootPage"):
            for name in ("invalid", "exported", "scheduled", "zapped", "next"):
                self._known[id(raw(page, name))] = "root", page
            self._known[id(raw(page, "refcount")._count)] = "refcount", page


# The detailed replay.


@frozen
class Step:
    """A step of the replay in the kernel's words: `what` is "" for what nobody's course depends on. `free` says whether the task
    that ran before could have gone on."""

    task: str
    what: str
    where: Where
    key: str
    change: bool
    free: bool


@frozen
class _Pending:
    """A step that is about to be done."""

    number: int
    task: ControlTask
    kind: int
    word: int
    before: Any
    waits_for: str
    where: Where
    free: bool


class Recording:
    """A replay that notes every step. It is the program that is run, so that it can see the instance, and the strategy that runs
    it. After each step in `draw_after` it draws the page tables; -1 is the start."""

    name = "explain"
    exhausted = False

    def __init__(self, program: Program, follow: Strategy, draw_after: Iterable[int] = ()) -> None:
        self.steps: list[Step] = []
        self.found: dict[str, int] = {}
        """After which step each finding was there, by signature."""
        self.pictures: list[Picture] = []
        self._program = program
        self._follow = follow
        self._draw_after = frozenset(draw_after)
        self._instance: Instance | None = None
        self._pending: _Pending | None = None
        self._vm: Any = None

    def build(self, runtime: ControlledRuntime, seed: int) -> Instance:
        """The program's own instance."""
        self._instance = instance = self._program.build(runtime, seed)
        self._vm = getattr(getattr(instance, "world", None), "vm", None)
        return instance

    def begin(self, scheduler: Scheduler) -> Picker:
        """Follow the schedule, and look at every word before and after."""
        self._scheduler = scheduler
        self._names = Names(scheduler)
        self._objects = Objects(self._vm)
        kvm = self._vm.kvm if self._vm is not None else None
        self._words = Words(kvm.layout, kvm.geometry.pages) if kvm is not None else Words(PRESENT_HIGH)
        inner = self._follow.begin(scheduler)

        def pick() -> ControlTask:
            self._done()
            chosen = inner()
            scheduler.pick = pick
            self._about(chosen, sys._getframe())
            return chosen

        return pick

    def end(self, run: Run) -> None:
        """The last step, and what is found only afterwards."""
        self._done()
        for report in run.reports:
            self.found.setdefault(report.signature, len(run.trace))

    def _about(self, task: ControlTask, frame: FrameType) -> None:
        scheduler = self._scheduler
        running = scheduler.running
        where = where_of(frame if task is running else frames_of(task) if task.kind != START else None)
        free = bool(scheduler.trace) and running.enabled and not running.done
        before = self._peek(task.word)
        self._pending = _Pending(len(scheduler.trace), task, task.kind, task.word, before, task.what, where, free)

    def _peek(self, word: int) -> Any:
        thing, index = self._names.thing(word)
        return thing.peek(index) if thing is not None else None

    def _done(self) -> None:
        at, self._pending = self._pending, None
        trace = self._scheduler.trace
        if at is None or len(trace) <= at.number:
            self._draw(-1)
            return
        event = trace[at.number]
        what, key = self._say(at, event)
        change = self._objects.of(self._names.thing(event[2])[0])[0] == "spt" and GROUP[event[1]] == 0
        self.steps.append(Step(at.task.name, what, at.where, key, change, at.free))
        assert self._instance is not None
        for report in self._instance.reports():
            self.found.setdefault(report.signature, at.number)
        self._draw(at.number)

    def _say(self, at: _Pending, event: Event) -> tuple[str, str]:
        """The step in words, and what a lock or read section is called, for finding its other half."""
        _, kind, word = event
        thing, index = self._names.thing(word)
        name = self._names.word(word)
        role, owner = self._objects.of(thing)
        if isinstance(thing, ControlledRwLock):
            return rwlock_words(kind, index, thing.preference == "fair", thing.name, self._peek(word)), name
        if isinstance(thing, ControlledLock):
            role = "lock"
        maker = word >> OWNER_SHIFT
        tasks = self._scheduler.tasks
        doing = Doing(
            kind,
            at.where.method,
            name if thing is None else str(raw(thing, "name")) if role or self._is_common(thing) else name,
            index,
            at.before,
            self._peek(word),
            role,
            owner,
            tasks[maker - 1].name if 0 < maker <= len(tasks) else "",
            at.where.calls,
            at.waits_for,
            at.where.page,
        )
        return self._words.say(doing), name

    def _is_common(self, thing: Any) -> bool:
        """Whether objects of this name are told apart by something better than a number."""
        name = str(raw(thing, "name"))
        return name.endswith((".reader", ".gp_seq", ".readers"))

    def _draw(self, number: int) -> None:
        if number in self._draw_after and self._vm is not None:
            self.pictures.append(Picture(number, draw(self._vm)))


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
