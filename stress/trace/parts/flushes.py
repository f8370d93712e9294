"""Flushes: whoever takes a translation away flushes before his call returns, or before the vCPU
goes on (O1)."""

from __future__ import annotations

from typing import Final

from stress.trace.events import Event, ProbeEvent, SpteChanged
from stress.trace.layouts import PRESENT, WRITABLE, is_frozen, is_leaf, is_table, span
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.world import Check, OwedFlush, TracedTask, TracedWorld, name_of

FLUSH_EVENTS: Final = ("flush_remote", "flush_remote_range", "flush_remote_memslot")
LOCAL_FLUSHES: Final = ("flush_current", "flush_asid", "flush_all")

FLUSHES: Final = Check(
    name="flushes",
    rule="O1",
    title=(
        "what is taken away is flushed before the call returns, and a vCPU flushes when it loads a "
        "root"
    ),
    needs=(
        frozenset({"kvm_tdp_mmu_spte_changed"}),
        frozenset(
            {
                *FLUSH_EVENTS,
                *LOCAL_FLUSHES,
                *(f"{name}()" for name in (*FLUSH_EVENTS, *LOCAL_FLUSHES)),
            }
        ),
        frozenset(
            {
                "set_memslot_ret",
                "mn_start_ret",
                "map_ret",
                "tracing_mark_write",
                "unmap_gfn_range_ret",
            }
        ),
    ),
    wants="functions or probes on kvm_flush_remote_tlbs*, svm/vmx_flush_tlb_current; probes on "
    "the returns of kvm_set_memslot, kvm_mmu_notifier_invalidate_range_start, "
    "kvm_tdp_mmu_map; on tdp_mmu_zap_root (role)",
    source=(
        "arch/x86/kvm/mmu/tdp_mmu.c, tdp_mmu_zap_leafs(); mmu.c, kvm_mmu_load(); reference "
        "2.5-2.7, 2.10"
    ),
)
DUE: Final = {
    "mn_start_ret": "invalidate_range_start() returned",
    "set_memslot_ret": "kvm_set_memslot() returned",
    "flush_shadow_memslot_ret": "kvm_arch_flush_shadow_memslot() returned",
    "map_ret": "the fault was handled",
    "tdp_page_fault_ret": "the fault was handled",
    "kvm_entry": "the vCPU entered the guest",
    "kvm_userspace_exit": "the vCPU went back to user space",
    "tracing_mark_write": "the task was back in user space",
    "set_memslot": "the task began a memslot update",
    "mn_start": "the task began another invalidation",
    "mn_start()": "the task began another invalidation",
    "get_dirty_log()": "the task began to read the dirty log",
    "clear_dirty_log()": "the task began to clear the dirty log",
}
"""Where a task can owe no flush any more, and what that means."""
TABLE_ZAPPED: Final = "a table was zapped"
BEGINS: Final = (
    "zap_all_fast",
    "zap_invalidated_roots",
    "unmap_gfn_range",
    "zap_root",
    "map",
    "kvm_exit",
)
"""Where a task's operation begins, or where it cannot be in one."""
MOST_OWED: Final = 4096


