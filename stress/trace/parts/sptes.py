"""SPTE changes: each is legal in itself, continues the one before, and tables are linked while
anything happens in them."""

from __future__ import annotations

from collections import deque
from typing import Final

from stress.trace.events import NO_GFN, Event, FastFault, SetSpte, ShadowPageEvent, SpteChanged
from stress.trace.facts import (
    BEGINNING,
    CHANGES,
    FRAME,
    MARKED,
    PAGES,
    REMOVALS,
    WRITABLE_FRAME,
    WRITTEN,
    Check,
    CheckRule,
)
from stress.trace.frames import works_on
from stress.trace.layouts import (
    ADDRESS,
    LEVELS,
    PRESENT,
    WRITABLE,
    is_frozen,
    is_leaf,
    is_table,
    span,
)
from stress.trace.parts.freezing import CONTINUED
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.parts.pending import AnnouncedRemoval, UnexplainedChange
from stress.trace.parts.placing import AMBIGUOUS, Placer, index_of, older_can_exist
from stress.trace.tree import UNKNOWN, Root, TracedTable, TracedTree, agrees, kind, normal
from stress.trace.world import FOREVER, TracedTask, TracedVm, TracedWorld, name_of, page_of

CHANGE: Final = frozenset({"kvm_tdp_mmu_spte_changed"})
UNSEEN: Final = "whether other processes' invalidations were recorded"

TRANSITIONS: Final = Check(
    name="transitions",
    rule="O7",
    title="every SPTE change is legal and continues the change before it",
    rules=(
        CheckRule("bad-value", "O7", "every SPTE change is legal in itself", (CHANGES,)),
        CheckRule(
            "mmio-over-leaf",
            "O7",
            "no MMIO SPTE is put over a leaf that is present: a fault that saw no slot is stale "
            "once there is one",
            (CHANGES,),
        ),
        CheckRule(
            "discontinuous",
            "O7",
            "every SPTE change continues the change before it",
            (CHANGES, BEGINNING),
        ),
        CheckRule(
            "other-frame", "O7", "a fault maps the frame that it has found", (CHANGES, FRAME)
        ),
        CheckRule(
            "other-value",
            "O7",
            "the entry holds what the fault's change says that it has written",
            (CHANGES, WRITTEN),
        ),
        CheckRule(
            "mmio-gen", "O13", "an MMIO SPTE has the generation that was meant", (CHANGES, MARKED)
        ),
        CheckRule(
            "writable-frame",
            "O7",
            "a leaf is writable only if the host lets the fault write",
            (CHANGES, WRITABLE_FRAME),
            core=False,
        ),
    ),
    source="arch/x86/kvm/mmu/tdp_mmu.c, handle_changed_spte(); reference 2.6",
)
FROZEN: Final = Check(
    name="frozen",
    rule="O7",
    title="a frozen entry is changed by nobody but the task that froze it",
    rules=(
        CheckRule(
            "frozen-changed",
            "O7",
            "a frozen entry is changed only by the task that froze it",
            (CHANGES,),
        ),
    ),
    source="arch/x86/kvm/mmu/spte.h, FROZEN_SPTE; reference 2.6, I11",
)
TABLES: Final = Check(
    name="tables",
    rule="O2",
    title=(
        "a table is removed only after its parent let go of it, and nothing changes in it "
        "afterwards"
    ),
    rules=(
        CheckRule(
            "removed-while-linked",
            "O2",
            "a table is removed only after its parent let go of it",
            (CHANGES, PAGES, REMOVALS),
        ),
        CheckRule(
            "no-table", "O2", "an entry changes only in a linked table", (CHANGES, BEGINNING)
        ),
        CheckRule("leaf-left", "O9", "a removed table holds no leaf", (CHANGES, BEGINNING)),
        CheckRule(
            "other-table", "O2", "a fault writes in the table that was linked", (CHANGES, WRITTEN)
        ),
    ),
    source="arch/x86/kvm/mmu/tdp_mmu.c, handle_removed_pt(); reference 2.6, I6, I10",
)


