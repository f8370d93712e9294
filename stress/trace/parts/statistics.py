"""Page statistics: KVM's own counts agree with the tables and leaves that its events add up to
(O9)."""

from __future__ import annotations

import re
from typing import Final

from attrs import define

from stress.trace.events import Event, ProbeEvent
from stress.trace.facts import BEGINNING, CHANGES, COUNTS, Check, CheckRule
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.world import HORIZON, PATIENCE, TracedTask, TracedVm, TracedWorld, name_of

STATISTICS: Final = Check(
    name="statistics",
    rule="O9",
    title=(
        "KVM's counts of tables and pages agree with the tables and leaves that its events add up "
        "to"
    ),
    rules=(
        CheckRule(
            "tdp-pages",
            "O9",
            "KVM's counts of tables and pages agree with its events",
            (CHANGES, BEGINNING, COUNTS),
        ),
    ),
    source=(
        "arch/x86/kvm/mmu/tdp_mmu.c, kvm_update_page_stats(), tdp_account_mmu_page(); reference "
        "3.2, I13"
    ),
)
PAGES: Final = re.compile(r"pages_(4k|2m|1g)=(\d{1,15})")
READ: Final = re.compile(r"statistics of (\d{1,10}) ")
"""What `stress trace record` writes before and after it reads the counts of a VM."""
RECENT: Final = 50
"""Lines within which another task's table may not have been counted yet."""
LEVELS: Final = {"4k": 1, "2m": 2, "1g": 3}


@define(eq=False)
class StatisticsRead:
    """Statistics that user space is reading, with what the events say meanwhile."""

    event: Event
    vm: TracedVm
    said: dict[int, int]
    counted: list[dict[int, int]]


class StatisticsPart(CheckPart):
    """Compares where KVM says how many there are."""

    checks = (STATISTICS,)

    def __init__(self, world: TracedWorld, stored: dict[str, dict[str, int]]) -> None:
        super().__init__(world)
        self._stored = stored
        self._waiting: dict[int, StatisticsRead] = {}

    def handlers(self) -> dict[str, Handler]:
        """Probes that carry tdp_mmu_pages; markers that carry, or point to, page statistics."""
        names = ("zap_all_fast", "zap_invalidated_roots", "uninit_tdp")
        return {
            **dict.fromkeys(names, self.tables),
            "tracing_mark_write": self.marker,
            "kvm_tdp_mmu_spte_changed": self.changed,
        }

    def tables(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """tdp_mmu_pages: tables below the roots. A link counts after its event, so other tasks'
        last links may be missing."""
        said = probe.number("tdp_pages", -1)
        vm = self.world.vm(task)
        if said < 0 or not vm.tree.complete:
            if said >= 0:
                self.world.unknown("statistics", BEGINNING, event.line)
            return
        underway = sum(
            1
            for other in self.world.tasks.values()
            if other is not task
            and other.last_change is not None
            and other.last_change[1] > 1
            and other.last_change[3] > event.line - RECENT
        )
        if abs(said - vm.tree.linked) <= underway:
            self.world.held("statistics", "counts of tables (tdp_mmu_pages)")
        else:
            headline = f"KVM counts {said} tables, the events add up to {vm.tree.linked}"
            self.world.broken(
                "statistics",
                "tdp-pages",
                headline,
                [(event.line, f"tdp_mmu_pages is {said}")],
                task=name_of(event),
                absent=frozenset({"kvm_tdp_mmu_spte_changed"}),
                across=True,
                tables=True,
                given=(CHANGES,),
            )

    def marker(self, event: Event, task: TracedTask, _said: object) -> None:
        """`statistics of PID begin`, then `statistics of PID end pages_4k=6 ...`; or `MK stats TAG`
        with the values in the workload's log.

        They are read between this marker and the task's next one, during which a running vCPU may
        change the counts.
        """
        said = {LEVELS[name]: int(value) for name, value in PAGES.findall(event.text)}
        waiting = self._waiting.pop(event.pid, None)
        if waiting is not None:
            waiting.said = waiting.said or said
            self._compare(waiting)
        if READ.match(event.text):
            if not said:
                self._wait(event, self._vm_of(task, event.text), said)
            return
        if not said and " stats " in event.text:
            stored = self._stored.get(event.text.rpartition(" stats ")[2].strip(), {})
            said = {
                level: stored[f"pages_{name}"]
                for name, level in LEVELS.items()
                if f"pages_{name}" in stored
            }
        if said:
            self._wait(event, self.world.vm(task), said)

    def _vm_of(self, task: TracedTask, text: str) -> TracedVm | None:
        """The VM whose counts a task that does not work for it reads."""
        vms, found = self.world.vms, READ.match(text)
        owner = self.world.tasks.get(int(found[1])) if found else None
        if owner is None:
            return None
        if owner.kvm:
            return vms.get(owner.kvm)
        return next(iter(vms.values())) if len(vms) == 1 else None

    def _wait(self, event: Event, vm: TracedVm | None, said: dict[int, int]) -> None:
        """Remember what the events add up to while the counts are read."""
        if vm is None or vm.over:
            return
        self.world.have.add("statistics")
        if not vm.tree.complete:
            self.world.unknown("statistics", BEGINNING, event.line)
        elif not self._underway(event):
            self._waiting[event.pid] = StatisticsRead(event, vm, said, [dict(vm.tree.leaves)])

    def _underway(self, event: Event) -> bool:
        """Whether a change was reported that may not have been counted yet: its task has done
        nothing since."""
        return any(
            pid != event.pid
            and task.last_change is not None
            and task.last_change[3] == task.line > event.line - PATIENCE * HORIZON
            for pid, task in self.world.tasks.items()
        )

    def changed(self, _event: Event, _task: TracedTask, _said: object) -> None:
        """The counts change while somebody reads them."""
        for waiting in self._waiting.values():
            waiting.counted.append(dict(waiting.vm.tree.leaves))

    def _compare(self, waiting: StatisticsRead) -> None:
        if not waiting.said:
            return
        for level, value in waiting.said.items():
            counted = {leaves[level] for leaves in waiting.counted}
            if min(counted) <= value <= max(counted):
                continue
            headline = (
                f"KVM counts {value} pages of level {level}, the events add up to "
                f"{' or '.join(map(str, sorted(counted)[:3]))}"
            )
            lines = [(waiting.event.line, "the count was taken here")]
            self.world.broken(
                "statistics",
                "pages",
                headline,
                lines,
                task=name_of(waiting.event),
                absent=frozenset({"kvm_tdp_mmu_spte_changed"}),
                across=True,
                tables=True,
                given=(CHANGES,),
            )
            return
        self.world.held("statistics", "counts of pages by size")

    def forget(self) -> None:
        """Nothing is known any more."""
        self._waiting.clear()

    def finish(self, line: int, *, whole: bool) -> None:
        """What was read before the end counts."""
        for waiting in self._waiting.values():
            self._compare(waiting)
        self.forget()


def stored_statistics(text: str) -> dict[str, dict[str, int]]:
    """`NAME STATS tag=TAG who=vm pages_4k=... ...` lines of a workload's log, by tag; a tag that
    comes twice is left out."""
    found: dict[str, dict[str, int]] = {}
    twice = set()
    for line in text.splitlines():
        if " STATS " not in line or " who=vm" not in line:
            continue
        pairs = dict(re.findall(r"(\w+)=(\S+)", line))
        tag = pairs.get("tag", "")
        if tag in found:
            twice.add(tag)
        found[tag] = {name: int(value) for name, value in pairs.items() if value.isdigit()}
    return {tag: values for tag, values in found.items() if tag not in twice}
