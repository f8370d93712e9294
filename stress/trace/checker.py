"""`stress trace check`: read a recording once, rebuild what happened, and judge it.

    result = check(path)            # CheckResult: judgement, reports, tallies, counts, layout
    result.judgement.verdict.exit_code

The checker keeps the frames of each task (functions entered and not returned from), hands each
event to the parts that asked for it, and draws the verdict: FAIL if a rule was broken, PASS only if
something was checked and nothing that was needed is missing, INCONCLUSIVE otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from attrs import define, field

from mmu.report import Report
from stress.results.verdict import Judgement, Verdict, conclude
from stress.trace.events import (
    DAMAGE,
    MISSING,
    NOTICES,
    ORDER,
    ORDERED,
    PARSERS,
    RECORDING,
    Event,
    FieldError,
    Function,
    ProbeEvent,
    Text,
    TraceError,
    parse_probe,
)
from stress.trace.facts import CHANGES, PAGES, Check
from stress.trace.frames import ENTRY, EXITS, INSIDE, OUTSIDE, enter, leave, pass_inside
from stress.trace.layouts import ALIASES, LAYOUTS, VENDORS, Clue
from stress.trace.ledger import CheckTally, TraceFinding, with_lines
from stress.trace.parts.flushes import FlushesPart
from stress.trace.parts.freezing import Freezing
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.parts.roots import RootsPart
from stress.trace.parts.slots import SlotsPart
from stress.trace.parts.sptes import SptesPart
from stress.trace.parts.statistics import StatisticsPart, stored_statistics
from stress.trace.parts.values import ValuesPart
from stress.trace.parts.vcpus import VcpusPart
from stress.trace.reader import ReadCounts, TraceReader
from stress.trace.summary import BY_NAME, COUNTED, Summary
from stress.trace.world import FOREVER, TracedTask, TracedWorld

INTERRUPTED: Final = frozenset("hHszZ")
"""Flags of hard and soft interrupts: the task is only the one that was interrupted."""
ORDER_OF_EVENTS: Final = "the order of the events"
TICK: Final = 256
"""Events between two looks at what has waited too long."""

ORDER_OF_CHECKS: Final = (
    "slots",
    "transitions",
    "frozen",
    "flushes",
    "roots",
    "tables",
    "statistics",
    "obsolete",
)
HARMLESS: Final = frozenset(
    {
        "kvm_mmu_spte_requested",
        "kvm_mmu_set_spte",
        "mark_mmio_spte",
        "check_mmio_spte",
        "kvm_page_fault",
        "kvm_exit",
        "kvm_unmap_hva_range",
        "fast_page_fault",
    }
)
"""Events whose payload may be of a format that is not known: less can be judged without them, and
nothing becomes wrong."""
OF_THE_MACHINE: Final = ("<idle>", "ksoftirqd", "rcu", "kworker", "khugepaged", "kswapd", "ksmd")
"""Beginnings of the names of tasks that are recorded only where all of the machine is."""


@define
class CheckResult:
    """What one recording has shown."""

    origin: str
    judgement: Judgement
    reports: tuple[Report, ...]
    lines: tuple[int, ...]
    """The line of each report."""
    dropped_reports: int
    checks: tuple[Check, ...]
    tallies: dict[str, CheckTally]
    missing: dict[str, str]
    """What a check would have needed, for those that could not judge."""
    counts: ReadCounts
    summary: dict[str, int]
    clues: tuple[Clue, ...]
    layout: str
    vendor: str
    have: frozenset[str] = frozenset()
    """Canonical names, and `name:argument`, of what the recording holds."""
    gaps: tuple[tuple[int, str], ...] = field(default=())
    notes: tuple[tuple[int, str], ...] = field(default=())
    """What was not understood, and did no harm."""


@define(eq=False)
class EventPlan:
    """What to do with the events of one name."""

    canonical: str
    parse: Callable[[str], Any]
    probe: bool
    """Whether the payload is that of a probe."""
    entry: str = ""
    """The function that is entered here, if it makes a frame."""
    inside: str = ""
    """The function that is passed through here."""
    ret: str = ""
    """The function that is left here."""
    outside: bool = False
    """Whether the task is in no function here."""
    counted: bool = False
    plain: bool = False
    """Whether nobody needs to know what the payload says."""
    before: tuple[Handler, ...] = ()
    handlers: tuple[Handler, ...] = ()
    key: tuple[str, str] = ("", "")
    """The function that is entered, or else the canonical name, and the event's own name."""
    quick: Callable[[Event, TracedTask], bool] | None = None
    """Deals with what comes most, and returns whether it has."""

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return not (
            self.entry or self.inside or self.ret or self.outside or self.handlers or self.counted
        )


