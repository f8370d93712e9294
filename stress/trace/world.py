"""What `check` knows while it reads: the VMs, the tasks, and the ledger of what it has found.

The parts (`stress.trace.parts`) share one `TracedWorld`. An event of a task is applied to the VM
that the task works for; the recording says which where its probes have a `kvm=` argument, and a
recording of one VM needs no saying.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field

from stress.trace.events import Event
from stress.trace.facts import Fact
from stress.trace.frames import Frame
from stress.trace.layouts import AMD, INTEL, LAYOUTS, VENDORS, Detector, KernelLayout, Vendor
from stress.trace.ledger import CheckLedger, TraceFinding
from stress.trace.names import EventNames
from stress.trace.tree import Root, TracedTable, TracedTree

HORIZON: Final = 1000
"""Events within which the event that explains another one comes: an SPTE is written before its
event is emitted, so that another CPU can report a change of the new value first."""
FOREVER: Final = 1 << 62
"""A line after all others."""
PATIENCE: Final = 50
"""Horizons to wait for a CPU that says nothing."""
VOLATILE: Final = {
    "AMD": AMD.accessed | AMD.dirty,
    "Intel": INTEL.accessed | INTEL.dirty | 0b101 | 0b111 << 54,
}
"""What hardware, and tracking of accesses without hardware's help, does to a leaf without an
event."""


@define(eq=False)
class TracedVcpu:
    """A virtual CPU: what it holds, and when it loaded that."""

    number: int
    root: int = -1
    """Address of its current root; -1 unknown, 0 none."""
    line: int = 0
    """Where that was last said."""
    begun: int = 0
    """Line at which it last began to load a root, 0 if that was not seen."""
    loaded: int = 0
    """Line of the entry to the guest after that."""
    inside: int = 0
    """Line of its last entry to the guest, 0 if it has left the guest since or exits are not
    recorded."""
    pid: int = 0
    """The task of that entry."""


@define(eq=False)
class OwedFlush:
    """A range whose translations were taken away: a flush is due."""

    first: int
    count: int
    line: int
    why: str
    doubt: Fact | None = None
    """The fact without which it is not known whether a flush is due at all."""
    given: tuple[Fact, ...] = ()
    """What must be recorded at all for that to be so."""
    requested: int = 0
    """Line at which all vCPUs were asked to flush, without an event of the flush itself, or 0."""
    zapped: bool = True
    """Whether the range is not mapped any more (and not only with fewer rights)."""


@define(eq=False)
class TracedVm:
    """One virtual machine."""

    key: int
    tree: TracedTree = field(factory=TracedTree)
    vcpus: dict[int, TracedVcpu] = field(factory=dict)
    alive: int = 0
    """Line of the first sign that its MMU is at work, 0 before."""
    ended: int = 0
    """Line at which its address space went away: no vCPU can run after that, so nothing needs a
    flush."""
    invalidated: int = 0
    """Line of the last invalidation of all roots."""
    obsolete: dict[int, int] = field(factory=dict)
    """Addresses of invalid roots, with the line that made them so."""
    acknowledged: int = 0
    """Line at which every vCPU had acknowledged that, or 0."""
    slots: list[tuple[int, int, int]] = field(factory=list)
    """(as_id, first gfn, pages), as_id -1 where it is not recorded."""
    dead: list[tuple[int, int, int, int, int]] = field(factory=list)
    """(as_id, first gfn, pages, line of the call, line of its return) of deleted slots whose place
    is still empty."""
    page_offset: int = -1
    """PAGE_OFFSET of the host, once a root's page was seen by both of its addresses."""
    uninit: tuple[int, int] = (0, 0)
    """Line and task of the TDP MMU's end."""
    over: int = 0
    """Line at which that had been done, or 0."""
    vanished: set[int] = field(factory=set)
    """Lines of changes whose reversal had been reported before them."""
    removed_pages: int = 0
    """Tables and roots that were removed, less those that RCU has freed."""
    flushed: int = 0
    """Line of the last flush of all vCPUs by any task."""
    predecessor: bool = False
    """Whether RCU may still free pages of a VM before it that is not known."""

    def vcpu(self, number: int) -> TracedVcpu:
        """The vCPU with this number, made at first sight."""
        found = self.vcpus.get(number)
        if found is None:
            found = self.vcpus[number] = TracedVcpu(number)
        return found


