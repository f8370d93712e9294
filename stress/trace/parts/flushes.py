"""Flushes: whoever takes a translation away flushes before its call returns, or before the vCPU
goes on (O1)."""

from __future__ import annotations

from typing import Final

from stress.trace.events import Event, Function, ProbeEvent, SpteChanged
from stress.trace.facts import (
    CHANGES,
    ENTRIES,
    FLUSH_EVENTS,
    FLUSHED,
    FLUSHED_HERE,
    INVALIDATED,
    LOADS,
    LOCAL_FLUSHES,
    NOTIFIED,
    RANGE,
    RETURNED,
    VALIDITY,
    Check,
    CheckRule,
    Fact,
    either,
)
from stress.trace.layouts import LEVELS, PRESENT, WRITABLE, is_frozen, is_leaf, is_table, span
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.world import OwedFlush, TracedTask, TracedVm, TracedWorld, name_of

FLUSHES: Final = Check(
    name="flushes",
    rule="O1",
    title=(
        "what is taken away is flushed before the call returns, and a vCPU flushes when it loads a "
        "root"
    ),
    rules=(
        CheckRule(
            "no-flush",
            "O1",
            "what is taken away is flushed before the call returns",
            (CHANGES, FLUSHED, RETURNED, VALIDITY),
        ),
        CheckRule(
            "lock-left",
            "O1",
            "a walk that zaps flushes before it lets mmu_lock go",
            (
                CHANGES,
                FLUSHED,
                Fact("who holds mmu_lock", {"stale"}, "probe on is_page_fault_stale"),
            ),
            core=False,
        ),
        CheckRule(
            "owed-by-another",
            "O1",
            "an invalidation of host memory returns only after what it covers was flushed, whoever "
            "has zapped it",
            (CHANGES, FLUSHED, NOTIFIED, RANGE),
            core=False,
        ),
        CheckRule(
            "no-local-flush",
            "O1",
            "a vCPU flushes its TLB when it loads a root",
            (LOADS, FLUSHED_HERE, ENTRIES),
        ),
    ),
    source=(
        "arch/x86/kvm/mmu/tdp_mmu.c, tdp_mmu_zap_leafs(), tdp_mmu_iter_cond_resched(); mmu.c, "
        "kvm_mmu_load(); virt/kvm/kvm_main.c, kvm_handle_hva_range(); reference 2.5-2.7, 2.10"
    ),
)
DUE: Final = {
    "mn_start_ret": "invalidate_range_start() returned",
    "mn_end": "the invalidation ended",
    "mn_end()": "the invalidation ended",
    "set_memslot_ret": "kvm_set_memslot() returned",
    "flush_shadow_memslot_ret": "kvm_arch_flush_shadow_memslot() returned",
    "map_ret": "the fault was handled",
    "tdp_page_fault_ret": "the fault was handled",
    "kvm_entry": "the vCPU entered the guest",
    "kvm_userspace_exit": "the vCPU went back to user space",
    "tracing_mark_write": "the task was back in user space",
    "set_memslot": "the task began a memslot update",
    "set_memslot()": "the task began a memslot update",
    "mn_start": "the task began another invalidation",
    "mn_start()": "the task began another invalidation",
    "kvm_unmap_hva_range": "the task began another invalidation",
    "get_dirty_log()": "the task began to read the dirty log",
    "clear_dirty_log()": "the task began to clear the dirty log",
}
"""Where a task can owe no flush any more, and what that means."""
SLOT_SWAPPED: Final = "the slot was replaced by the next set of slots"
TABLE_ZAPPED: Final = "a table was zapped"
WRITE_PROTECTED: Final = "a leaf was write-protected"
MOST_OWED: Final = 4096
OWING: Final = frozenset(
    {
        "mn_start",
        "unmap_gfn_range",
        "zap_leafs",
        "set_memslot",
        "flush_shadow_memslot",
        "get_dirty_log",
        "clear_dirty_log",
        "clear_dirty_pt",
        "wrprot_slot",
        "wrprot_range",
        "recover_nx",
        "map",
    }
)
"""Functions after which a flush is due for what they take away in a valid root."""
OWING_IN_VALID: Final = OWING - {"set_memslot", "flush_shadow_memslot"}
"""Those that are not how the tables of invalid roots are zapped."""
OPERATION: Final = Fact(
    "what the task was doing",
    set(either(*OWING)),
    "functions or probes kvm_mmu_notifier_invalidate_range_start, kvm_set_memslot, "
    "kvm_get_dirty_log_protect, kvm_tdp_mmu_map",
)
ZAPPED_ROOTS: Final = frozenset(either("zap_invalidated_roots", "zap_root"))
WALKED: Final = {
    "zap_leafs": Fact("where the walk ends", {"zap_leafs_ret"}, "probe on its return"),
    "unmap_gfn_range": Fact("where the walk ends", {"unmap_gfn_range_ret"}, "probe on its return"),
}
REMOTE: Final = frozenset(either(*FLUSH_EVENTS))
PLAIN_FLUSH: Final = frozenset(either("flush_remote"))
"""The least that a flush leaves in a recording."""
REQUESTS: Final = frozenset({*either("make_all_req"), "make_all_req_ret"})


