"""A schedule replayed step by step: every word is looked at before and after it is touched, and
where in the model that was."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, Final

from attrs import frozen

from mmu.memory.host import FREED
from mmu.paging.geometry import Geometry
from mmu.paging.spte import ADDR_MASK, PRESENT_HIGH, REMOVED_SPTE, SPTE_MMIO, SpteLayout, pfn_of
from mmu.stack import short_path
from stress.engines.controlled import ControlledRuntime
from stress.engines.locks import ControlledLock, ControlledRwLock
from stress.engines.program import Executor, Instance, Program, Run, Strategy
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.steps import ENDING, FREE, OWNER_SHIFT, Event
from stress.engines.store_buffers import StoreBuffers
from stress.engines.tasks import ControlledTask
from stress.search.explain_data import (
    Doing,
    Picture,
    Words,
    generation_text,
    page_text,
    raw,
    rights_text,
    rwlock_words,
    slots_text,
    spte_text,
    tag_text,
)
from stress.search.happens_before import GROUP
from stress.search.schedule import WordNames, is_own, word_of

IN_MEMORY: Final = ", now in memory"
"""The end of the text for a store that leaves its buffer."""

# Where a step happens.


@frozen
class StepSite:
    """The call stack of a step: the runtime's `method`, the primitives it is part of, the kernel
    function, the operation of the actor that is in progress, the object that is being freed or
    given to RCU, and whether the model only looks because it reports something."""

    method: str = ""
    calls: tuple[str, ...] = ()
    function: str = ""
    operation: str = ""
    what: str = ""
    judging: bool = False


@frozen
class _Code:
    """What a function is to an explanation: its part of the tree, and the kernel's name for it."""

    area: str
    kernel: str


_FUNCTION = re.compile(r"\b(?:_{0,2}[a-z][a-z0-9_]*)\(\)|^KVM_[A-Z_]+|^[A-Z][A-Z_]{5,}")
_OWN_NAMES: Final = {
    "HardwareWalker": "hardware page walk",
    "HostMemory.access": "memory access",
    "Device.transact": "DMA",
}
_JUDGING = re.compile("describe|_warn|_report|_leak|look$")
"""Functions of the model that only say what is wrong."""
_codes: dict[CodeType, _Code] = {}


def where_of(frame: FrameType | None) -> StepSite:
    """The place in the model of a task that stands at a step."""
    method = operation = what = ""
    calls: list[str] = []
    functions: list[str] = []
    judging, outside = False, False
    while frame is not None:
        code = frame.f_code
        known = _codes.get(code) or _codes.setdefault(code, _code(code))
        outside = outside or known.area != "engine"
        if not outside:
            method = code.co_name
        elif known.area == "sync":
            calls += [code.co_qualname, type(frame.f_locals.get("self")).__name__]
        elif known.area == "mmu":
            functions.append(known.kernel)
            judging = judging or _JUDGING.match(code.co_name) is not None
            what = what or _subject(code.co_qualname, frame)
        elif code.co_qualname == "Actor.perform":
            operation = str(frame.f_locals["op"])
        frame = frame.f_back
    return StepSite(
        method, tuple(calls), next(filter(None, functions), ""), operation, what, judging
    )


def _subject(function: str, frame: FrameType) -> str:
    """The object that is freed or given to RCU, in the words that a report has for it."""
    if function in ("PageTableMemory.retire", "PageTableMemory.free"):
        return page_text(frame.f_locals["page"])
    return str(frame.f_locals["slot"].describe()) if function == "Memslots._discard" else ""


def _code(code: CodeType) -> _Code:
    path = short_path(code.co_filename)
    if path.startswith(("stress/engines/", "stress/search/")):
        return _Code("engine", "")
    if path.startswith("mmu/sync/"):
        return _Code("sync", "")
    if not path.startswith("mmu/"):
        return _Code("", "")
    own = next(
        (name for start, name in _OWN_NAMES.items() if code.co_qualname.startswith(start)), ""
    )
    first = code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else ""
    found = _FUNCTION.search(first.split("\n")[0])
    return _Code("mmu", own or (found.group() if found else ""))


# Whose a word is.


