"""What a recording asks the model to do: its operations, in order, each with what the kernel did in
it.

An *operation* is one outermost call: an ioctl, a page fault, a request served before an entry, the
load of a root, one half of an mmu notifier invalidation, the destruction of the VM. Calls inside a
call (a notifier while a fault waits for the host) are operations of their own, nested. What the
kernel was *given* in a call (the host's frame, rights and page size, user space's arguments) is
input; what it *did* is compared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from attrs import define, field

from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from stress.trace import events, layouts
from stress.trace.conform_lines import read_lines
from stress.trace.conform_translate import Translator
from stress.trace.conform_values import BEGIN, SYNC, Happening
from stress.trace.events import Event, FieldError, TraceError
from stress.trace.layouts import Detector, KernelLayout, Vendor
from stress.trace.reader import TraceReader

PAGE: Final = 12
CREATE, DELETE, MOVE, FLAGS = 0, 1, 2, 3
"""KVM_MR_*."""
_MARK = re.compile(r"MK (begin|end) (.*)")
_VCPU = re.compile(r"vcpu[ =](\d{1,6})\b")
_PAIR = re.compile(r"(\w+)=(-?[0-9a-f]+)\b")

OPENERS: Final[dict[str, str]] = {
    "set_memslot": "set-region",
    "get_dirty_log()": "get-log",
    "clear_dirty_log()": "clear-log",
    "kvm_page_fault": "fault",
    "free_obsolete": "free-obsolete",
    "flush_all": "flush-tlb",
    "mmu_load": "load-root",
    "kvm_mmu_reset_context()": "reset-context",
    "mn_start": "range-start",
    "mn_end": "range-end",
    "destroy_vm": "destroy",
    "flush_shadow_all": "release",
}
"""The event that begins an operation of each kind, unless one is under way that it is part of."""

CLOSERS: Final[dict[str, str]] = {
    "mn_start_ret": "range-start",
    "mn_end_ret": "range-end",
    "set_memslot_ret": "set-region",
    "tdp_page_fault_ret": "fault",
    "mmu_load_ret": "load-root",
}
"""The event after which an operation has nothing more to show."""

CONTAINS: Final[dict[str, frozenset[str]]] = {
    "set-region": frozenset({"set_memslot"}),
    "destroy": frozenset({"flush_shadow_all", "kvm_mmu_reset_context()"}),
}
"""Events that are part of an operation although they begin one elsewhere."""


@define(eq=False)
class Operation:
    """One call of the kernel: `given` is its input, `did` what was recorded, `nested` the calls
    inside it."""

    kind: str
    pid: int
    line: int
    step: str
    vcpu: int = -1
    given: dict[str, Any] = field(factory=dict)
    did: list[Happening] = field(factory=list)
    nested: list[Operation] = field(factory=list)
    running: bool = False
    """Whether another task was in the guest, or in a call, at the same time."""

    @property
    def name(self) -> str:
        """The operation in a report."""
        who = f" vcpu{self.vcpu}" if self.vcpu >= 0 else ""
        what = {
            "fault": f" gfn {self.given.get('gfn', 0):#x}",
            "set-region": f" slot {self.given.get('slot')}",
        }.get(self.kind, "")
        return f"{self.kind}{who}{what}"


ENTER: Final = "enter"
EXIT: Final = "exit"
CREATE_VCPU: Final = "create-vcpu"


@define
class Item:
    """One thing to replay: an operation begins (`what` is `BEGIN`), does something, or a vCPU
    enters or leaves the guest."""

    line: int
    pid: int
    operation: Operation | None
    what: Happening | str
    vcpu: int = -1


@define
class ConformScript:
    """A recording, ready for the model. `recorded` counts the kinds of happening that the recording
    has at all."""

    kernel: KernelLayout
    vendor: Vendor
    items: list[Item] = field(factory=list)
    operations: list[Operation] = field(factory=list)
    recorded: Counter[str] = field(factory=Counter)
    lines: int = 0
    freed: int = 0
    """Page-table pages that RCU freed."""
    damage: str = ""
    """Where the recording becomes useless, if it does."""
    missing: str = ""
    """How many events are missing, nobody knows where, if any are."""
    strays: list[Happening] = field(factory=list)
    """What no operation explains."""
    beyond: list[str] = field(factory=list)
    """What the machine has that the replay does not do, in sentences."""
    vms: int = 1
    """How many VMs show in it."""
    levels: int = 4
    """Levels of page tables."""
    unborn: str = ""
    """What shows that the VM is older than the recording, if anything does."""
    vcpus: int = 0
    marked_vcpus: bool = False
    manual_protect: bool = False
    initially_set: bool = False
    huge: bool = False
    freezes_recorded: bool = False
    """Whether changes from empty to frozen were recorded: some set-ups filter them out, because
    they are very many."""
    races: list[tuple[Operation, Item]] = field(factory=list)
    """Faults that have lost an entry, and the happening of the fault that they lost it to."""
    clues: list[str] = field(factory=list)


@define
class _Task:
    """What is known of a task while its lines are read."""

    stack: list[Operation] = field(factory=list)
    vcpu: int = -1
    marked: bool = False
    """Whether the bottom operation ends with its marker."""
    ranges: list[dict[str, Any]] = field(factory=list)
    """The invalidations that it has begun and not ended, outermost first."""


class Scribe:
    """Turns the lines of a recording into a `Script`."""

    def __init__(self, script: ConformScript, translator: Translator) -> None:
        self._script = script
        self._translator = translator
        self._tasks: dict[int, _Task] = {}
        self._step = "start"
        self.kvms: set[object] = set()
        """The VMs that probes name."""
        self._inside: set[int] = set()
        self._in_smm: set[int] = set()

    def read(self, event: Event) -> None:
        """One line."""
        if event.in_interrupt:
            self._script.freed += event.name == "free_sp_rcu"
            return
        if event.name == "free_sp_rcu":
            self._script.freed += 1
        elif event.name == events.MARKER:
            self._marker(event)
        elif event.name == "kvm_mmu_get_page" and not event.fields().direct:
            self._shadows()
        elif event.name in ("kvm_entry", "kvm_exit"):
            self._guest(event)
        elif event.name == "kvm_userspace_exit":
            self._leave(self._task(event.pid))
        elif event.name in ("svc_tlb", "kvm_smm_transition"):
            self._runs(event)
        else:
            self._call(event)

    def _shadows(self) -> None:
        """A page table of the guest's own is shadowed."""
        sentence = (
            "page tables of the guest are shadowed (a nested guest, or no nested paging), which "
            "conform does not replay"
        )
        if sentence not in self._script.beyond:
            self._script.beyond.append(sentence)

    def _task(self, pid: int) -> _Task:
        return self._tasks.setdefault(pid, _Task())

    # Markers.

    def _marker(self, event: Event) -> None:
        found = _MARK.match(event.text.strip())
        if found is None:
            return
        edge, what = found.groups()
        if edge == "begin":
            self._step = what
            self._begin_step(event, what)
            return
        task = self._task(event.pid)
        if task.marked and task.stack:
            self._end_marked(event, task, dict(_PAIR.findall(what)))
        self._step = f"after {what.split()[0]}"

    def _begin_step(self, event: Event, what: str) -> None:
        pairs = dict(_PAIR.findall(what))
        words = what.split()
        if {"slot", "gfn", "npages"} <= pairs.keys():
            slot = int(pairs["slot"])
            given = {
                "slot": slot & 0xFFFF,
                "as_id": slot >> 16,
                "gfn": int(pairs["gfn"], 16),
                "npages": int(pairs["npages"], 16),
            }
            given["flags"] = int(pairs.get("flags", "0"), 16)
            self._open(event, "set-region", given)
            self._task(event.pid).marked = True
        elif words[0] == "create_vcpu" and len(words) > 1 and words[1].isdigit():
            self._script.marked_vcpus = True
            self._script.items.append(Item(event.line, event.pid, None, CREATE_VCPU, int(words[1])))

    def _end_marked(self, event: Event, task: _Task, pairs: dict[str, str]) -> None:
        operation = task.stack[0]
        task.stack.clear()
        task.marked = False
        code = int(pairs.get("rc", "0"))
        operation.given["rc"] = code
        if code < 0:
            self._did(event, operation, Happening("refused", (-code,), event.line))

    # The guest.

    def _guest(self, event: Event) -> None:
        vcpu = event.fields().vcpu
        task = self._task(event.pid)
        task.vcpu = vcpu
        task.stack.clear()
        self._script.vcpus = max(self._script.vcpus, vcpu + 1)
        entering = event.name == "kvm_entry"
        (self._inside.add if entering else self._inside.discard)(vcpu)
        self._script.items.append(
            Item(event.line, event.pid, None, ENTER if entering else EXIT, vcpu)
        )

    def _leave(self, task: _Task) -> None:
        """The task is back in user space: what it did in KVM_RUN is over."""
        if not task.marked:
            task.stack.clear()

    def _runs(self, event: Event) -> None:
        """Which vCPU a task runs, from an event that does nothing itself."""
        found = _VCPU.search(event.text)
        if found is None:
            return
        vcpu = self._task(event.pid).vcpu = int(found[1])
        if event.name == "kvm_smm_transition":
            (self._in_smm.add if "entering" in event.text else self._in_smm.discard)(vcpu)

    # Calls.

    def _call(self, event: Event) -> None:
        task = self._task(event.pid)
        kind = OPENERS.get(event.name)
        if kind is not None and not self._is_part(task, event.name):
            self._begin_call(event, task, kind)
        if " kvm=" in event.text and event.text.startswith("("):
            self.kvms.add(event.fields().args.get("kvm"))
        self._learn(event, task)
        happening = self._translator.happening(event)
        if happening is not None:
            self._happened(event, task, happening)
        self._close(event, task)

    def _close(self, event: Event, task: _Task) -> None:
        """An operation ends with its return, or with its marker if a marker began it."""
        if not task.stack or (task.marked and len(task.stack) == 1):
            return
        if CLOSERS.get(event.name) == task.stack[-1].kind:
            task.stack.pop()

    def _is_part(self, task: _Task, name: str) -> bool:
        return bool(task.stack) and name in CONTAINS.get(task.stack[0].kind, ())

    def _begin_call(self, event: Event, task: _Task, kind: str) -> None:
        given = self._given(event, kind)
        if kind == "range-start":
            task.ranges.append(given)
        elif kind == "range-end" and task.ranges:
            given = {**task.ranges.pop(), **given}
        nested = kind.startswith("range-") and bool(task.stack) and _is_faulting(task.stack[0])
        operation = self._open(event, kind, given, nested=nested)
        if kind in ("fault", "free-obsolete", "flush-tlb", "load-root"):
            operation.vcpu = task.vcpu if given.get("vcpu", -1) < 0 else given["vcpu"]
            task.vcpu = operation.vcpu
            operation.given["smm"] = operation.vcpu in self._in_smm
            self._script.vcpus = max(self._script.vcpus, operation.vcpu + 1)
        elif kind == "reset-context" and "sregs" not in event.text:
            operation.vcpu = task.vcpu

    def _open(
        self, event: Event, kind: str, given: dict[str, Any], *, nested: bool = False
    ) -> Operation:
        task = self._task(event.pid)
        busy = any(other.stack for pid, other in self._tasks.items() if pid != event.pid)
        operation = Operation(
            kind, event.pid, event.line, self._step, given=given, running=busy or bool(self._inside)
        )
        if nested:
            task.stack[0].nested.append(operation)
        else:
            task.stack.clear()
            task.marked = False
        task.stack.append(operation)
        self._script.operations.append(operation)
        self._script.items.append(Item(event.line, event.pid, operation, BEGIN))
        return operation

    def _given(self, event: Event, kind: str) -> dict[str, Any]:
        """What the event that begins an operation says about its arguments."""
        if kind == "fault":
            return self._translator.fault(event)
        payload = event.fields()
        return (
            dict(payload.args) if isinstance(payload, events.ProbeEvent) else {"caller": event.text}
        )

    def _learn(self, event: Event, task: _Task) -> None:
        """Inputs that come in the middle of an operation."""
        if not task.stack:
            return
        given = task.stack[-1].given
        if event.name == "map":
            args = event.fields().args
            given.update(pfn=args.get("pfn"), map_writable=bool(args.get("map_w", 1)))
        elif event.name == "kvm_mmu_spte_requested":
            given["level"] = event.fields().level
            self._script.huge |= given["level"] > 1
        elif event.name == "alloc_root":
            given["role"] = event.fields().args.get("role")
        elif event.name == "mmu_free_roots":
            given.setdefault("freed", []).append(event.fields().args.get("root", 0))
        elif event.name == "set_memslot":
            self._region(given, event.fields().args)
        elif event.name == "swap_memslots":
            given["as_id"] = event.fields().args.get("as_id", 0)
        elif event.name in ("tdp_page_fault_ret", "clear_dirty_pt"):
            given.setdefault(event.name, []).append(dict(event.fields().args))

    def _region(self, given: dict[str, Any], args: dict[str, Any]) -> None:
        """kvm_set_memslot()'s arguments; of a delete the new slot is garbage, of a create the old
        one."""
        which = "old" if args.get("change") == DELETE else "new"
        given.update(
            change=args.get("change"),
            slot=args.get(f"{which}_id", given.get("slot")),
            gfn=args.get(f"{which}_gfn", given.get("gfn")),
            npages=0 if which == "old" else args.get("new_n", given.get("npages")),
            flags=given.get("flags", 0) if which == "old" else args.get("new_fl", 0),
            old_flags=args.get("old_fl", 0),
        )
        if which == "new" and isinstance(args.get("new_hva"), int):
            given["userspace_addr"] = args["new_hva"]

    def _happened(self, event: Event, task: _Task, happening: Happening) -> None:
        self._script.recorded[
            happening.values[0] if happening.kind == SYNC else happening.kind
        ] += 1
        if happening.kind == SYNC and not task.stack:
            return
        if happening.kind == "spte" and happening.values[3:] == self._translator.freeze:
            self._script.freezes_recorded = True
        if not task.stack:
            self._script.strays.append(happening)
            return
        self._did(event, task.stack[-1], happening)

    def _did(self, event: Event, operation: Operation, happening: Happening) -> None:
        operation.did.append(happening)
        self._script.recorded[happening.kind] += happening.kind == "refused"
        self._script.items.append(Item(event.line, event.pid, operation, happening))