class FlushesPart(CheckPart):
    """Each task's debts."""

    checks = (FLUSHES,)

    def __init__(self, world: TracedWorld) -> None:
        super().__init__(world)
        self._unflushed: list[tuple[Event, int, int]] = []
        self._requested: list[tuple[Event, str, list[OwedFlush]]] = []

    def handlers(self) -> dict[str, Handler]:
        """Changes make debts, flushes pay them, returns collect them."""
        return {
            "kvm_tdp_mmu_spte_changed": self.changed,
            **dict.fromkeys(REMOTE, self.flush),
            **dict.fromkeys(("make_all_req", "make_all_req()", "make_all_req_ret"), self.requested),
            **dict.fromkeys(DUE, self.due),
            **dict.fromkeys(either("swap_memslots", "memslots_updated"), self.swapped),
            **dict.fromkeys(either("zap_all", "flush_shadow_all", "mn_release"), self.ended),
            **dict.fromkeys(either(*LOCAL_FLUSHES), self.flushed_here),
            "stale": self.lock_taken,
            "unmap_gfn_range": self.walks,
            "zap_leafs": self.walks,
            **dict.fromkeys(either("mmu_load"), self.load),
            "mmu_load_ret": self.loaded,
        }

    def before(self) -> dict[str, Handler]:
        """What has to be seen while the frame that ends is still open."""
        return dict.fromkeys(("mn_start_ret", *either("mn_end")), self.invalidated)

    def changed(self, event: Event, task: TracedTask, change: SpteChanged) -> None:
        """An SPTE change: does it take a translation away that a vCPU may have cached?"""
        fresh, task.fresh_flush = task.fresh_flush, 0
        if not change.old & PRESENT or change.level not in LEVELS:
            return
        why = self._taken(task, change)
        if not why or task.on_valid is False or self.world.vm(task).ended:
            return
        if fresh and why == TABLE_ZAPPED:
            self.world.held("flushes", "tables flushed before they were let go")
        elif len(task.owed) < MOST_OWED:
            doubt, given = self._doubt(task)
            zapped = why != WRITE_PROTECTED and not change.new & PRESENT
            task.owed.append(
                OwedFlush(
                    change.gfn, span(change.level), event.line, why, doubt, given, zapped=zapped
                )
            )

    def _doubt(self, task: TracedTask) -> tuple[Fact | None, tuple[Fact, ...]]:
        """What has to be known about an operation to say that it owes a flush, and is not; and what
        has to be recorded at all."""
        if task.on_valid is None:
            return VALIDITY, ()
        names = {frame.name for frame in task.frames}
        if names & OWING_IN_VALID:
            return None, () if self._one_root(task) else (INVALIDATED,)
        return (None, (VALIDITY,)) if names & OWING else (OPERATION, ())

    def _one_root(self, task: TracedTask) -> bool:
        """Whether nothing shows that a root has become invalid so far."""
        born = [root.as_id for root in self.world.vm(task).tree.roots if root.born]
        return len(born) == len(set(born)) and self.world.have.isdisjoint(ZAPPED_ROOTS)

    def _taken(self, task: TracedTask, change: SpteChanged) -> str:
        """What is taken away, "" if nothing that needs a flush."""
        level, old, new = change.level, change.old, change.new
        if is_leaf(old, level):
            return self._leaf_taken(task, level, old, new)
        if not is_table(old, level) or is_table(new, level):
            return ""
        if is_leaf(new, level):
            return "a huge leaf replaced a table"
        if is_frozen(new) and (self.world.kernel.none or task.emptying):
            return ""
        return TABLE_ZAPPED

    def _leaf_taken(self, task: TracedTask, level: int, old: int, new: int) -> str:
        if is_leaf(new, level):
            return self._rights_taken(task, old, new)
        if new & PRESENT or is_frozen(new):
            return ""  # a split changes no translation, a frozen leaf is its table's
        # an MMIO SPTE over a leaf is a finding of its own
        return "" if task.frame("map") is not None else "a leaf was zapped"

    def _rights_taken(self, task: TracedTask, old: int, new: int) -> str:
        """Dirty logging takes W or D away; a fault that finds a leaf with more rights than it needs
        owes nothing, and an access that is tracked without hardware is flushed lazily."""
        if task.frame("map") is not None or not new & 0b111:
            return ""
        if old & WRITABLE and not new & WRITABLE:
            return WRITE_PROTECTED
        vendor = self.world.vendor
        taken = vendor is not None and old & vendor.dirty and not new & vendor.dirty
        return "a leaf's dirty bit was cleared" if taken and task.frames else ""

    def flush(self, event: Event, task: TracedTask, said: object) -> None:
        """A remote flush, of everything or of a range."""
        task.fresh_flush = event.line
        if "range" in self.world.names.of(event):
            if isinstance(said, ProbeEvent) and "gfn" in said.args and "n" in said.args:
                task.range_flush = 0
                self._pay(task, said.number("gfn"), said.number("n"))
            else:
                task.range_flush = event.line  # a probe that names the range may follow
            return
        self.world.vm(task).flushed = event.line
        self._pay(task)

    def _pay(self, task: TracedTask, first: int = 0, count: int = 1 << 52) -> None:
        if not task.owed:
            return
        left = [
            owed
            for owed in task.owed
            if owed.first < first or owed.first + owed.count > first + count
        ]
        sure = sum(owed.doubt is None for owed in task.owed) - sum(
            owed.doubt is None for owed in left
        )
        if sure:
            self.world.held("flushes", "changes flushed in time", sure)
        task.owed = left

    def requested(self, event: Event, task: TracedTask, said: Function | ProbeEvent) -> None:
        """kvm_make_all_cpus_request(): request 0 is the flush, wherever kvm_flush_remote_tlbs() has
        no event of its own because the compiler has put it into its caller."""
        if isinstance(said, ProbeEvent) and not said.caller:
            task.requesting = said.number("req", -1) & 0xFF == 0
            caller = task.asker if task.previous[0].startswith("make_all_req") else ""
        else:
            caller = task.asker = said.caller
        if not task.requesting or not task.owed:
            return
        if caller and "flush_remote" not in caller:
            self.world.vm(task).flushed = event.line
            self._pay(task)
        for owed in task.owed:
            owed.requested = owed.requested or event.line

    def swapped(self, event: Event, task: TracedTask, _said: object) -> None:
        """The slots are swapped: what was zapped of the old slot has been flushed."""
        if task.owed and task.frame("flush_shadow_memslot") is not None:
            self._collect(event, task, SLOT_SWAPPED)

    def due(self, event: Event, task: TracedTask, _said: object) -> None:
        """Nothing may be owed here."""
        task.fresh_flush = 0
        if task.owed:
            self._collect(event, task, DUE[self.world.names.of(event)])
        if task.unflushed is not None and event.name == "kvm_entry":
            self._unflushed.append((event, task.unflushed[0], task.vcpu))
            task.unflushed = None

    def _collect(self, event: Event, task: TracedTask, when: str) -> None:
        """Report what is owed."""
        debts, task.owed = task.owed, []
        unknown_range, task.range_flush = task.range_flush, 0
        if unknown_range and "flush_remote_range" not in self.world.have:
            return
        if not FLUSHED.known_from(self.world.have):
            self.world.unknown("flushes", FLUSHED, debts[0].line)
            return
        sure = [owed for owed in debts if owed.doubt is None]
        if not sure:
            doubt = debts[0].doubt
            assert doubt is not None
            self.world.unknown("flushes", doubt, debts[0].line)
            return
        if sure[0].requested:
            self._requested.append((event, when, sure))
        else:
            self._no_flush(event, when, sure)

    def _no_flush(self, event: Event, when: str, debts: list[OwedFlush]) -> None:
        owed, count = debts[0], len(debts)
        headline = (
            f"{owed.why} (gfn {owed.first:#x}, {count} in all), and the task did not flush before "
            f"{when}"
        )
        lines = [
            (event.line, when),
            (owed.line, owed.why),
            (debts[-1].line, f"the last of {count}"),
        ]
        self.world.broken(
            "flushes",
            "no-flush",
            headline,
            lines[: 3 if count > 1 else 2],
            task=name_of(event),
            absent=PLAIN_FLUSH,
            given=owed.given,
        )

    def walks(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """An invalidation of host memory walks these guest frames."""
        start, end = probe.args.get("start"), probe.args.get("end")
        if isinstance(start, int) and isinstance(end, int) and task.frame("mn_start") is not None:
            task.walked.append((start, end, event.line))

    def invalidated(self, event: Event, task: TracedTask, _said: object) -> None:
        """An invalidation of host memory is over: the host takes the pages back. What another task
        has zapped of them and not flushed can still be used by vCPUs."""
        frame = task.frame("mn_start")
        if frame is None:
            return
        walked = [walk for walk in task.walked if walk[2] > frame.line]
        task.walked = []
        vm = self.world.vm(task)
        for other in self.world.tasks.values():
            if other is task or not other.owed or self.world.vm(other) is not vm or vm.ended:
                continue
            self._judge_other(event, task, other, walked, vm)

    def _judge_other(
        self,
        event: Event,
        task: TracedTask,
        other: TracedTask,
        walked: list[tuple[int, int, int]],
        vm: TracedVm,
    ) -> None:
        debts = [owed for owed in other.owed if owed.zapped and owed.line > vm.flushed]
        if not walked:
            if debts and "unmap_gfn_range()" in self.world.have:
                self.world.unknown("flushes", RANGE, event.line)
            return
        for owed in debts:
            for start, end, line in walked:
                if owed.first < end and start < owed.first + owed.count and owed.line < line:
                    self._owed_by_another(event, task, other, owed, line)
                    other.owed = [debt for debt in other.owed if debt is not owed]
                    return

    def _owed_by_another(
        self, event: Event, task: TracedTask, other: TracedTask, owed: OwedFlush, walk: int
    ) -> None:
        if owed.doubt is not None:
            self.world.unknown("flushes", owed.doubt, owed.line)
            return
        headline = (
            f"task {task.pid} has invalidated gfn {owed.first:#x} and returned without a flush, "
            f"although task {other.pid} had zapped it, let mmu_lock go and not flushed yet: the "
            "host may free the page while a vCPU still translates to it"
        )
        lines = [
            (event.line, "the invalidation of this task is over"),
            (owed.line, f"task {other.pid}: {owed.why}, and a flush is due"),
            (walk, f"task {task.pid} walks the range, and finds nothing to zap"),
        ]
        if other.walked and other.walked[-1][2] > owed.line:
            at = other.walked[-1][2]
            lines.append((at, f"task {other.pid} walks the next slot, as if no flush were due"))
        self.world.broken(
            "flushes",
            "owed-by-another",
            headline,
            lines,
            task=name_of(event),
            absent=PLAIN_FLUSH,
            across=True,
            given=(FLUSHED, *owed.given),
        )

    def lock_taken(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """A fault holds mmu_lock here: whoever was zapping leaves with it held for write has left
        it, and must have flushed."""
        for other in self.world.tasks.values():
            if not other.owed or other is task:
                continue
            frame = other.frame("zap_leafs") or other.frame("unmap_gfn_range")
            if frame is None or self.world.vm(other) is not self.world.vm(task):
                continue
            # what an earlier walk owes is judged where its pages are given back
            debts = [
                owed
                for owed in other.owed
                if owed.line > frame.line and owed.doubt is None and not owed.requested
            ]
            if not debts:
                continue
            headline = (
                f"task {other.pid} left mmu_lock in the middle of a zap (gfn {debts[0].first:#x}) "
                "without having flushed"
            )
            lines = [
                (event.line, "another task holds mmu_lock here"),
                (debts[0].line, debts[0].why),
            ]
            self.world.broken(
                "flushes",
                "lock-left",
                headline,
                lines,
                task=name_of(event),
                absent=PLAIN_FLUSH,
                across=True,
                given=(FLUSHED, WALKED[frame.name], *debts[0].given),
            )
            other.owed.clear()

    def ended(self, event: Event, task: TracedTask, _said: object) -> None:
        """The address space goes away: no vCPU runs any more, and whoever zaps owes nothing."""
        vm = self.world.vm(task)
        vm.ended = vm.ended or event.line

    def load(self, event: Event, task: TracedTask, _said: object) -> None:
        """kvm_mmu_load() begins."""
        task.unflushed = (event.line, 0)

    def flushed_here(self, _event: Event, task: TracedTask, _said: object) -> None:
        """The vCPU's own flush."""
        if task.unflushed is not None:
            task.unflushed = None
            self.world.held("flushes", "root loads that flushed")

    def loaded(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_mmu_load() ends with a flush, because the new root may have been in use on this CPU
        before."""
        if task.unflushed is None:
            return
        begun, _ = task.unflushed
        task.unflushed = None
        if probe.number("ret", -1) == 0:
            self._unflushed.append((event, begun, task.vcpu))

    def forget(self) -> None:
        """Nothing is known any more."""
        self._unflushed.clear()
        self._requested.clear()

    def finish(self, line: int, *, whole: bool) -> None:
        """Whether the flush of a load is recorded at all is known in the end only."""
        recorded = FLUSHED_HERE.known_from(self.world.have)
        for event, when, debts in self._requested:
            # a request without the flush that it is part of: only where no flush is recorded
            if not self.world.have.isdisjoint(either("flush_remote")):
                self._no_flush(event, when, debts)
            else:
                self.world.held("flushes", "changes flushed in time", len(debts))
        for event, begun, vcpu in self._unflushed:
            if not recorded:
                self.world.unknown("flushes", FLUSHED_HERE, event.line)
                continue
            self.world.broken(
                "flushes",
                "no-local-flush",
                f"vCPU {vcpu} has loaded a root without flushing its TLB",
                [(event.line, "here"), (begun, "it began")],
                task=name_of(event),
                absent=frozenset(either("flush_current")),
            )
        self.forget()