class Objects:
    """The model's objects by their words: the role a word has, and whom it belongs to. Without a VM
    nobody is known."""

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
            self._known |= {
                id(state.mode): ("mode", state.name),
                id(state.requests): ("requests", state.name),
            }
        for vcpu in vm._vcpus.peek():
            self._known[id(vcpu.immediate_exit)] = "immediate_exit", vcpu.state.name
        for sets in vm.memslots._sets:
            for letter, each in zip("AB", sets, strict=True):
                name = f"memslots[{each.as_id}]{letter}"
                self._known |= {
                    id(each.index): ("slots", name),
                    id(each.generation): ("generation", name),
                }

    def _enter_page(self, page: Any) -> None:
        self._known[id(raw(page, "spt"))] = "spt", page
        if raw(page, "__class__").__name__.endswith("RootPage"):
            for name in ("invalid", "exported", "scheduled", "zapped", "next"):
                self._known[id(raw(page, name))] = "root", page
            self._known[id(raw(page, "refcount")._count)] = "refcount", page


# The detailed replay.


@frozen
class Step:
    """A step of the replay in the kernel's words: `what` is "" for what nobody's course depends on.
    `key` names the word, `freed` the object that is freed, `change` says whether an SPTE is changed
    (an empty one that is frozen is not), and `away_from` is the number of the task that ran before
    and could have gone on, 0 for none. What a store buffer does is a step of the task whose it
    is."""

    task: str
    what: str
    where: StepSite
    key: str
    freed: str
    change: bool
    away_from: int


@frozen
class _Pending:
    """A step that is about to be done."""

    number: int
    task: ControlledTask
    kind: int
    word: int
    before: Any
    waits_for: str
    where: StepSite
    away_from: int