@define(eq=False)
class TracedTask:
    """What one thread of the host is doing."""

    pid: int
    line: int = 0
    """Its last event."""
    previous: tuple[str, str] = ("", "")
    """The function that this event was the entry of, and the event's name."""
    kvm: int = 0
    """Pointer of the VM it works for, 0 while no argument has said it."""
    vm: TracedVm | None = None
    vcpu: int = -1
    frames: list[Frame] = field(factory=list)
    """Functions that it is in, outermost first."""
    fault_root: Root | None = None
    """The root that its last fault was about to map into."""
    owed: list[OwedFlush] = field(factory=list)
    fresh_flush: int = 0
    """Line of a flush since its last SPTE change, or 0."""
    requesting: bool = False
    """Whether its last request to all vCPUs was to flush."""
    asker: str = ""
    """The function that made its last request to all vCPUs, "" if unknown."""
    range_flush: int = 0
    """Line of a flush of a range since then whose range is not recorded, or 0."""
    last_change: tuple[int, int, int, int] | None = None
    """gfn, level, new value, line of its last SPTE change."""
    last_leaf: tuple[int, int, int, int] | None = None
    """The same of the last leaf that it has set."""
    leaf_table: TracedTable | None = None
    """The table of that leaf, if it is known for certain."""
    fault: int = 0
    """Line at which its present fault began to map, or 0."""
    unlinked: deque[tuple[int, int, int]] = field(factory=lambda: deque(maxlen=64))
    """Level, base, line of tables that it has unlinked and not yet announced as removed."""
    emptying: dict[tuple[int, int], TracedTable] = field(factory=dict)
    """(level, first gfn) of the tables that it is removing, with the table."""
    on_valid: bool | None = None
    """Whether its last SPTE change was in a valid root, None if that is unknown."""
    requested: tuple[int, int] | None = None
    """gfn and pfn of kvm_mmu_spte_requested."""
    new_root: Root | None = None
    """The root that it has made and not yet loaded."""
    got: int = 0
    """Pointer of the root that its last next_root returned, or 0."""
    given: int = 0
    """Address of the root that it has asked for and got, where the kernel returns it, else 0."""
    unseen_get: bool = False
    """It has found a root in a way that no event shows, and not yet loaded it."""
    loaded: int = 0
    """Line at which it gave a root to the hardware in the present kvm_mmu_load(), or 0."""
    loading: int = 0
    """Line at which it began to load the root that its vCPU has not entered the guest with yet, or
    0."""
    as_id: int = 0
    """Address space of the present memslot update."""
    invalidated: int = 0
    """Line at which it made the roots invalid and has not yet told the vCPUs, or 0."""
    asked: int = 0
    """Line at which it has asked all vCPUs to drop their roots, or 0."""
    unflushed: tuple[int, int] | None = None
    """Lines of the begin of a kvm_mmu_load() that has not flushed, and of its end or 0."""
    walked: list[tuple[int, int, int]] = field(factory=list)
    """(first gfn, end, line) of what its present invalidation of host memory has walked."""

    def frame(self, name: str) -> Frame | None:
        """The innermost frame of this function that is open."""
        for frame in reversed(self.frames):
            if frame.name == name:
                return frame
        return None

    def named_root(self) -> tuple[Root | None, str]:
        """The root that it has named as the one it works on, with the function that did so."""
        for frame in reversed(self.frames):
            if frame.root is not None:
                return frame.root, frame.name
            if frame.name == "map":
                return self.fault_root, "map"
        return None, ""


