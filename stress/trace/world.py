"""What `check` knows while it reads: the VMs, the tasks, the checks with what they have seen, and
what broke.

The parts (`stress.trace.parts`) share one `World`. An event of a task is applied to the VM that the
task works for; the recording says which where its probes have a `kvm=` argument, and a recording of
one VM needs no saying.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from attrs import define, evolve, field, frozen

from mmu.numbers.oracles import RULES
from mmu.report import Report, section
from stress.trace.events import Event, ProbeEvent
from stress.trace.layouts import AMD, INTEL, LAYOUTS, VENDORS, Detector, KernelLayout, Vendor
from stress.trace.names import EventNames
from stress.trace.tree import Root, TracedTable, TracedTree

HORIZON: Final = 1000
"""Events within which the event that explains another one must come: an SPTE is written before its
event is emitted, so that another CPU can report a change of the new value first."""
VOLATILE: Final = {
    "AMD": AMD.accessed | AMD.dirty,
    "Intel": INTEL.accessed | INTEL.dirty | 0b101 | 0b111 << 54,
}
"""What hardware, and tracking of accesses without hardware's help, does to a leaf without an
event."""
ACROSS: Final = frozenset(
    {"obsolete-root", "count", "reused-invalid", "lock-left", "tdp-pages", "pages"}
)
"""Codes of violations that rest on the order of events on different CPUs."""
MOST_REPORTS: Final = 40
"""Reports that are kept of one kind; the others are counted."""


@frozen
class Check:
    """One of the things that `check` judges, and what a recording must hold for it."""

    name: str
    rule: str
    title: str
    needs: tuple[frozenset[str], ...]
    """Groups of event names (canonical): of each group, one must have been seen."""
    wants: str
    """The needs in words."""
    source: str


@define(eq=False)
class CheckTally:
    """What a check did so far."""

    held: Counter[str] = field(factory=Counter)
    """How often something was checked and was right, by what it was."""
    broken: int = 0
    unsure: dict[str, int] = field(factory=dict)
    """Why it could not judge something, with the first line of each reason."""


@define(eq=False)
class TracedVcpu:
    """A virtual CPU: what it holds, and when it loaded that."""

    number: int
    root: int = -1
    """Address of its current root; -1 unknown, 0 none."""
    line: int = 0
    """Where that was last said."""
    inside: int = 0
    """Line of its last entry to the guest, 0 if it has left the guest since or exits are not
    recorded."""
    pid: int = 0
    """The task of that entry."""


@define(eq=False)
class TracedVm:
    """One virtual machine."""

    key: int
    tree: TracedTree = field(factory=TracedTree)
    vcpus: dict[int, TracedVcpu] = field(factory=dict)
    ended: int = 0
    """Line at which its address space went away: no vCPU can run after that, so nothing needs a
    flush."""
    invalidated: int = 0
    """Line of the last completed invalidation of all roots."""
    obsolete: dict[int, int] = field(factory=dict)
    """Addresses of invalid roots, with the line that made them so."""
    acknowledged: int = 0
    """Line at which every vCPU had acknowledged that, or 0."""
    slots: dict[tuple[int, int], tuple[int, int]] = field(factory=dict)
    """(as_id, id) -> first gfn and number of pages."""
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

    def vcpu(self, number: int) -> TracedVcpu:
        """The vCPU with this number, made at first sight."""
        found = self.vcpus.get(number)
        if found is None:
            found = self.vcpus[number] = TracedVcpu(number)
        return found


@define(eq=False)
class Owed:
    """A range whose translations were taken away: a flush is due."""

    first: int
    count: int
    line: int
    why: str


@define(eq=False)
class TracedTask:
    """What one thread of the host is doing."""

    pid: int
    line: int = 0
    """Its last event."""
    kvm: int = 0
    """Pointer of the VM it works for, 0 while no argument has said it."""
    vm: TracedVm | None = None
    vcpu: int = -1
    open: dict[str, tuple[Event, ProbeEvent]] = field(factory=dict)
    """Functions that were entered and have not returned, by canonical name."""
    root: Root | None = None
    """The root that it works on, while it says so."""
    placed: bool = False
    """Whether it was seen where it can owe nothing: a task that the recording finds in the middle
    of a zap may have told before it began why its zap needs no flush."""
    owed: list[Owed] = field(factory=list)
    fresh_flush: int = 0
    """Line of a flush since its last SPTE change, or 0."""
    last_change: tuple[int, int, int, int] | None = None
    """gfn, level, new value, line of its last SPTE change."""
    unlinked: deque[tuple[int, int, int]] = field(factory=lambda: deque(maxlen=64))
    """Level, base, line of tables that it has unlinked and not yet announced as removed."""
    requested: tuple[int, int] | None = None
    """gfn and pfn of kvm_mmu_spte_requested."""
    new_root: Root | None = None
    """The root that it has made and not yet loaded."""
    got: int = 0
    """Pointer of the root that its last next_root returned, or 0."""
    unseen_get: bool = False
    """It has found a root in a way that no event shows, and not yet loaded it."""
    loaded: int = 0
    """Line at which it gave a root to the hardware in the present kvm_mmu_load(), or 0."""
    as_id: int = 0
    """Address space of the present memslot update."""
    invalidated: int = 0
    """Line at which it made the roots invalid and has not yet told the vCPUs, or 0."""
    asked: int = 0
    """Line at which it has asked all vCPUs to drop their roots, or 0."""
    flushed_current: int = 0
    """Line of the vCPU's own flush in the present kvm_mmu_load(), or 0."""