MOVES_ON: Final = (
    "zap_root_ret",
    "__zap_root_ret",
    "zap_leafs_ret",
    "unmap_gfn_range_ret",
    "map_ret",
    "put_root",
    "put_root()",
    "set_memslot_ret",
    "mn_start_ret",
    "mn_end()",
    "tracing_mark_write",
    "kvm_entry",
    "kvm_mmu_zap_all_fast",
    "kvm_unmap_hva_range",
    "set_memslot",
    "set_memslot()",
    "mn_start()",
)
"""Where a task is done with the tables that it was removing."""


class SptesPart(CheckPart):
    """Rebuilds the page tables, and judges every change of them."""

    checks = (TRANSITIONS, FROZEN, TABLES)

    def __init__(self, world: TracedWorld) -> None:
        super().__init__(world)
        self._placer = Placer(world)
        self._held = world.ledger.tallies["transitions"].held
        self._waiting: deque[UnexplainedChange] = deque()
        self._dying: deque[tuple[int, TracedVm, TracedTable]] = deque()
        self._removing: dict[int, list[tuple[TracedVm, TracedTable]]] = {}
        self._preparing: dict[int, list[AnnouncedRemoval]] = {}

    def handlers(self) -> dict[str, Handler]:
        """The tracepoints of system kvmmmu that speak of entries and tables."""
        return {
            "kvm_tdp_mmu_spte_changed": self.changed,
            "kvm_mmu_set_spte": self.set_spte,
            "kvm_mmu_get_page": self.get_page,
            "kvm_mmu_prepare_zap_page": self.prepare_zap,
            "fast_page_fault": self.fast_fault,
            **dict.fromkeys(MOVES_ON, self.moved_on),
        }

    def changed(self, event: Event, task: TracedTask, change: SpteChanged) -> None:
        """kvm_tdp_mmu_spte_changed."""
        vm = self.world.vm(task)
        tree = vm.tree
        vm.alive = vm.alive or event.line
        level = change.level
        if level not in LEVELS:
            return
        if level > tree.root_level:
            tree.roots = [root for root in tree.roots if root.level >= level]
            tree.root_level = level
        count_pages(tree, change)
        where = (change.as_id, level, change.gfn >> 9 * level << 9 * level)
        waiting = UnexplainedChange(event, change, where, vm, event.line, task.line)
        if task.frames:
            waiting.valid = works_on(task.frames)
            waiting.root, named_by = task.named_root()
            if waiting.root is not None:
                have = self.world.have
                # an address is another root's once the first one's last put is not recorded
                waiting.hard = f"{named_by}_ret" in have and "put_root:ref" in have
        if task.emptying and is_frozen(change.new):
            table = task.emptying.get(where[1:])
            waiting.table = table if table is not None and table.as_id == change.as_id else None
        task.last_change = (change.gfn, level, change.new, event.line)
        if level > 1 and is_table(change.old, level) and not is_table(change.new, level):
            self._let_go(waiting, task)
        placed = self._place(waiting, task)
        task.on_valid = validity(waiting, placed)
        if change.new & PRESENT and is_leaf(change.new, level):
            task.last_leaf = task.last_change
            task.leaf_table = placed[0] if len(placed) == 1 else None
        if not placed:
            self._placer.wait(waiting)
            self._waiting.append(waiting)
        elif not self._placer.idle:
            self._retry(waiting)

    def _place(self, waiting: UnexplainedChange, task: TracedTask | None) -> list[TracedTable]:
        """Apply a change to the table it must be about; empty if no table fits."""
        vm, change = waiting.vm, waiting.change
        tables = self._placer.find(waiting)
        if len(tables) == 1:
            table = tables[0]
            if waiting.valid is None and self._placer.guessed(waiting, table):
                self.world.unknown("transitions", AMBIGUOUS, waiting.line)
                vm.tree.taint(change.as_id)
            if table.get(index_of(change.level, change.gfn))[0] != UNKNOWN:
                self._held[CONTINUED] += 1
            self._apply(vm, table, waiting, task)
            return tables
        if tables:
            self.world.unknown("transitions", AMBIGUOUS, waiting.line)
            self._apply_to_any(vm, tables, waiting)
            return tables
        if not older_can_exist(vm.tree, waiting):
            return []
        if waiting.root is None:
            vm.tree.taint(change.as_id)
        as_id, level, base = waiting.where
        table = TracedTable(level, base, as_id, None, 0, 0, UNKNOWN)
        vm.tree.add(table)
        self._apply(vm, table, waiting, task)
        return [table]

    def _apply(
        self, vm: TracedVm, table: TracedTable, waiting: UnexplainedChange, task: TracedTask | None
    ) -> None:
        """The change is believed: note it, with the tables that it links and unlinks."""
        change, tree = waiting.change, vm.tree
        level, old, new = change.level, change.old, change.new
        index = index_of(level, change.gfn)
        table.entries[index] = (normal(new), waiting.line)
        if level > 1:
            if is_table(old, level) and not is_table(new, level):
                self._unlink(vm, tree.child(table, index, old), waiting, task)
                if level == tree.root_level:
                    tree.drop_emptied(table.as_id, level)
            if is_table(new, level) and not is_table(old, level):
                self._judge_link(tree, table, waiting)
                tree.link(table, index, new, waiting.line, old if is_leaf(old, level) else 0)
        if task is not None and is_frozen(new) and not table.removed:
            task.emptying[level, table.base] = table

    def _apply_to_any(
        self, vm: TracedVm, tables: list[TracedTable], waiting: UnexplainedChange
    ) -> None:
        """The change is in one of several tables: what they hold there is not known any more."""
        change, tree = waiting.change, vm.tree
        level, old, new = change.level, change.old, change.new
        for table in tables:
            table.entries[index_of(level, change.gfn)] = (UNKNOWN, waiting.line)
        if is_table(old, level) and not is_table(new, level):
            self._unlink(vm, tree.by_address.get(old & ADDRESS), waiting, None)
        if is_table(new, level) and not is_table(old, level):
            roots = {table.root for table in tables}
            root = roots.pop() if len(roots) == 1 else None
            split_of = old if is_leaf(old, level) else 0
            tree.link_at(waiting.below, new, waiting.line, split_of, None, root)

    def _judge_link(self, tree: TracedTree, table: TracedTable, waiting: UnexplainedChange) -> None:
        """A page is linked in one place only."""
        change = waiting.change
        other = tree.by_address.get(change.new & ADDRESS)
        if other is None or other.removed or not (tree.knows(other) and tree.knows(table)):
            return
        self.world.broken(
            "tables",
            "linked-twice",
            f"the table at {change.new & ADDRESS:#x} is linked for gfn {change.gfn:#x} level "
            f"{change.level} while it is {page_of(other)}",
            [(waiting.line, "linked here"), (other.line, "and here")],
            task=waiting.who,
            absent=CHANGE,
            tables=True,
        )

    def _unlink(
        self,
        vm: TracedVm,
        child: TracedTable | None,
        waiting: UnexplainedChange,
        task: TracedTask | None,
    ) -> None:
        """An entry has let go of the table below it."""
        vm.removed_pages += 1
        level, base = waiting.below[1:]
        if child is not None:
            vm.tree.unlink(child, waiting.line, waiting.pid)
            self._removing.setdefault(waiting.pid, []).append((vm, child))
            if task is not None and task.unlinked and task.unlinked[-1][2] == waiting.line:
                task.emptying[level, base] = child

    def _let_go(self, waiting: UnexplainedChange, task: TracedTask) -> None:
        """An entry has let go of a table: was it announced as removed already?"""
        level, base = waiting.below[1:]
        mine = self._preparing.get(waiting.pid, [])
        for preparing in reversed(mine):
            if preparing.level == level and preparing.gfn in (base, NO_GFN):
                mine.remove(preparing)
                self.world.held("tables", "tables unlinked when they were removed")
                task.emptying.pop((level, base), None)
                return
        task.unlinked.append((level, base, waiting.line))

    def _retry(self, cause: UnexplainedChange) -> None:
        """Something has changed in a table, or below it: does a change that waits follow now?"""
        placer = self._placer
        todo = [cause.where, cause.below]
        while todo and not placer.idle:
            for waiting in placer.waiting_in(todo.pop()):
                if waiting.settled or waiting.vm is not cause.vm:
                    continue
                if waiting.lockless:
                    if self._apply_lockless(waiting):
                        todo.append(waiting.where)
                elif placer.find(waiting):
                    waiting.vm.vanished.add(cause.line)
                    placer.settle(waiting)
                    self._place(waiting, None)
                    todo += [waiting.where, waiting.below]

    def set_spte(self, event: Event, task: TracedTask, said: SetSpte) -> None:
        """kvm_mmu_set_spte names the table by its address."""
        last, table = task.last_leaf, task.leaf_table
        if last is None or last[:2] != (said.gfn, said.level) or not 0 < task.fault <= last[3]:
            return
        tree = self.world.vm(task).tree
        if table is not None and tree.knows(table):
            self._judge_address(event, tree, table, said)

    def _judge_address(
        self, event: Event, tree: TracedTree, table: TracedTable, said: SetSpte
    ) -> None:
        page = said.sptep & ADDRESS
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
                absent=CHANGE,
                tables=True,
            )

    def get_page(self, event: Event, task: TracedTask, page: ShadowPageEvent) -> None:
        """kvm_mmu_get_page: a root is born, or a table that is about to be linked."""
        vm = self.world.vm(task)
        tree = vm.tree
        if not page.created or page.level < 4 or not page.direct:
            return
        alloc = task.frame("alloc_root")
        below = page.level < tree.root_level or task.frame("map") is not None
        if alloc is None and page.level != tree.root_level and below:
            return  # a table below a root of 5 levels, unless it is the first that is seen
        if not vm.alive and not self.world.lossy:
            tree.complete = True  # nothing of its MMU was at work before
        vm.alive = vm.alive or event.line
        root = tree.born(page.level, event.line)
        task.new_root = root
        role = alloc.number("role", 0) if alloc is not None else 0
        root.role = role
        if role:
            tree.settle(root, 1 if role >> 24 & 0xFF else 0)

    def prepare_zap(self, event: Event, task: TracedTask, page: ShadowPageEvent) -> None:
        """kvm_mmu_prepare_zap_page: in most kernels after the parent's event, in 7.x before it."""
        for item in task.unlinked:
            if item[0] == page.level and page.gfn in (item[1], NO_GFN):
                task.unlinked.remove(item)
                self.world.held("tables", "tables unlinked when they were removed")
                return
        self._preparing.setdefault(event.pid, []).append(
            AnnouncedRemoval(event.line, name_of(event), page.level, page.gfn)
        )

    def moved_on(self, event: Event, task: TracedTask, _said: object) -> None:
        """The task is done with the tables that it was removing: all that belongs to that has been
        reported."""
        if task.emptying:
            task.emptying.clear()
        if self._removing:
            for vm, table in self._removing.pop(event.pid, ()):
                table.emptied = event.line
                self._dying.append((event.line, vm, table))
        if self._preparing:
            for preparing in self._preparing.pop(event.pid, ()):
                self._still_linked(preparing, self.world.vm(task).tree)

    def fast_fault(self, event: Event, task: TracedTask, fault: FastFault) -> None:
        """fast_page_fault: the one change that has no kvm_tdp_mmu_spte_changed."""
        if not fault.fixed:
            return
        same_frame = not (fault.new ^ fault.old) & ADDRESS and fault.new & PRESENT
        kept = fault.new if same_frame else fault.old | WRITABLE
        gfn = fault.address >> 12
        change = SpteChanged(0, gfn, 1, fault.old, kept)
        waiting = UnexplainedChange(
            event, change, (0, 1, gfn & ~511), self.world.vm(task), event.line, lockless=True
        )
        if self._apply_lockless(waiting):
            self._retry(waiting)
        else:
            self._placer.wait(waiting)
            self._waiting.append(waiting)

    def _apply_lockless(self, waiting: UnexplainedChange) -> bool:
        """Apply a lockless change if a leaf fits it; what waits for it is not looked at."""
        found = self._placer.lockless(waiting)
        if found is None:
            return False
        table, change = found
        table.entries[index_of(table.level, change.gfn)] = (change.new, waiting.line)
        self.world.held("transitions", "lockless changes that continue the one before")
        if not waiting.settled:
            self._placer.settle(waiting)
        waiting.change = change
        waiting.where = (table.as_id, table.level, table.base)
        return True

    def tick(self, line: int) -> None:
        """What no event explained in time is judged."""
        world = self.world
        while self._waiting and (
            self._waiting[0].settled or world.settled(self._waiting[0].line, line)
        ):
            waiting = self._waiting.popleft()
            if not waiting.settled:
                self._placer.settle(waiting)
                if not waiting.lockless:
                    self._condemn(waiting.vm, waiting)
        while self._dying and world.settled(self._dying[0][0], line):
            self._bury(*self._dying.popleft()[1:])

    def _condemn(self, vm: TracedVm, waiting: UnexplainedChange) -> None:
        """A change that follows from nothing; from here on it is believed, so that one mistake is
        reported once."""
        change = waiting.change
        if self._place(waiting, None):
            self._retry(waiting)
            return
        tables = self._placer.possible(waiting)
        sure = vm.tree.untainted(change.as_id)
        where = f"gfn {change.gfn:#x} level {change.level}: {change.old:#x} -> {change.new:#x}"
        if not tables:
            if sure:
                self._no_table(waiting, where)
            else:
                self.world.unknown("tables", AMBIGUOUS, waiting.line)
            return
        table = tables[-1]
        known, line = table.get(index_of(change.level, change.gfn))
        if not sure:
            self.world.unknown("transitions", AMBIGUOUS, waiting.line)
        elif self._explained_elsewhere(known, change):
            self.world.unknown("transitions", UNSEEN, waiting.line)
        else:
            check, what = (
                ("frozen", "frozen")
                if is_frozen(known)
                else ("transitions", kind(known, change.level))
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
                absent=CHANGE,
                tables=True,
            )
        self._apply(vm, table, waiting, None)
        self._retry(waiting)

    def _no_table(self, waiting: UnexplainedChange, where: str) -> None:
        self.world.broken(
            "tables",
            "no-table",
            f"{where}: there is no table for this entry: it was removed, or never linked",
            [(waiting.line, "this change")],
            task=waiting.who,
            absent=CHANGE,
            tables=True,
        )

    def _explained_elsewhere(self, known: int, change: SpteChanged) -> bool:
        """Whether what another process does to the VM's memory explains it, and such processes may
        not have been recorded."""
        if self.world.wide or not known & PRESENT:
            return False
        zapped = normal(change.old) == 0
        return zapped or agrees(known & ~WRITABLE, change.old, self.world.volatile, WRITABLE)

    def _still_linked(self, preparing: AnnouncedRemoval, tree: TracedTree) -> None:
        if (tree.complete or any(root.sure for root in tree.roots)) and tree.untainted():
            # trace-cmd's plugin does not say which table it is
            which = "" if preparing.gfn == NO_GFN else f" for gfn {preparing.gfn:#x}"
            self.world.broken(
                "tables",
                "removed-while-linked",
                f"a level {preparing.level} table{which} was removed, but no entry let go of it",
                [(preparing.line, "removed here")],
                task=preparing.who,
                absent=CHANGE,
                tables=True,
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
            absent=CHANGE,
            tables=True,
        )

    def forget(self) -> None:
        """Nothing that waits can be judged any more."""
        self._waiting.clear()
        self._placer.forget()
        self._dying.clear()
        self._removing.clear()
        self._preparing.clear()

    def finish(self, line: int, *, whole: bool) -> None:
        """At the end of a whole recording nothing more can come."""
        self.tick(FOREVER if whole else line)
        self.forget()


