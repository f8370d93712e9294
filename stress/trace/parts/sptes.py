"""SPTE changes: each is legal in itself, continues the one before, and tables are linked while
anything happens in them."""

from __future__ import annotations

from collections import deque
from typing import Final

from stress.trace.events import (
    Event,
    FastFault,
    MarkMmio,
    SetSpte,
    ShadowPageEvent,
    SpteChanged,
    SpteRequested,
)
from stress.trace.layouts import ADDRESS, PRESENT, WRITABLE, is_frozen, is_leaf, is_table, span
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.parts.pending import AnnouncedRemoval, UnexplainedChange
from stress.trace.parts.spte_rules import why_illegal
from stress.trace.tree import UNKNOWN, TracedTable, TracedTree, Where, agrees, kind, normal
from stress.trace.world import HORIZON, Check, TracedTask, TracedVm, TracedWorld, name_of, page_of

CHANGED: Final = frozenset({"kvm_tdp_mmu_spte_changed"})

TRANSITIONS: Final = Check(
    name="transitions",
    rule="O7",
    title="every SPTE change is legal and continues the change before it",
    needs=(CHANGED,),
    wants=(
        "kvmmmu:kvm_tdp_mmu_spte_changed; to know what came before, also the VM's beginning or "
        "probes that name the root"
    ),
    source="arch/x86/kvm/mmu/tdp_mmu.c, handle_changed_spte(); reference 2.6",
)
FROZEN: Final = Check(
    name="frozen",
    rule="O7",
    title="a frozen entry is changed by nobody but the task that froze it",
    needs=(CHANGED,),
    wants="kvmmmu:kvm_tdp_mmu_spte_changed",
    source="arch/x86/kvm/mmu/spte.h, FROZEN_SPTE; reference 2.6, I11",
)
TABLES: Final = Check(
    name="tables",
    rule="O2",
    title=(
        "a table is removed only after its parent let go of it, and nothing changes in it "
        "afterwards"
    ),
    needs=(CHANGED, frozenset({"kvm_mmu_get_page", "kvm_mmu_prepare_zap_page"})),
    wants="kvmmmu:kvm_tdp_mmu_spte_changed, kvm_mmu_get_page, kvm_mmu_prepare_zap_page",
    source="arch/x86/kvm/mmu/tdp_mmu.c, handle_removed_pt(); reference 2.6, I6, I10",
)


MOVES_ON: Final = (
    "zap_root_ret",
    "__zap_root_ret",
    "zap_leafs_ret",
    "unmap_gfn_range_ret",
    "map_ret",
    "put_root",
    "set_memslot_ret",
    "mn_start_ret",
    "tracing_mark_write",
    "kvm_entry",
)
"""Where a task is done with the tables that it was removing."""