IDLE: Final = EventPlan("", Text, probe=False)
"""The plan for events that nobody wants."""


class Checker:
    """Feed it events in the order of the recording, then ask for the result."""

    def __init__(
        self,
        *,
        kernel: str = "auto",
        vendor: str = "auto",
        statistics: str = "",
        only: frozenset[str] = frozenset(),
    ) -> None:
        self.world = world = TracedWorld()
        world.ledger.tallies.update({name: CheckTally() for name in ORDER_OF_CHECKS})
        self.parts: list[CheckPart] = [
            RootsPart(world),
            ValuesPart(world),
            SptesPart(world),
            SlotsPart(world),
            FlushesPart(world),
            VcpusPart(world),
            StatisticsPart(world, stored_statistics(statistics)),
        ]
        checks = {check.name: check for part in self.parts for check in part.checks}
        world.ledger.checks.update({name: checks[name] for name in ORDER_OF_CHECKS})
        self.only = only
        world.forced_kernel = "" if kernel == "auto" else layout_name(kernel)
        world.forced_vendor = "" if vendor == "auto" else vendor_name(vendor)
        self.summary = Summary()
        self._handlers = _by_name(self.parts, lambda part: part.handlers())
        self._before = _by_name(self.parts, lambda part: part.before())
        self._plans: dict[str, EventPlan] = {}
        self._rare: dict[tuple[str, bool], EventPlan] = {}
        self._freezing = Freezing(world)
        self._quicks = {"kvm_tdp_mmu_spte_changed": self._quick}
        self._event = Event(0, -1, 0, "", 0, "", "", "")
        world.ledger.clock = lambda: self._event.time
        self._whole = True
        self._blind = False
        self._late = FOREVER
        self._until_tick = TICK

    def feed(self, event: Event) -> bool:
        """Take one event. Returns False if no event of this name will ever matter."""
        line, cpu, pid, _, _, flags, name, text = event
        plan = self._plans.get(name)
        if plan is None or plan.probe is not (text[:1] == "("):
            if name in NOTICES:
                self._notice(event)
                return True
            plan = self._plan(event)
        if self._blind:
            self._retract(event)
            return True
        world = self.world
        self._event = event
        if plan is IDLE:
            return False
        task = world.tasks.get(pid) or self._new_task(event)
        quick = plan.quick
        if quick is None or world.mixed or not quick(event, task):
            try:
                self._dispatch(event, plan, task)
            except FieldError as error:
                self._misread(event, error)
        if flags[2:3] not in INTERRUPTED:
            task.line = world.cpus[cpu] = line
            task.previous = plan.key
        self._until_tick -= 1
        if not self._until_tick:
            self._until_tick = TICK
            for part in self.parts:
                part.tick(line)
        return True

    def _plan(self, event: Event) -> EventPlan:
        """Learn what an event is that comes for the first time."""
        world, name, text = self.world, event.name, event.text
        probe = text[:1] == "("
        known = self._rare.get((name, probe))
        if known is not None:
            return known
        canonical = world.names.of(event)
        plan = self._make_plan(canonical, name, probe=probe)
        if not self._blind:
            world.have.add(canonical)
            world.detector.see_event(event)
            if probe:
                try:
                    world.have.update(f"{canonical}:{arg}" for arg in parse_probe(text).args)
                except FieldError:
                    return plan
            if name not in self._plans:
                self._plans[name] = plan
            elif len(self._rare) < 10_000:
                self._rare[name, probe] = plan
        return plan

    def _make_plan(self, canonical: str, name: str, *, probe: bool) -> EventPlan:
        if name.endswith("()"):
            base = name[:-2]
            parse: Callable[[str], Any] = lambda text: Function(base, text)  # noqa: E731
        else:
            parse = parse_probe if probe else PARSERS.get(name, Text)
        plan = EventPlan(
            canonical,
            parse,
            probe,
            entry=ENTRY.get(canonical, ""),
            inside=INSIDE.get(canonical, ""),
            ret=EXITS.get(canonical, ""),
            outside=canonical in OUTSIDE,
            counted=canonical in COUNTED,
            before=tuple(self._before.get(canonical, ())),
            handlers=tuple(self._handlers.get(canonical, ())),
            key=(ENTRY.get(canonical, canonical), name),
            quick=self._quicks.get(canonical),
        )
        plan.plain = not (
            probe or plan.handlers or plan.before or (plan.counted and canonical not in BY_NAME)
        )
        if plan.plain and plan.entry and not plan.counted:
            plan.quick = self._enter_only(plan)
        return IDLE if plan.idle else plan

    @staticmethod
    def _enter_only(plan: EventPlan) -> Callable[[Event, TracedTask], bool]:
        """What to do where a function is entered and nobody wants to know more."""
        entry, key = plan.entry, plan.key

        def opened(event: Event, task: TracedTask) -> bool:
            previous = task.previous
            if previous[0] != entry or previous[1] == key[1] or not task.frames:
                enter(task.frames, entry, event.line, None, again=False)
            return True

        return opened

    def _quick(self, event: Event, task: TracedTask) -> bool:
        """The entries of a table that is emptied, most of which hold nothing."""
        return bool(task.emptying) and self._freezing.empty_entry(event, task)

    def _new_task(self, event: Event) -> TracedTask:
        if event.task.startswith(OF_THE_MACHINE):
            self.world.wide = True
        return self.world.task(event.pid)

    def _dispatch(self, event: Event, plan: EventPlan, task: TracedTask) -> None:
        """Open or close the frame, and let every part that wants the event have it."""
        fields: Any = None if plan.plain else plan.parse(event.text)
        if plan.counted:
            self.summary.see(plan.canonical, event, fields)
        if self.world.mixed and plan.canonical != "kvm_tdp_mmu_spte_changed":
            return
        if plan.probe and "kvm" in fields.args:
            self.world.bind(task, fields.number("kvm"))
        for handler in plan.before:
            handler(event, task, fields)
        if self._repeats(event, plan, task, fields):
            return
        if plan.inside:
            pass_inside(task.frames, plan.inside, event.line)
        elif plan.outside and task.frames:
            task.frames.clear()
        for handler in plan.handlers:
            handler(event, task, fields)
        if plan.ret:
            leave(task.frames, plan.ret)

    def _repeats(self, event: Event, plan: EventPlan, task: TracedTask, fields: Any) -> bool:
        """Open the frame of an entry. Returns whether this is one more event of the same entry, or
        of the same return, that says nothing new."""
        before, other = task.previous
        if plan.entry:
            again = before == plan.entry and other != event.name
            if again and self._adds_nothing(task, fields):
                return True
            enter(task.frames, plan.entry, event.line, fields, again=again)
            return False
        return bool(plan.ret) and before == plan.canonical and other != event.name

    @staticmethod
    def _adds_nothing(task: TracedTask, fields: Any) -> bool:
        """Whether this is another probe of an entry, with arguments that are all known."""
        if not task.frames:
            return False
        return type(fields) is ProbeEvent and fields.args.keys() <= task.frames[-1].args.keys()

    def _misread(self, event: Event, error: FieldError) -> None:
        """A payload that is not of the format that is known."""
        why = f"{event.name}: {error}"
        if event.name in HARMLESS:
            if not any(text.startswith(f"{event.name}: ") for _, text in self.world.notes):
                self.world.notes.append((event.line, why))
        else:
            self._lose(event.line, why, whole=True)

    def _notice(self, event: Event) -> None:
        """The reader's own events: from here on less is known."""
        if event.name == RECORDING:
            self._blind = False
            if self.world.have:
                self._end_recording(whole=True)
                self.world.forget()
                self.world.lossy = False
            return
        if event.name == MISSING:
            self.world.gaps.append((event.line, event.text))
            return
        self._blind = event.name == ORDER
        self._late = FOREVER
        if event.name == ORDERED:
            self.world.forget()
        else:
            self._lose(event.line, event.text, whole=event.name != DAMAGE)

    def _retract(self, late: Event) -> None:
        """An event that comes after later ones: what was found at those may rest on its absence."""
        if late.time < self._late:
            self._late = late.time
            self.world.ledger.retract(late.time, ORDER_OF_EVENTS)

    def _lose(self, line: int, why: str, *, whole: bool) -> None:
        self._whole = self._whole and whole
        for part in self.parts:
            part.tick(line)
            part.forget()
        self.world.gap(line, why)

    def _end_recording(self, *, whole: bool) -> None:
        for part in self.parts:
            part.finish(FOREVER if whole else self._event.line, whole=whole)

    def result(self, reader: TraceReader, path: Path | None) -> CheckResult:
        """The recording is over: judge what waits, and put everything together."""
        world, ledger = self.world, self.world.ledger
        self._end_recording(whole=self._whole)
        self._freezing.tally()
        self.summary.count("frozen", self._freezing.count)
        findings = self._standing(reader.counts)
        ledger.count_broken(findings)
        wanted = [
            check for check in ledger.checks.values() if not self.only or check.name in self.only
        ]
        missing = {
            check.name: check.wants(world.have) for check in wanted if not check.judges(world.have)
        }
        texts = (
            read_lines(path, {line for each in findings for line, _ in each.lines})
            if path and findings
            else {}
        )
        return CheckResult(
            origin=reader.origin,
            judgement=self._judge(missing, reader.counts),
            reports=tuple(
                with_lines(ledger.report(finding), finding.lines, texts) for finding in findings
            ),
            lines=tuple(finding.lines[0][0] for finding in findings),
            dropped_reports=ledger.dropped,
            checks=tuple(wanted),
            tallies=ledger.tallies,
            missing=missing,
            counts=reader.counts,
            summary=self.summary.as_dict(),
            clues=tuple(world.detector.clues),
            layout=self._layout(),
            vendor=world.vendor.name if world.vendor else "vendor unknown",
            have=frozenset(world.have),
            gaps=tuple(world.gaps),
            notes=tuple(world.notes),
        )

    def _standing(self, counts: ReadCounts) -> list[TraceFinding]:
        """The findings that stand, now that the whole recording is known; the others become what
        could not be told."""
        ledger = self.world.ledger
        standing = []
        for finding in ledger.findings:
            if self.only and finding.check not in self.only:
                continue
            doubt = self._doubt(finding, counts)
            if doubt is None:
                standing.append(finding)
            elif doubt:
                ledger.unknown(finding.check, doubt, finding.lines[0][0])
        return sorted(standing, key=lambda finding: finding.lines[0][0])

    def _doubt(self, finding: TraceFinding, counts: ReadCounts) -> str | None:
        """Why a finding does not stand: the fact that is missing, "" if it is none, None if it
        stands."""
        have, kernels = self.world.have, self.world.kernels
        if not all(fact.known_from(have) for fact in finding.given):
            return ""
        if finding.tables and not (PAGES.known_from(have) and CHANGES.known_from(have)):
            return PAGES.name
        if finding.before and finding.before in kernels:
            return "" if len(kernels) == 1 else "the kernel (give it with --kernel)"
        return self._lost(finding, counts)

    def _lost(self, finding: TraceFinding, counts: ReadCounts) -> str | None:
        """The part of a recording that a finding rests on, and that this one lacks; None if
        nothing."""
        world = self.world
        if world.mixed and (finding.tables or finding.across):
            return "which VM an event is of"
        if finding.across and counts.skewed:
            return "the order of events on different CPUs, whose clocks differ"
        lost = counts.announced - counts.events
        if finding.absent and lost >= max(1, len(finding.absent & world.have)):
            return f"what the {lost} missing lines were"
        return None

    def _layout(self) -> str:
        world = self.world
        if world.forced_kernel:
            return f"{world.forced_kernel} (given)"
        if not world.detector.clues:
            return "unknown (no entry that maps nothing was seen)"
        return " or ".join(
            sorted(world.detector.kernels, key=lambda name: [int(part) for part in name.split(".")])
        )

    def _judge(self, missing: dict[str, str], counts: ReadCounts) -> Judgement:
        """FAIL needs a broken rule; PASS needs that something was checked, and that nothing was
        missing."""
        tallies = {
            name: tally
            for name, tally in self.world.ledger.tallies.items()
            if not self.only or name in self.only
        }
        reasons: list[tuple[Verdict, str]] = []
        broken = sum(tally.broken for tally in tallies.values())
        if broken:
            reasons.append((Verdict.FAIL, f"{broken} violation{'s' if broken > 1 else ''}"))
        for line, why in self.world.gaps[:1]:
            more = (
                f" (and {len(self.world.gaps) - 1} more places)" if len(self.world.gaps) > 1 else ""
            )
            reasons.append((Verdict.INCONCLUSIVE, f"line {line}: {why}{more}"))
        if missing:
            reasons.append(
                (Verdict.INCONCLUSIVE, f"not recorded: what {', '.join(missing)} would need")
            )
        for name, tally in tallies.items():
            reasons += [
                (
                    Verdict.INCONCLUSIVE,
                    f"{name}: cannot tell {unknown.count:,} times (first in line "
                    f"{unknown.line}): not known is {fact}",
                )
                for fact, unknown in tally.unsure.items()
            ]
        held = sum(sum(tally.held.values()) for tally in tallies.values())
        if not held:
            reasons.append(
                (Verdict.INCONCLUSIVE, f"nothing was checked in {counts.events:,} events")
            )
        checked = [name for name, tally in tallies.items() if tally.held]
        return conclude(reasons, f"{held:,} checks of {len(checked)} kinds held, none was broken")