def count_pages(tree: TracedTree, change: SpteChanged) -> None:
    """kvm_update_page_stats() and tdp_account_mmu_page()."""
    level = change.level
    tree.linked += is_table(change.new, level) - is_table(change.old, level)
    was, now = is_leaf(change.old, level), is_leaf(change.new, level)
    if was != now and level <= 3:
        tree.leaves[level] += now - was
    if was and is_table(change.new, level) and level > 1:
        tree.leaves[level - 1] += 512


def validity(waiting: UnexplainedChange, tables: list[TracedTable]) -> bool | None:
    """Whether the change was in a valid root: by the root that the task has named, else by the
    tables it can be in, else by what the task does; None if that is unknown."""
    if waiting.valid is False:
        return False
    if tables and all(table.root is not None for table in tables):
        found = {root_validity(table.root, waiting) for table in tables if table.root is not None}
        if len(found) == 1:
            return found.pop()
    if waiting.root is not None:
        return root_validity(waiting.root, waiting)
    return waiting.valid


def root_validity(root: Root, waiting: UnexplainedChange) -> bool | None:
    """Whether a root was valid at a change; of one that is older than the recording that is known
    only if something has said so."""
    if root.seen_invalid or not root.valid_at(waiting.line):
        return False
    return True if root.born else waiting.valid