class Recording:
    """A replay that notes every step. It is the program that is run, so that it can see the
    instance, and the strategy that runs it. After each step in `draw_after` it draws the page
    tables; -1 is the start."""

    name = "explain"
    exhausted = False

    def __init__(self, program: Program, follow: Strategy, draw_after: Iterable[int] = ()) -> None:
        self.steps: list[Step] = []
        self.found: dict[str, int] = {}
        """After which step each finding was there, by signature."""
        self.pictures: list[Picture] = []
        as_ever = Executor(program)
        self.limit, self.granularity = as_ever.limit, as_ever.granularity
        self.memory = as_ever.memory
        self._program = program
        self._follow = follow
        self._draw_after = frozenset(draw_after)
        self._instance: Instance | None = None
        self._pending: _Pending | None = None
        self._stored: dict[int, list[StepSite]] = {}
        """Where the stores were made that are in each buffer."""
        self._places: dict[int, StepSite] = {}
        """Where each task stands: it is the running task itself that asks who is next when it has
        announced a step."""
        self._vm: Any = None

    def build(self, runtime: ControlledRuntime, seed: int) -> Instance:
        """The program's own instance."""
        self._instance = instance = self._program.build(runtime, seed)
        self._vm = getattr(getattr(instance, "world", None), "vm", None)
        return instance

    def begin(self, scheduler: Scheduler) -> Picker:
        """Follow the schedule, and look at every word before and after."""
        self._scheduler = scheduler
        self._names = WordNames(scheduler)
        self._objects = Objects(self._vm)
        kvm = self._vm.kvm if self._vm is not None else None
        self._words = (
            Words(kvm.layout, kvm.geometry.pages) if kvm is not None else Words(PRESENT_HIGH)
        )
        inner = self._follow.begin(scheduler)
        if isinstance(scheduler, StoreBuffers):
            scheduler.on_store = lambda buffer: self._stored.setdefault(buffer.index, []).append(
                where_of(sys._getframe())
            )

        def pick() -> ControlledTask:
            self._done()
            announcer = scheduler.running
            self._places[announcer.index] = (
                where_of(sys._getframe()) if not announcer.done else StepSite()
            )
            chosen = inner()
            self._about(chosen)
            return chosen

        return pick

    def end(self, run: Run) -> None:
        """The last step, and what is found only afterwards."""
        self._done()
        for report in run.reports:
            self.found.setdefault(report.signature, len(run.trace))

    def _about(self, task: ControlledTask) -> None:
        scheduler = self._scheduler
        running = scheduler.running
        stored = self._stored.get(task.index)
        where = stored.pop(0) if stored else self._places.get(task.index, StepSite())
        free = bool(scheduler.trace) and running.enabled and not running.done
        away_from = running.index if free and task is not running else 0
        before = self._seen(task)
        self._pending = _Pending(
            len(scheduler.trace), task, task.kind, task.word, before, task.what, where, away_from
        )

    def _seen(self, task: ControlledTask) -> Any:
        """What the task would read of the word that it has announced."""
        own = task.buffer.newest.get(task.word) if task.buffer is not None else None
        return self._peek(task.word) if own is None else own.value

    def _peek(self, word: int) -> Any:
        thing, index = self._names.thing(word)
        return thing.peek(index) if thing is not None else None

    def _done(self) -> None:
        at, self._pending = self._pending, None
        trace = self._scheduler.trace
        if at is None or len(trace) <= at.number:
            if not self.steps:
                self._draw(-1)
            return
        event = trace[at.number]
        what, key = self._say(at, event) if not at.where.judging else ("", "")
        is_spte = self._objects.of(self._names.thing(event[2])[0])[0] == "spt"
        change = is_spte and GROUP[event[1]] == 0 and not what.endswith(": 0 -> FROZEN")
        freed = at.where.what if event[1] in (FREE, ENDING) else ""
        task = self._scheduler.tasks[self._scheduler.buffers.get(at.task.index, at.task.index) - 1]
        if what and task is not at.task:
            what += IN_MEMORY
        self.steps.append(Step(task.name, what, at.where, key, freed, change, at.away_from))
        assert self._instance is not None
        for report in self._instance.reports():
            self.found.setdefault(report.signature, at.number)
        self._draw(at.number)

    def _say(self, at: _Pending, event: Event) -> tuple[str, str]:
        """The step in words, and what a lock or read section is called, for finding its other
        half."""
        _, kind, word = event
        thing, index = self._names.thing(word)
        name = self._names.word(word)
        role, owner = self._objects.of(thing)
        if isinstance(thing, ControlledRwLock):
            return rwlock_words(
                kind, index, thing.preference == "fair", thing.name, self._peek(word)
            ), name
        if isinstance(thing, ControlledLock):
            role = "lock"
        maker = word_of(word) >> OWNER_SHIFT
        tasks = self._scheduler.tasks
        doing = Doing(
            kind,
            at.where.method,
            name
            if thing is None
            else str(raw(thing, "name"))
            if role or self._is_common(thing)
            else name,
            index,
            at.before,
            at.before if is_own(word) else self._peek(word),
            role,
            owner,
            tasks[maker - 1].name if 0 < maker <= len(tasks) else "",
            at.where.calls,
            at.waits_for,
            at.where.what,
        )
        return self._words.say(doing), name

    def _is_common(self, thing: Any) -> bool:
        """Whether objects of this name are told apart by something better than a number."""
        name = str(raw(thing, "name"))
        return name.endswith((".reader", ".gp_seq", ".readers"))

    def _draw(self, number: int) -> None:
        if number in self._draw_after and self._vm is not None:
            self.pictures.append(Picture(number, draw(self._vm)))


# The page tables as they are.


def draw(vm: Any) -> tuple[str, ...]:
    """Memslots, every root with its tables and leaves, and every TLB: a line for each entry that is
    not empty."""
    return tuple(_Drawing(vm).lines())