class SptesPart(CheckPart):
    """Rebuilds the page tables, and judges every change of them."""

    checks = (TRANSITIONS, FROZEN, TABLES)

    def __init__(self, world: TracedWorld) -> None:
        super().__init__(world)
        self._waiting: deque[UnexplainedChange] = deque()
        self._waiting_in: dict[Where, list[UnexplainedChange]] = {}
        self._dying: deque[tuple[int, TracedVm, TracedTable]] = deque()
        self._removing: dict[int, list[tuple[TracedVm, TracedTable]]] = {}
        self._preparing: dict[int, list[AnnouncedRemoval]] = {}

    def handlers(self) -> dict[str, Handler]:
        """The tracepoints of system kvmmmu that speak of entries and tables."""
        return {
            "kvm_tdp_mmu_spte_changed": self.changed,
            "kvm_mmu_set_spte": self.set_spte,
            "kvm_mmu_spte_requested": self.requested,
            "kvm_mmu_get_page": self.get_page,
            "kvm_mmu_prepare_zap_page": self.prepare_zap,
            "fast_page_fault": self.fast_fault,
            "mark_mmio_spte": self.mark_mmio,
            **dict.fromkeys(MOVES_ON, self.moved_on),
        }

    def changed(self, event: Event, task: TracedTask, change: SpteChanged) -> None:
        """kvm_tdp_mmu_spte_changed."""
        self._judge_alone(event, change, task)
        vm = self.world.vm(task)
        tree = vm.tree
        if change.level > tree.root_level:
            tree.roots = [root for root in tree.roots if root.level >= change.level]
            tree.root_level = change.level
        self._count_leaves(tree, change)
        sure = task.root is not None and task.root.sure
        waiting = UnexplainedChange(
            event.line, name_of(event), event.pid, change, task.root, sure, vm
        )
        task.last_change = (change.gfn, change.level, change.new, event.line)
        if self._place(vm, waiting, task):
            self._retry(waiting)
        else:
            self._waiting.append(waiting)
            self._waiting_in.setdefault(waiting.where, []).append(waiting)

    def _judge_alone(self, event: Event, change: SpteChanged, task: TracedTask) -> None:
        """The rules that need nothing but the event."""
        world, level, old, new = self.world, change.level, change.old, change.new
        trouble = world.detector.see(event.line, old) or world.detector.see(event.line, new)
        if trouble and not world.forced_kernel:
            self._illegal(event, "foreign-value", trouble)
        elif is_frozen(old):
            world.broken(
                "frozen",
                "frozen-changed",
                f"gfn {change.gfn:#x} level {level}: a frozen entry was changed to {new:#x}",
                [(event.line, f"the entry was frozen ({old:#x}) and becomes {new:#x}")],
                task=name_of(event),
            )
        else:
            why = why_illegal(self.world, change)
            if is_frozen(new):
                world.held("frozen", "entries frozen that were not frozen before")
            if why:
                self._illegal(
                    event,
                    why[0],
                    f"gfn {change.gfn:#x} level {level}: {old:#x} -> {new:#x}: {why[1]}",
                )
            else:
                world.held("transitions", "changes legal in themselves")
                self._judge_frame(event, change, task)

    def _illegal(self, event: Event, code: str, text: str) -> None:
        judge = self.world.doubtful if code in ("bad-value", "mmio-gfn") else self.world.broken
        judge("transitions", code, text, [(event.line, "this change")], task=name_of(event))

    def _judge_frame(self, event: Event, change: SpteChanged, task: TracedTask) -> None:
        """A fault maps the frame that it has found, at the gfn that it is about."""
        gfn, pfn = self._target(task)
        if (
            pfn < 0
            or not is_leaf(change.new, change.level)
            or not change.gfn <= gfn < change.gfn + span(change.level)
        ):
            return
        if (change.new & ADDRESS) >> 12 == pfn - (gfn - change.gfn):
            self.world.held("transitions", "leaves with the frame the fault has found")
            return
        text = (
            f"gfn {change.gfn:#x} level {change.level}: the fault has found pfn {pfn:#x} for gfn "
            f"{gfn:#x}, the leaf is {change.new:#x}"
        )
        self._illegal(event, "other-frame", text)

    def _target(self, task: TracedTask) -> tuple[int, int]:
        """Gfn and pfn of the fault that a task handles, pfn -1 if it handles none."""
        if "map" in task.open:
            probe = task.open["map"][1]
            return probe.number("gfn", 0), probe.number("pfn", -1)
        return task.requested or (0, -1)

    def _count_leaves(self, tree: TracedTree, change: SpteChanged) -> None:
        """kvm_update_page_stats()."""
        level = change.level
        was, now = is_leaf(change.old, level), is_leaf(change.new, level)
        if was != now and level <= 3:
            tree.leaves[level] += now - was
        if was and is_table(change.new, level) and level > 1:
            tree.leaves[level - 1] += 512

    def _place(self, vm: TracedVm, waiting: UnexplainedChange, task: TracedTask | None) -> bool:
        """Apply a change to the table it must be about; False if no table fits."""
        change = waiting.change
        table = self._choose(vm.tree, waiting)
        if table is None:
            if vm.tree.complete or waiting.sure:
                return False
            if waiting.root is None:
                vm.tree.taint(change.as_id)
            table = TracedTable(
                change.level,
                change.gfn >> 9 * change.level << 9 * change.level,
                change.as_id,
                None,
                0,
                0,
                UNKNOWN,
            )
            vm.tree.add(table)
        else:
            known = table.get(self._index(change))[0]
            if known != UNKNOWN:
                self.world.held("transitions", "changes that continue the one before")
        self._apply(vm, table, waiting, task)
        return True

    @staticmethod
    def _index(change: SpteChanged) -> int:
        return change.gfn >> 9 * (change.level - 1) & 511

    def _choose(self, tree: TracedTree, waiting: UnexplainedChange) -> TracedTable | None:
        """The table whose entry holds what the event says: of the root the task works on, else
        where the value is known."""
        change = waiting.change
        old, index = normal(change.old), self._index(change)
        writable = 0 if self.world.seen["fast_page_fault"] else WRITABLE
        best, best_rank = None, -1
        for table in tree.candidates(change.as_id, change.level, change.gfn, freezing=True):
            known = table.get(index)[0]
            if not agrees(known, old, self.world.volatile, writable):
                continue
            same = waiting.root is not None and table.root is waiting.root
            if not same and waiting.root is not None and not tree.complete and tree.knows(table):
                continue
            rank = (
                4 * same
                + 2 * (known != UNKNOWN)
                + (not table.removed) * (not is_frozen(change.new))
            )
            if rank > best_rank:
                best, best_rank = table, rank
        return best

    def _apply(
        self, vm: TracedVm, table: TracedTable, waiting: UnexplainedChange, task: TracedTask | None
    ) -> None:
        """The change is believed: note it, with the tables that it links and unlinks."""
        change, tree, index = waiting.change, vm.tree, self._index(waiting.change)
        level, old, new = change.level, change.old, change.new
        table.entries[index] = (normal(new), waiting.line)
        if is_table(old, level) and not is_table(new, level):
            self._unlink(vm, table, index, waiting, task)
        if is_table(new, level) and not is_table(old, level):
            other = tree.by_address.get(new & ADDRESS)
            if other is not None and not other.removed and tree.knows(other) and tree.knows(table):
                self.world.broken(
                    "tables",
                    "linked-twice",
                    f"the table at {new & ADDRESS:#x} is linked for gfn {change.gfn:#x} level "
                    f"{level} while it is {page_of(other)}",
                    [(waiting.line, "linked here"), (other.line, "and here")],
                    task=waiting.who,
                )
            tree.link(table, index, new, waiting.line, old if is_leaf(old, level) else 0)

    def _unlink(
        self,
        vm: TracedVm,
        table: TracedTable,
        index: int,
        waiting: UnexplainedChange,
        task: TracedTask | None,
    ) -> None:
        change = waiting.change
        child = vm.tree.child(table, index, change.old)
        vm.removed_pages += 1
        if child is not None:
            vm.tree.unlink(child, waiting.line)
            self._removing.setdefault(waiting.pid, []).append((vm, child))
        level, base = change.level - 1, change.gfn
        mine = self._preparing.get(waiting.pid, [])
        for preparing in mine:
            if (preparing.level, preparing.gfn) == (level, base):
                mine.remove(preparing)
                self.world.held("tables", "tables unlinked when they were removed")
                return
        if task is not None:
            task.unlinked.append((level, base, waiting.line))

    def _retry(self, cause: UnexplainedChange) -> None:
        """Something has changed in a table, or below it: does a change that waits follow now?"""
        todo = [cause.where]
        if is_table(cause.change.new, cause.change.level):
            todo.append((cause.change.as_id, cause.change.level - 1, cause.change.gfn))
        while todo and self._waiting_in:
            where = todo.pop()
            for waiting in list(self._waiting_in.get(where, ())):
                if (
                    waiting.vm is cause.vm
                    and not waiting.settled
                    and self._choose(waiting.vm.tree, waiting) is not None
                ):
                    waiting.vm.vanished.add(cause.line)
                    self._settle(waiting)
                    self._place(waiting.vm, waiting, None)
                    todo += [
                        where,
                        (waiting.change.as_id, waiting.change.level - 1, waiting.change.gfn),
                    ]

    def _settle(self, waiting: UnexplainedChange) -> None:
        """It waits no longer."""
        waiting.settled = True
        others = self._waiting_in.get(waiting.where, [])
        if waiting in others:
            others.remove(waiting)
            if not others:
                del self._waiting_in[waiting.where]

    def set_spte(self, event: Event, task: TracedTask, said: SetSpte) -> None:
        """kvm_mmu_set_spte: the fault reads its entry again, so this must be what it has
        written."""
        last = task.last_change
        if last is None or last[:2] != (said.gfn, said.level):
            return
        if (
            (last[2] ^ said.spte) & ~(self.world.volatile | WRITABLE)
            and last[2] & PRESENT
            and said.spte & PRESENT
        ):
            self.world.broken(
                "transitions",
                "other-value",
                f"gfn {said.gfn:#x} level {said.level}: the change says {last[2]:#x}, the fault "
                f"has left {said.spte:#x}",
                [(last[3], "the change"), (event.line, "what the fault has left")],
                task=name_of(event),
            )
        else:
            self.world.held("transitions", "values that the fault confirms")
        self._check_address(event, task, said)

    def _check_address(self, event: Event, task: TracedTask, said: SetSpte) -> None:
        """The entry lies in the table that the tree has for it."""
        tree = self.world.vm(task).tree
        page, where = (
            said.sptep & ADDRESS,
            (0, said.level, said.gfn >> 9 * said.level << 9 * said.level),
        )
        tables = [table for as_id in (0, 1) for table in tree.live.get((as_id, *where[1:]), ())]
        if len(tables) != 1 or not tables[0].root:
            return
        (table,) = tables
        if table.address == 0:
            table.address = page
            tree.by_address[page] = table
        elif table.address == page:
            self.world.held("tables", "entries found in the table that was linked")
        else:
            self.world.broken(
                "tables",
                "other-table",
                f"gfn {said.gfn:#x}: the entry lies in the page {page:#x}, but {page_of(table)} "
                "was linked",
                [(event.line, "the entry's address"), (table.line, "the table was linked here")],
                task=name_of(event),
            )

    def requested(self, event: Event, task: TracedTask, said: SpteRequested) -> None:
        """kvm_mmu_spte_requested."""
        task.requested = (said.gfn, said.pfn)

    def get_page(self, event: Event, task: TracedTask, page: ShadowPageEvent) -> None:
        """kvm_mmu_get_page: a root is born, or a table that is about to be linked."""
        tree = self.world.vm(task).tree
        in_alloc = "alloc_root" in task.open
        if not page.created or page.level < 4 or not page.direct:
            return
        if in_alloc or (page.level >= tree.root_level and "map" not in task.open):
            root = tree.born(page.level, event.line)
            task.new_root = root
            if in_alloc:
                role = task.open["alloc_root"][1].number("role", 0)
                root.role = role
                if role:
                    tree.settle(root, 1 if role >> 24 & 0xFF else 0)

    def prepare_zap(self, event: Event, task: TracedTask, page: ShadowPageEvent) -> None:
        """kvm_mmu_prepare_zap_page: in most kernels after the parent's event, in 7.x before it."""
        for item in task.unlinked:
            if item[:2] == (page.level, page.gfn):
                task.unlinked.remove(item)
                self.world.held("tables", "tables unlinked when they were removed")
                return
        self._preparing.setdefault(event.pid, []).append(
            AnnouncedRemoval(event.line, name_of(event), page.level, page.gfn)
        )

    def moved_on(self, event: Event, task: TracedTask, _said: object) -> None:
        """The task is done with the tables that it was removing: all that belongs to that has been
        reported."""
        if self._removing:
            self._dying.extend((event.line, *item) for item in self._removing.pop(event.pid, ()))
        if self._preparing:
            for preparing in self._preparing.pop(event.pid, ()):
                self._still_linked(preparing, self.world.vm(task).tree)

    def fast_fault(self, event: Event, task: TracedTask, fault: FastFault) -> None:
        """fast_page_fault: the one change that has no kvm_tdp_mmu_spte_changed."""
        if not fault.fixed:
            return
        vm = self.world.vm(task)
        found = self._leaf_at(vm.tree, fault)
        if found is None:
            return
        table, index, gfn = found
        kept = (
            fault.new
            if not (fault.new ^ fault.old) & ADDRESS and fault.new & PRESENT
            else fault.old | WRITABLE
        )
        table.entries[index] = (kept, event.line)
        self.world.held("transitions", "lockless changes that continue the one before")
        change = SpteChanged(table.as_id, gfn, table.level, fault.old, kept)
        self._retry(
            UnexplainedChange(
                event.line, name_of(event), event.pid, change, None, sure=False, vm=vm
            )
        )

    def _leaf_at(self, tree: TracedTree, fault: FastFault) -> tuple[TracedTable, int, int] | None:
        """Table, index and gfn of the leaf that a lockless fault has changed."""
        gfn = fault.address >> 12
        for level in (1, 2, 3):
            for as_id in (0, 1):
                for table in tree.candidates(as_id, level, gfn, freezing=False):
                    index = gfn >> 9 * (level - 1) & 511
                    known = table.get(index)[0]
                    if (
                        known > 0
                        and is_leaf(known, level)
                        and agrees(known, fault.old, self.world.volatile, 0)
                    ):
                        return table, index, gfn & -span(level)
        return None

    def mark_mmio(self, event: Event, task: TracedTask, said: MarkMmio) -> None:
        """mark_mmio_spte: the value written must hold the generation that the event names."""
        last = task.last_change
        if (
            last is None
            or last[0] != said.gfn
            or last[2] & PRESENT
            or is_frozen(last[2])
            or not self.world.vendor
        ):
            return
        kernel = self.world.kernel
        mask = (1 << sum(width for _, width in kernel.gen_fields)) - 1
        if kernel.generation(last[2]) == said.gen & mask:
            self.world.held("transitions", "MMIO SPTEs of the generation that was named")
        elif kernel.name != "7.2" and "7.2" not in self.world.detector.kernels:
            headline = (
                f"gfn {said.gfn:#x}: the MMIO SPTE {last[2]:#x} has generation "
                f"{kernel.generation(last[2]):#x}, not {said.gen:#x}"
            )
            lines = [(last[3], "the change"), (event.line, "the generation that was meant")]
            self.world.broken(
                "transitions", "mmio-gen", headline, lines, task=name_of(event), rule="O13"
            )

    def tick(self, line: int) -> None:
        """What no event explained in time is judged."""
        while self._waiting and self._waiting[0].line < line - HORIZON:
            waiting = self._waiting.popleft()
            if not waiting.settled:
                self._settle(waiting)
                self._condemn(waiting.vm, waiting)
        while self._dying and self._dying[0][0] < line - HORIZON:
            self._bury(*self._dying.popleft()[1:])

    def _condemn(self, vm: TracedVm, waiting: UnexplainedChange) -> None:
        """A change that follows from nothing; from here on it is believed, so that one mistake is
        reported once."""
        change, tree = waiting.change, vm.tree
        tables = tree.candidates(change.as_id, change.level, change.gfn, freezing=True)
        mine = [table for table in tables if table.root is waiting.root] or tables
        where = f"gfn {change.gfn:#x} level {change.level}: {change.old:#x} -> {change.new:#x}"
        if not mine:
            self.world.broken(
                "tables",
                "no-table",
                f"{where}: there is no table for this entry: it was removed, or never linked",
                [(waiting.line, "this change")],
                task=waiting.who,
            )
            return
        table = mine[-1]
        known, line = table.get(self._index(change))
        check, what = (
            ("frozen", "frozen") if is_frozen(known) else ("transitions", kind(known, change.level))
        )
        self.world.broken(
            check,
            "discontinuous",
            f"{where}: the entry held {known & (1 << 64) - 1:#x} ({what})",
            [
                (waiting.line, "this change"),
                (line, f"what the entry held: {known & (1 << 64) - 1:#x}"),
            ],
            task=waiting.who,
        )
        self._apply(vm, table, waiting, None)
        self._retry(waiting)

    def _still_linked(self, preparing: AnnouncedRemoval, tree: TracedTree) -> None:
        if tree.complete or any(root.sure for root in tree.roots):
            self.world.broken(
                "tables",
                "removed-while-linked",
                f"the level {preparing.level} table for gfn {preparing.gfn:#x} was removed, but no "
                "entry let go of it",
                [(preparing.line, "removed here")],
                task=preparing.who,
            )

    def _bury(self, vm: TracedVm, table: TracedTable) -> None:
        """A removed table must hold nothing any more."""
        left = [item for item in table.leaves() if not is_frozen(item[1])]
        vm.tree.drop(table)
        if not left or not vm.tree.knows(table):
            self.world.held("tables", "removed tables without a leaf left", int(not left))
            return
        index, value, line = left[0]
        gfn = table.base + index * span(table.level)
        self.world.broken(
            "tables",
            "leaf-left",
            f"{page_of(table)} was removed, but its leaf for gfn {gfn:#x} ({value:#x}) and "
            f"{len(left) - 1} more were never taken away",
            [(table.removed, "the table was removed"), (line, "its leaf was set")],
            rule="O9",
        )

    def forget(self) -> None:
        """Nothing that waits can be judged any more."""
        self._waiting.clear()
        self._waiting_in.clear()
        self._dying.clear()
        self._removing.clear()
        self._preparing.clear()

    def finish(self, line: int, *, whole: bool) -> None:
        """At the end of a whole recording nothing more can come."""
        self.tick(line + 2 * HORIZON if whole else line)
        self.forget()