def _by_name(
    parts: list[CheckPart], handlers_of: Callable[[CheckPart], dict[str, Handler]]
) -> dict[str, list[Handler]]:
    """The handlers of all parts, in their order, by the event that they want."""
    found: dict[str, list[Handler]] = {}
    for part in parts:
        for name, handler in handlers_of(part).items():
            found.setdefault(name, []).append(handler)
    return found


def check(
    path: Path,
    *,
    kernel: str = "auto",
    vendor: str = "auto",
    log: Path | None = None,
    only: frozenset[str] = frozenset(),
) -> CheckResult:
    """Check the recording in a file (`-` is stdin); `log` holds the workload's statistics, `only`
    names the checks that count (empty: all). Raises `TraceError`."""
    checker = Checker(kernel=kernel, vendor=vendor, statistics=read_log(path, log), only=only)
    reader = TraceReader.open(path)
    for event in reader:
        if not checker.feed(event):
            reader.ignore.add(event.name)
    return checker.result(reader, path if str(path) != "-" else None)


def read_log(path: Path, log: Path | None) -> str:
    """The workload's log: the given file, or the one beside the recording (`NAME.log` for
    `NAME.trace.xz`)."""
    beside = path.with_name(path.name.partition(".trace")[0] + ".log")
    if log is None and not (".trace" in path.name and beside.is_file()):
        return ""
    file = log or beside
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TraceError(f"{file}: cannot be read: {error.strerror}") from None


def read_lines(path: Path, wanted: set[int]) -> dict[int, str]:
    """The text of some lines of a recording, read a second time."""
    return {event.line: line_of(event) for event in TraceReader.open(path) if event.line in wanted}


def line_of(event: Event) -> str:
    """An event as tracefs prints it, without the padding."""
    head = f"{event.task}-{event.pid} [{event.cpu:03d}] {event.flags} {event.time}: "
    return head + (
        f"{event.name[:-2]} <-{event.text}" if event.function else f"{event.name}: {event.text}"
    )


def layout_name(name: str) -> str:
    """The layout of a kernel version."""
    known = ALIASES.get(name, name)
    if known not in LAYOUTS:
        raise TraceError(
            f"--kernel: there is no SPTE layout {name!r}; there are auto, "
            f"{', '.join([*LAYOUTS, *ALIASES])}"
        )
    return known


def vendor_name(name: str) -> str:
    """The vendor of a CPU."""
    if name.lower() not in VENDORS:
        raise TraceError(
            f"--vendor: there is no vendor {name!r}; there are auto, {', '.join(VENDORS)}"
        )
    return name.lower()