class FlushesPart(CheckPart):
    """Each task's debts."""

    checks = (FLUSHES,)

    def __init__(self, world: TracedWorld) -> None:
        super().__init__(world)
        self._unflushed: list[tuple[Event, int, int]] = []

    def handlers(self) -> dict[str, Handler]:
        """Changes make debts, flushes pay them, returns collect them."""
        return {
            "kvm_tdp_mmu_spte_changed": self.changed,
            **dict.fromkeys(FLUSH_EVENTS, self.flush),
            **{f"{name}()": self.flush for name in FLUSH_EVENTS},
            **dict.fromkeys(DUE, self.due),
            **dict.fromkeys(BEGINS, self.begins),
            "zap_all": self.ended,
            "zap_all()": self.ended,
            "flush_shadow_all": self.ended,
            "flush_current": self.flush_current,
            "flush_current()": self.flush_current,
            "stale": self.lock_taken,
            "mmu_load": self.load,
            "mmu_load_ret": self.loaded,
        }

    def changed(self, event: Event, task: TracedTask, change: SpteChanged) -> None:
        """An SPTE change: does it take a translation away that a vCPU may have cached?"""
        fresh, task.fresh_flush = task.fresh_flush, 0
        if not change.old & PRESENT or not task.placed:
            return
        why = self._taken(change, faulting="map" in task.open or not self.world.seen["map"])
        if not why or self.world.vm(task).ended or self._root_is_invalid(task):
            return
        if fresh and why == TABLE_ZAPPED:
            self.world.held("flushes", "tables flushed before they were let go")
        elif len(task.owed) < MOST_OWED:
            task.owed.append(OwedFlush(change.gfn, span(change.level), event.line, why))

    def _taken(self, change: SpteChanged, *, faulting: bool) -> str:
        """What is taken away, "" if nothing that needs a flush."""
        level, old, new = change.level, change.old, change.new
        if is_leaf(old, level):
            if is_leaf(new, level):
                return self._rights_taken(old, new, faulting=faulting)
            # a split changes no translation
            return "a leaf was zapped" if not new & PRESENT and not is_frozen(new) else ""
        if not is_table(old, level) or is_table(new, level):
            return ""
        if is_leaf(new, level):
            return "a huge leaf replaced a table"
        return "" if is_frozen(new) and self.world.kernel.none else TABLE_ZAPPED

    def _rights_taken(self, old: int, new: int, *, faulting: bool) -> str:
        """Dirty logging takes W or D away; a fault that finds a leaf with more rights than it needs
        owes nothing."""
        if old & WRITABLE and not new & WRITABLE and not faulting:
            return "a leaf was write-protected"
        vendor = self.world.vendor
        taken = (
            vendor is not None and old & vendor.dirty and not new & vendor.dirty and not faulting
        )
        return "a leaf's dirty bit was cleared" if taken else ""

    def _root_is_invalid(self, task: TracedTask) -> bool:
        """Zapping an invalid root needs no flush: every vCPU flushes when it loads another
        (reference 2.6)."""
        if "zap_all_fast" in task.open or "zap_invalidated_roots" in task.open:
            return True
        if task.root is not None and (task.root.invalid or task.root.seen_invalid):
            return True
        opened = task.open.get("zap_root")
        if opened is None:
            return False
        bit = self.world.detector.invalid_bit
        # 6.x or 7.x: the role says nothing; what the recording has seen of the root does
        if not bit:
            return task.root is None or not task.root.sure
        return bool(opened[1].number("role", 0) & bit)

    def flush(self, event: Event, task: TracedTask, said: object) -> None:
        """A remote flush, of everything or of a range."""
        task.fresh_flush = event.line
        if not task.owed:
            return
        before = len(task.owed)
        if event.name.endswith("()") and "range" in event.name:
            return  # the probe on it names the range; without one, the full flush below it counts
        if isinstance(said, ProbeEvent) and "gfn" in said.args and "n" in said.args:
            first, count = said.number("gfn"), said.number("n")
            task.owed = [
                owed
                for owed in task.owed
                if owed.first < first or owed.first + owed.count > first + count
            ]
        else:
            task.owed.clear()
        self.world.held("flushes", "changes flushed in time", before - len(task.owed))

    def begins(self, event: Event, task: TracedTask, _said: object) -> None:
        """What the task does from here on is seen from its beginning."""
        task.placed = True

    def due(self, event: Event, task: TracedTask, _said: object) -> None:
        """Nothing may be owed here."""
        task.fresh_flush = 0
        task.placed = True
        if not task.owed:
            return
        owed = task.owed[0]
        count = len(task.owed)
        canonical = self.world.names.of(event)
        headline = (
            f"{owed.why} (gfn {owed.first:#x}, {count} in all), and nobody flushed before "
            f"{DUE[canonical]}"
        )
        lines = [
            (event.line, DUE[canonical]),
            (owed.line, owed.why),
            (task.owed[-1].line, f"the last of {count}"),
        ]
        self.world.broken(
            "flushes", "no-flush", headline, lines[: 3 if count > 1 else 2], task=name_of(event)
        )
        task.owed.clear()

    def lock_taken(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """A fault holds mmu_lock here: whoever was zapping leaves with it held for write has left
        it, and must have flushed."""
        for other in self.world.tasks.values():
            if (
                not other.owed
                or other is task
                or not ("zap_leafs" in other.open or "unmap_gfn_range" in other.open)
            ):
                continue
            owed = other.owed[0]
            if self.world.vm(other) is not self.world.vm(task):
                continue
            headline = (
                f"task {other.pid} left mmu_lock in the middle of a zap (gfn {owed.first:#x}) "
                "without having flushed"
            )
            lines = [(event.line, "another task holds mmu_lock here"), (owed.line, owed.why)]
            self.world.broken("flushes", "lock-left", headline, lines, task=name_of(event))
            other.owed.clear()

    def ended(self, event: Event, task: TracedTask, _said: object) -> None:
        """The address space goes away: no vCPU runs any more, and whoever zaps owes nothing."""
        vm = self.world.vm(task)
        vm.ended = vm.ended or event.line

    def load(self, _event: Event, task: TracedTask, _said: object) -> None:
        """kvm_mmu_load() begins."""
        task.flushed_current = 0

    def flush_current(self, event: Event, task: TracedTask, _said: object) -> None:
        """The vCPU's own flush."""
        task.flushed_current = event.line

    def loaded(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_mmu_load() ends with a flush, because the new root may have been in use on this CPU
        before."""
        if "mmu_load" not in task.open or probe.number("ret", -1) != 0:
            return
        if task.flushed_current:
            self.world.held("flushes", "root loads that flushed")
        else:
            self._unflushed.append((event, task.open["mmu_load"][0].line, task.vcpu))

    def forget(self) -> None:
        """Nothing is known any more."""
        self._unflushed.clear()

    def finish(self, line: int, *, whole: bool) -> None:
        """Whether the flush of a load is recorded at all is known in the end only."""
        recorded = self.world.tallies["flushes"].held["root loads that flushed"]
        for event, begun, vcpu in self._unflushed:
            if recorded:
                headline = f"vCPU {vcpu} has loaded a root without flushing its TLB"
                self.world.broken(
                    "flushes",
                    "no-local-flush",
                    headline,
                    [(event.line, "here"), (begun, "it began")],
                    task=name_of(event),
                )
            else:
                self.world.unsure(
                    "flushes",
                    "flushes of a vCPU's own TLB are not recorded (svm/vmx_flush_tlb_current)",
                    event.line,
                )
        self.forget()