def _is_faulting(operation: Operation) -> bool:
    """Whether it is a fault that may still wait for the host."""
    return operation.kind == "fault" and all(
        done.kind in ("mmio_check", "fast", SYNC) for done in operation.did
    )


def read_script(path: Path, kernel: str = "", vendor: str = "") -> ConformScript:
    """Read a recording. Raises `TraceError` when it is none."""
    return script_of(TraceReader.open(path), kernel, vendor)


def script_of(reader: TraceReader, kernel: str = "", vendor: str = "") -> ConformScript:
    """The script of a recording that is being read."""
    lines = read_lines(reader)
    detector = _detect(lines)
    layout = layouts.LAYOUTS[layouts.ALIASES.get(kernel, kernel)] if kernel else detector.kernel
    maker = layouts.VENDORS[vendor] if vendor else detector.vendor or layouts.AMD
    script = ConformScript(layout, maker, lines=reader.counts.lines)
    script.clues = [f"line {clue.line}: {clue.text}" for clue in detector.clues]
    write_script(script, lines)
    return script


def write_script(script: ConformScript, lines: Iterable[Event]) -> None:
    """Turn events into operations, up to the place where the recording cannot be relied on any
    more."""
    scribe = Scribe(script, Translator(script.kernel, script.vendor))
    for event in lines:
        if event.name == events.RECORDING:
            if script.items:
                script.damage = f"line {event.line}: another recording begins here"
                break
            continue
        if event.name == events.MISSING:
            script.missing = event.text
            continue
        if event.name in events.NOTICES:
            script.damage = f"line {event.line}: {event.text}"
            break
        try:
            scribe.read(event)
        except FieldError as error:
            script.damage = f"line {event.line}: {event.name}: {error}"
            break
    _find_log_mode(script)
    _find_machine(script, scribe.kvms)