@define(eq=False)
class TracedWorld:
    """The shared state of all parts."""

    checks: dict[str, Check]
    detector: Detector = field(factory=Detector)
    forced_kernel: str = ""
    forced_vendor: str = ""
    seen: Counter[str] = field(factory=Counter)
    """Events by canonical name."""
    tallies: dict[str, CheckTally] = field(factory=dict)
    reports: list[tuple[Report, tuple[tuple[int, str], ...]]] = field(factory=list)
    """Each with the lines that prove it, which are filled in at the end."""
    doubts: list[tuple[str, str, str, list[tuple[int, str]], str, str]] = field(factory=list)
    """Violations that depend on the kernel."""
    kinds: Counter[tuple[str, str]] = field(factory=Counter)
    dropped_reports: int = 0
    gaps: list[tuple[int, str]] = field(factory=list)
    tasks: dict[int, TracedTask] = field(factory=dict)
    vms: dict[int, TracedVm] = field(factory=dict)
    only: frozenset[str] = frozenset()
    """The checks that count, empty for all."""
    skewed: bool = False
    """Whether the recording's clock runs differently on different CPUs."""
    names: EventNames = field(factory=EventNames)
    _vendor: Vendor | None = None
    mixed: int = 0
    """Line at which it was clear that several VMs are in the recording and nothing tells them
    apart, or 0."""

    def __attrs_post_init__(self) -> None:
        self.tallies.update({name: CheckTally() for name in self.checks})

    def task(self, pid: int) -> TracedTask:
        """The task with this id, made at first sight."""
        found = self.tasks.get(pid)
        if found is None:
            found = self.tasks[pid] = TracedTask(pid)
        return found

    def vm(self, task: TracedTask) -> TracedVm:
        """The VM that a task works for: its own, or the only one there is."""
        if task.vm is not None:
            return task.vm
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

    def saw(self, group: frozenset[str]) -> bool:
        """Whether any event of a group was in the recording."""
        return any(self.seen[name] for name in group)

    def held(self, check: str, what: str, times: int = 1) -> None:
        """Something was checked and was right."""
        self.tallies[check].held[what] += times

    def unsure(self, check: str, why: str, line: int) -> None:
        """Something could not be judged."""
        self.tallies[check].unsure.setdefault(why, line)

    def broken(
        self,
        check: str,
        code: str,
        headline: str,
        lines: list[tuple[int, str]],
        *,
        task: str = "",
        rule: str = "",
    ) -> None:
        """A rule was broken; the first line is where, the others prove it."""
        if self.skewed and code in ACROSS:
            self.unsure(
                check,
                f"{headline}; but the clocks of the CPUs differ, so this may be no more than their "
                "difference",
                lines[0][0],
            )
            return
        if self.only and check not in self.only:
            return
        about = self.checks[check]
        self.tallies[check].broken += 1
        self.kinds[check, code] += 1
        if self.kinds[check, code] > MOST_REPORTS:
            self.dropped_reports += 1
            return
        rule = rule or about.rule
        report = Report(
            rule=rule,
            code=code,
            headline=f"{RULES[rule].partition(':')[0]}: line {lines[0][0]}: {headline}",
            sentence=about.title,
            source=about.source,
            task=task,
            subject=f"line {lines[0][0]}",
        )
        self.reports.append((report, tuple((line, what) for line, what in lines if line > 0)))

    def renew(self, task: TracedTask) -> TracedVm:
        """A new VM begins where another one was."""
        key = task.kvm if task.kvm in self.vms else next(iter(self.vms), task.kvm)
        # the old VM's pages may be freed later
        waiting = self.vms[key].removed_pages if key in self.vms else 0
        self.vms[key] = vm = TracedVm(task.kvm, removed_pages=waiting)
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

    def doubtful(
        self,
        check: str,
        code: str,
        headline: str,
        lines: list[tuple[int, str]],
        *,
        task: str = "",
        rule: str = "",
    ) -> None:
        """A rule was broken, if this is a kernel of which the rule is known: that shows later."""
        self.doubts.append((check, code, headline, lines, task, rule))

    def resolve(self) -> None:
        """The recording is over: which kernel it is of is as clear as it gets."""
        doubts, self.doubts = self.doubts, []
        for check, code, headline, lines, task, rule in doubts:
            kernels = {self.forced_kernel} if self.forced_kernel else self.detector.kernels
            if "7.2" not in kernels:
                self.broken(check, code, headline, lines, task=task, rule=rule)
            elif kernels != {"7.2"}:
                self.unsure(
                    check,
                    f"{headline}; whether that is wrong depends on the kernel: give it with "
                    "--kernel",
                    lines[0][0],
                )

    def gap(self, line: int, why: str) -> None:
        """Events are missing or out of order here: nothing is known any more."""
        self.gaps.append((line, why))
        self.forget()

    def forget(self) -> None:
        """What was known holds no longer."""
        self.tasks.clear()
        self.vms.clear()


def with_lines(report: Report, lines: tuple[tuple[int, str], ...], texts: dict[int, str]) -> Report:
    """The report with the lines that prove it, as they stand in the recording."""
    shown = [
        f"{line:>8}  {what}\n{'':>11}{texts.get(line, '')}"
        if texts.get(line)
        else f"{line:>8}  {what}"
        for line, what in lines
    ]
    return evolve(
        report, sections=(section("lines of the recording", "\n".join(shown).splitlines()),)
    )


def name_of(event: Event) -> str:
    """The task of an event as reports print it."""
    return f"{event.task}-{event.pid} on CPU {event.cpu}"


def page_of(table: TracedTable) -> str:
    """A table as reports print it."""
    address = f" at {table.address:#x}" if table.address else ""
    return f"the level {table.level} table for gfn {table.base:#x}{address}"