@define(eq=False)
class TracedWorld:
    """The shared state of all parts."""

    ledger: CheckLedger = field(factory=CheckLedger)
    detector: Detector = field(factory=Detector)
    forced_kernel: str = ""
    forced_vendor: str = ""
    have: set[str] = field(factory=set)
    """Canonical names, and `name:argument`, of everything seen: what facts can be known from."""
    gaps: list[tuple[int, str]] = field(factory=list)
    notes: list[tuple[int, str]] = field(factory=list)
    """What was not understood and did no harm."""
    tasks: dict[int, TracedTask] = field(factory=dict)
    vms: dict[int, TracedVm] = field(factory=dict)
    cpus: dict[int, int] = field(factory=dict)
    """Line of the last event of each CPU that was not in an interrupt."""
    names: EventNames = field(factory=EventNames)
    _vendor: Vendor | None = None
    mixed: int = 0
    """Line at which it was clear that several VMs are in the recording and nothing tells them
    apart, or 0."""
    wide: bool = False
    """Whether tasks of the whole machine are recorded, and not those of one process only."""
    lossy: bool = False
    """Whether events were lost so far, or the recording begins after its first event."""

    def task(self, pid: int) -> TracedTask:
        """The task with this id, made at first sight."""
        found = self.tasks.get(pid)
        if found is None:
            found = self.tasks[pid] = TracedTask(pid)
        return found

    def vm(self, task: TracedTask) -> TracedVm:
        """The VM that a task works for: its own, or the only one there is."""
        if task.vm is None:
            task.vm = self._find_vm(task)
        return task.vm

    def _find_vm(self, task: TracedTask) -> TracedVm:
        if task.kvm:
            found = self.vms.get(task.kvm)
            if found is not None:
                return found
            if 0 in self.vms and len(self.vms) == 1:
                only = self.vms.pop(0)
                only.key = task.kvm
                self.vms[task.kvm] = only
                return only
        elif len(self.vms) == 1:
            return next(iter(self.vms.values()))
        return self.vms.setdefault(task.kvm, TracedVm(task.kvm))

    @property
    def kernel(self) -> KernelLayout:
        """The layout in force."""
        return LAYOUTS[self.forced_kernel] if self.forced_kernel else self.detector.kernel

    @property
    def kernels(self) -> set[str]:
        """Names of the layouts that are possible."""
        return {self.forced_kernel} if self.forced_kernel else self.detector.kernels

    @property
    def vendor(self) -> Vendor | None:
        """The vendor in force, None while unknown."""
        if self._vendor is None:
            self._vendor = (
                VENDORS[self.forced_vendor] if self.forced_vendor else self.detector.vendor
            )
        return self._vendor

    @property
    def volatile(self) -> int:
        """Bits of a present SPTE that change without an event: accessed, dirty, and what tracking
        access does to Intel's."""
        vendor = self._vendor or self.vendor
        return VOLATILE[vendor.name] if vendor is not None else VOLATILE["AMD"] | VOLATILE["Intel"]

    def held(self, check: str, what: str, times: int = 1) -> None:
        """Count something that was checked and was right."""
        self.ledger.tallies[check].held[what] += times

    def unknown(self, check: str, fact: Fact | str, line: int) -> None:
        """Count something that could not be judged, by the fact that was missing."""
        self.ledger.unknown(check, fact, line)

    def broken(
        self,
        check: str,
        code: str,
        headline: str,
        lines: list[tuple[int, str]],
        *,
        task: str = "",
        rule: str = "",
        absent: frozenset[str] = frozenset(),
        across: bool = False,
        tables: bool = False,
        given: tuple[Fact, ...] = (),
        before: str = "",
    ) -> None:
        """Note a broken rule; the first line is where, the others prove it (see `TraceFinding`)."""
        shown = tuple((line, what) for line, what in lines if line > 0)
        self.ledger.broken(
            TraceFinding(
                check, code, headline, shown, task, rule, absent, across, tables, given, before
            )
        )

    def renew(self, task: TracedTask) -> TracedVm:
        """A new VM begins where another one was."""
        key = task.kvm if task.kvm in self.vms else next(iter(self.vms), task.kvm)
        # the old VM's pages may be freed later
        old = self.vms.get(key)
        waiting = old.removed_pages if old is not None else 0
        unknown = self.lossy or (old is not None and old.alive > 0 and not old.tree.complete)
        self.vms[key] = vm = TracedVm(task.kvm, removed_pages=waiting, predecessor=unknown)
        for other in self.tasks.values():
            other.vm = None
        return vm

    def bind(self, task: TracedTask, kvm: int) -> None:
        """An argument says which VM a task works for."""
        if kvm != task.kvm:
            task.kvm = kvm
            for other in self.tasks.values():
                other.vm = None

    def mix(self, line: int, why: str) -> None:
        """Events of several VMs that nothing tells apart: the tables cannot be rebuilt."""
        self.mixed = line
        self.gap(
            line,
            f"{why}: several VMs, and no kvm= argument tells them apart; record one process, or "
            "with stress trace record",
        )

    def settled(self, line: int, now: int) -> bool:
        """Whether every event that could explain one at `line` must have come by now.

        A CPU between its write of an SPTE and the event of it cannot do anything else, so what it
        has reported since shows that nothing is left.
        """
        if now == FOREVER:
            return True
        if line >= now - HORIZON:
            return False
        return line < now - PATIENCE * HORIZON or all(last > line for last in self.cpus.values())

    def gap(self, line: int, why: str) -> None:
        """Events are missing or out of order here: nothing is known any more."""
        self.gaps.append((line, why))
        self.lossy = True
        self.forget()

    def forget(self) -> None:
        """What was known holds no longer."""
        self.tasks.clear()
        self.vms.clear()


def name_of(event: Event) -> str:
    """The task of an event as reports print it."""
    return f"{event.task}-{event.pid} on CPU {event.cpu}"


def page_of(table: TracedTable) -> str:
    """A table as reports print it."""
    address = f" at {table.address:#x}" if table.address else ""
    return f"the level {table.level} table for gfn {table.base:#x}{address}"
