"""`stress trace check`: read a recording once, rebuild what happened, and judge it.

    result = check(path)            # CheckResult: judgement, reports, tallies, counts, layout
    result.judgement.verdict.exit_code

The checker keeps the frames of each task (functions entered and not returned from), hands each
event to the parts that asked for it, and draws the verdict: FAIL if a rule was broken, PASS only if
something was checked, nothing was missing and nothing was lost, INCONCLUSIVE otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attrs import define, field

from mmu.report import Report
from stress.results.verdict import Judgement, Verdict, conclude
from stress.trace.events import (
    DAMAGE,
    MISSING,
    NOTICES,
    ORDER,
    ORDERED,
    RECORDING,
    Event,
    FieldError,
    ProbeEvent,
    TraceError,
)
from stress.trace.layouts import ALIASES, LAYOUTS, VENDORS, Clue
from stress.trace.parts.flushes import FlushesPart
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.parts.roots import RootsPart
from stress.trace.parts.slots import SlotsPart
from stress.trace.parts.sptes import SptesPart
from stress.trace.parts.statistics import StatisticsPart, stored_statistics
from stress.trace.parts.vcpus import VcpusPart
from stress.trace.reader import ReadCounts, TraceReader
from stress.trace.summary import COUNTED, Summary
from stress.trace.world import Check, CheckTally, TracedTask, TracedWorld, with_lines

TICK: Final = 256
"""Events between two looks at what has waited too long."""

FRAMES: Final = frozenset(
    {
        "alloc_root",
        "next_root",
        "zap_root",
        "zap_leafs",
        "unmap_gfn_range",
        "zap_all_fast",
        "zap_invalidated_roots",
        "set_memslot",
        "mn_start",
        "map",
        "mmu_load",
    }
)
"""Functions whose entry opens a frame and whose return closes it."""

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
    gaps: tuple[tuple[int, str], ...] = field(default=())


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
        parts_of: list[type[CheckPart]] = [RootsPart, SptesPart, SlotsPart, FlushesPart, VcpusPart]
        self.world = TracedWorld({})
        parts: list[CheckPart] = [make(self.world) for make in parts_of]
        parts.append(StatisticsPart(self.world, stored_statistics(statistics)))
        self.parts = parts
        checks = {check.name: check for part in parts for check in part.checks}
        self.world.checks.update({name: checks[name] for name in ORDER_OF_CHECKS})
        self.world.tallies.update({name: CheckTally() for name in ORDER_OF_CHECKS})
        self.world.only = only
        self.world.forced_kernel = "" if kernel == "auto" else layout_name(kernel)
        self.world.forced_vendor = "" if vendor == "auto" else vendor_name(vendor)
        self.summary = Summary()
        self._handlers: dict[str, list[Handler]] = {}
        for part in parts:
            for name, handler in part.handlers().items():
                self._handlers.setdefault(name, []).append(handler)
        self._known = {*self._handlers, *FRAMES, *(f"{name}_ret" for name in FRAMES), *COUNTED}
        self._line = 0
        self._whole = True
        self._blind = False
        self._until_tick = TICK

    def feed(self, event: Event) -> bool:
        """One event; False says that nothing of this name will ever matter."""
        if event.name in NOTICES:
            self._notice(event)
            return True
        if self._blind:
            return True
        world, line = self.world, event.line
        self._line = line
        name = world.names.of(event)
        world.seen[name] += 1
        if name not in self._known:
            return False
        task = world.tasks.get(event.pid) or world.task(event.pid)
        try:
            self._dispatch(event, name, task)
        except FieldError as error:
            self._lose(line, f"{event.name}: {error}", whole=True)
        if not event.in_interrupt:
            task.line = line
        self._until_tick -= 1
        if not self._until_tick:
            self._until_tick = TICK
            for part in self.parts:
                part.tick(line)
        return True

    def _dispatch(self, event: Event, name: str, task: TracedTask) -> None:
        """Open or close the frame, and let every part that wants the event have it."""
        fields = event.fields()
        self.summary.see(name, event, fields)
        if self.world.mixed and name != "kvm_tdp_mmu_spte_changed":
            return
        if type(fields) is ProbeEvent:
            if "kvm" in fields.args:
                self.world.bind(task, fields.number("kvm"))
            if name in FRAMES:
                task.open[name] = (event, fields)
        for handler in self._handlers.get(name, ()):
            handler(event, task, fields)
        if name.endswith("_ret"):
            task.open.pop(name[:-4], None)

    def _notice(self, event: Event) -> None:
        """The reader's own events: from here on less is known."""
        if event.name == RECORDING:
            self._blind = False
            if self.world.seen:
                self._end_recording(whole=True)
                self.world.forget()
            return
        if event.name == MISSING:
            self.world.gaps.append((event.line, event.text))
            return
        self._blind = event.name == ORDER
        if event.name == ORDERED:
            self.world.forget()
        else:
            self._lose(event.line, event.text, whole=event.name != DAMAGE)

    def _lose(self, line: int, why: str, *, whole: bool) -> None:
        self._whole = self._whole and whole
        for part in self.parts:
            part.tick(line)
            part.forget()
        self.world.gap(line, why)

    def _end_recording(self, *, whole: bool) -> None:
        for part in self.parts:
            part.finish(self._line, whole=whole)

    def result(self, reader: TraceReader, path: Path | None) -> CheckResult:
        """The recording is over: judge what waits, and put everything together."""
        world = self.world
        self._end_recording(whole=self._whole)
        world.resolve()
        wanted = [
            check for check in world.checks.values() if not world.only or check.name in world.only
        ]
        missing = {
            check.name: check.wants
            for check in wanted
            if not all(world.saw(group) for group in check.needs)
        }
        order = sorted(
            range(len(world.reports)),
            key=lambda index: world.reports[index][1][0][0] if world.reports[index][1] else 0,
        )
        proofs = [world.reports[index] for index in order]
        texts = (
            read_lines(path, {line for _, lines in proofs for line, _ in lines})
            if path and proofs
            else {}
        )
        return CheckResult(
            origin=reader.origin,
            judgement=self._judge(missing, reader.counts),
            reports=tuple(with_lines(report, lines, texts) for report, lines in proofs),
            lines=tuple(lines[0][0] for _, lines in proofs),
            dropped_reports=world.dropped_reports,
            checks=tuple(wanted),
            tallies={check.name: world.tallies[check.name] for check in wanted},
            missing=missing,
            counts=reader.counts,
            summary=self.summary.as_dict(),
            clues=tuple(world.detector.clues),
            layout=self._layout(),
            vendor=world.vendor.name if world.vendor else "unknown",
            gaps=tuple(world.gaps),
        )

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
            for name, tally in self.world.tallies.items()
            if not self.world.only or name in self.world.only
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
                (Verdict.INCONCLUSIVE, f"{name}: line {line}: {why}")
                for why, line in tally.unsure.items()
            ]
        held = sum(sum(tally.held.values()) for tally in tallies.values())
        if not held:
            reasons.append(
                (Verdict.INCONCLUSIVE, f"nothing was checked in {counts.events:,} events")
            )
        checked = [name for name, tally in tallies.items() if tally.held]
        return conclude(reasons, f"{held:,} checks of {len(checked)} kinds held, none was broken")


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
        checker.world.skewed = reader.counts.skewed > 0
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