def _find_machine(script: ConformScript, kvms: set[object]) -> None:
    """What kind of machine it is, as far as it matters to the model."""
    destroyed = [each.line for each in script.operations if each.kind == "destroy"]
    again = destroyed and any(
        each.kind == "set-region" and each.line > destroyed[0] for each in script.operations
    )
    script.vms = max(len(kvms), 1 + bool(again))
    changes = [
        done for each in script.operations for done in each.did if done.kind in ("spte", "protect")
    ]
    script.levels = max([4, *(done.values[2] for done in changes if done.kind == "spte")])
    if any(done.kind == "protect" and done.values[2] is False for done in changes):
        script.beyond.append(
            "the processor logs writes itself (PML), which conform does not replay"
        )


def _find_log_mode(script: ConformScript) -> None:
    """Which of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 was on, as far as it made a difference: with it
    KVM_GET_DIRTY_LOG protects nothing, and if all is dirty initially, switching logging on does
    nothing either."""
    starts = [each for each in script.operations if _starts_log(each)]
    gets = [each for each in script.operations if each.kind == "get-log"]
    script.initially_set = bool(starts) and not any(map(_protects, starts))
    script.manual_protect = (
        any(each.kind == "clear-log" for each in script.operations)
        or script.initially_set
        or (bool(gets) and not any(map(_protects, gets)))
    )