class _Drawing:
    """One picture of a VM. Everything is read without a step and without touching what was
    freed."""

    def __init__(self, vm: Any) -> None:
        self._vm = vm
        self._layout: SpteLayout = vm.kvm.layout
        self._geometry: Geometry = vm.kvm.geometry
        self._tables = vm.kvm.tables.by_spte

    def lines(self) -> Iterator[str]:
        """The lines of the picture."""
        for as_id, active in enumerate(self._vm.memslots._active):
            each = active.peek()
            if as_id == 0 or each.index.peek()[1]:
                yield (
                    f"memslots of as{as_id}, generation {generation_text(each.generation.peek())}: "
                    f"{slots_text(each.index.peek())}"
                )
        for root, holders in self._roots():
            yield self._root(root, holders)
            yield from self._entries(root, 1)
        for name, entries in self._tlbs():
            cached = ", ".join(
                f"gfn {gfn:#x} -> {self._target(gfn, spte)}"
                for gfn, spte in sorted(entries.items())
            )
            yield f"{name}: {cached or 'empty'}"

    def _roots(self) -> list[tuple[Any, list[str]]]:
        """The roots on the list, and those that only a vCPU or device still has, each with who has
        it loaded."""
        roots: list[Any] = []
        root = self._vm.roots._head.peek()
        while root is not None and root not in roots:
            roots.append(root)
            root = raw(root, "next").peek()
        loaded = [(vcpu.root, str(vcpu)) for vcpu in self._vm._vcpus.peek()]
        loaded += [(device.root.peek(), device.name) for device in self._vm._devices.peek()]
        roots += [
            root
            for root in dict.fromkeys(root for root, _ in loaded)
            if root is not None and root not in roots
        ]
        return [(root, [name for other, name in loaded if other is root]) for root in roots]

    def _root(self, root: Any, holders: list[str]) -> str:
        flags = [name for name in ("exported", "invalid", "zapped") if raw(root, name).peek()]
        freed = ["FREED"] if type(root).__name__.startswith("Freed") else []
        count = raw(root, "refcount")._count.peek()
        used = [f"used by {', '.join(holders)}"] if holders else []
        return ", ".join(
            [
                f"root {raw(root, 'address'):#x} ({raw(root, 'role')})",
                *freed,
                *flags,
                f"refcount {count}",
                *used,
            ]
        )

    def _entries(self, page: Any, depth: int) -> Iterator[str]:
        """The entries of a table that are not empty, and what is below them."""
        level = raw(page, "level")
        pages = self._geometry.pages(level)
        for index, spte in enumerate(list.__iter__(raw(page, "spt"))):
            if not spte:
                continue
            gfn = raw(page, "gfn") + index * pages
            where = f"gfn {gfn:#x}" if pages == 1 else f"gfn {gfn:#x}..{gfn + pages - 1:#x}"
            child = self._tables.get(spte) if self._layout.is_table(spte, level) else None
            yield f"{'  ' * depth}{where}: {self._entry(gfn, spte, level, child)}"
            if child is not None and depth < 6:
                yield from self._entries(child, depth + 1)

    def _entry(self, gfn: int, spte: int, level: int, child: Any) -> str:
        if child is not None:
            freed = ", FREED" if type(child).__name__.startswith("Freed") else ""
            return f"table {raw(child, 'address'):#x} (level {raw(child, 'level')}{freed})"
        if self._layout.is_leaf(spte, level) and spte != REMOVED_SPTE and not spte & SPTE_MMIO:
            return f"{'huge ' if level > 1 else ''}leaf {self._target(gfn, spte)}"
        return spte_text(spte, level, self._layout)

    def _target(self, gfn: int, spte: int) -> str:
        """A translation's frame with its rights, and whose the frame is unless it is this gfn's."""
        if spte & SPTE_MMIO or not spte & ADDR_MASK:
            return spte_text(spte, 1, self._layout)
        pfn = pfn_of(spte)
        host = self._vm.host
        owner = host.stamp.peek(pfn) if pfn < host.frames else FREED
        wrong = (
            ""
            if tag_text(owner).endswith(f"gfn {gfn:#x}")
            else f" (!) which belongs to {tag_text(owner)}"
        )
        return f"pfn {pfn:#x} {rights_text(spte, self._layout)}{wrong}"

    def _tlbs(self) -> Iterator[tuple[str, dict[int, int]]]:
        for cpu in self._vm.pcpus:
            for address, cache in cpu.contexts().items():
                yield f"TLB of {cpu} for root {address:#x}", cache.entries
        for vcpu in self._vm._vcpus.peek() if not self._vm.pcpus else ():
            yield f"TLB of {vcpu}", vcpu.tlb.entries
        for device in self._vm._devices.peek():
            for name, cache in device.caches():
                yield name, cache.entries