def _starts_log(operation: Operation) -> bool:
    """Whether a slot that did not log begins to."""
    given = operation.given
    return bool(
        operation.kind == "set-region"
        and given.get("change") == FLAGS
        and given.get("flags", 0) & KVM_MEM_LOG_DIRTY_PAGES
        and not given.get("old_flags", 0) & KVM_MEM_LOG_DIRTY_PAGES
        and given.get("rc", 0) >= 0
    )


def _protects(operation: Operation) -> bool:
    """Whether it took rights away, or looked for whom to take them from."""
    kinds = ("wrprot_slot", "wrprot", "protect", "spte", "walk", "flush")
    return any(done.kind in kinds for done in operation.did)


def _detect(lines: list[Event]) -> Detector:
    """Which kernel made the recording, from all of it."""
    detector = Detector()
    seen: set[str] = set()
    for event in lines:
        if event.name not in seen:
            seen.add(event.name)
            detector.see_event(event)
        see = _SHOWING.get(event.name)
        if see is None:
            continue
        try:
            wrong = see(detector, event)
        except FieldError:
            continue
        if wrong:
            raise TraceError(f"line {event.line}: {wrong}")
    return detector


def _see_change(detector: Detector, event: Event) -> str:
    """A changed entry; returns what contradicts the lines before it, or ""."""
    change = event.fields()
    return detector.see(event.line, change.old) or detector.see(event.line, change.new)


def _see_requested(detector: Detector, event: Event) -> str:
    """Whether the event has the field that came with 7.x."""
    if event.fields().access >= 0:
        detector.see_access(event.line)
    return ""


_SHOWING: Final = {
    "kvm_tdp_mmu_spte_changed": _see_change,
    "kvm_mmu_spte_requested": _see_requested,
}
