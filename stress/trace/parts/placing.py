"""Which table a change is in.

Two roots of an address space have tables for the same guest frames, and an old table that is being
emptied has the place of a new one. Which one a change is in follows from what its task has named,
from the order in which the task did things, and from the value that the event says was there. Where
more than one table is left, nothing is known of their entries from there on.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from stress.trace.events import SpteChanged
from stress.trace.layouts import ADDRESS, PRESENT, WRITABLE, is_frozen, is_leaf, is_table
from stress.trace.parts.pending import UnexplainedChange
from stress.trace.tree import UNKNOWN, TracedTable, TracedTree, Where, agrees, normal
from stress.trace.world import TracedWorld

AMBIGUOUS: Final = "which of several roots a change is in"


def index_of(level: int, gfn: int) -> int:
    """Which entry of a table maps a guest frame."""
    return gfn >> 9 * (level - 1) & 511


class Placer:
    """Finds the table of each change, and remembers the changes that fit none yet."""

    def __init__(self, world: TracedWorld) -> None:
        self._world = world
        self._waiting_in: dict[Where, list[UnexplainedChange]] = {}
        self._linking: Counter[Where] = Counter()

    def forget(self) -> None:
        """Nothing that waits can be placed any more."""
        self._waiting_in.clear()
        self._linking.clear()

    def find(self, waiting: UnexplainedChange) -> list[TracedTable]:
        """The tables that it can be in: none if it has to wait, several if nothing tells which."""
        if waiting.table is None and not waiting.vm.tree.dying and not self._linking:
            tables = self.possible(waiting)
            if len(tables) == 1:
                index = index_of(waiting.change.level, waiting.change.gfn)
                return tables if self._agrees(waiting, tables[0].get(index)[0]) else []
        if waiting.table is not None:
            known = waiting.table.get(index_of(waiting.change.level, waiting.change.gfn))[0]
            if self._agrees(waiting, known):
                return [waiting.table]
        where = waiting.where
        if self._linking and self._linking[where] and not is_frozen(waiting.change.new):
            return []  # a table is linked here of which the old one's removal was not reported yet
        tables = self.possible(waiting)
        if self._trusts_root(waiting):
            likely = [table for table in tables if table.root is waiting.root]
            if found := self._fitting(waiting, likely):
                return found
        if waiting.valid is not None and len(tables) > 1:
            likely = [
                table
                for table in tables
                if table.root is None or table.root.valid_at(waiting.line) is waiting.valid
            ]
            if found := self._fitting(waiting, likely):
                return found
        return self._fitting(waiting, tables)

    @staticmethod
    def _trusts_root(waiting: UnexplainedChange) -> bool:
        """Whether the root that was named may be the one, though an address can be another root's
        by now."""
        root = waiting.root
        if root is None or waiting.hard:
            return False
        return waiting.valid is None or root.valid_at(waiting.line) is waiting.valid

    def possible(self, waiting: UnexplainedChange) -> list[TracedTable]:
        """The tables at its place, as far as the task has not shown that it is in another."""
        tree, change = waiting.vm.tree, waiting.change
        tables = tree.tables_at(change.as_id, change.level, change.gfn)
        if tree.dying:
            old = tree.removed_at(change.as_id, change.level, change.gfn)
            # whoever has reported something since then has walked past it
            late = [
                table
                for table in old
                if waiting.since <= table.removed
                or (table.remover == waiting.pid and not table.emptied)
            ]
            tables = [*tables, *late] if late else tables
        if not waiting.hard or waiting.root is None:
            return tables
        return [table for table in tables if table.root is waiting.root or table.root is None]

    def guessed(self, waiting: UnexplainedChange, table: TracedTable) -> bool:
        """Whether nothing but the value speaks for the one table that fits, and the value is what
        any entry may hold."""
        if waiting.root is not None or waiting.valid is not None or waiting.table is table:
            return False
        if waiting.change.old & PRESENT:
            return False
        return sum(not root.dead for root in waiting.vm.tree.roots) > 1

    def _agrees(self, waiting: UnexplainedChange, known: int) -> bool:
        may_differ = 0 if "fast_page_fault" in self._world.have else WRITABLE
        return agrees(known, normal(waiting.change.old), self._world.volatile, may_differ)

    def _fitting(self, waiting: UnexplainedChange, tables: list[TracedTable]) -> list[TracedTable]:
        index = index_of(waiting.change.level, waiting.change.gfn)
        fitting = [table for table in tables if self._agrees(waiting, table.get(index)[0])]
        if len(fitting) < 2:
            return fitting
        return self._likeliest(waiting, fitting, index)

    def _likeliest(
        self, waiting: UnexplainedChange, tables: list[TracedTable], index: int
    ) -> list[TracedTable]:
        """Of several tables that hold what the event says, the one that something else speaks
        for."""
        change = waiting.change
        if is_table(change.old, change.level):
            child = waiting.vm.tree.by_address.get(change.old & ADDRESS)
            if child is not None and child.parent in tables:
                return [child.parent]
        if waiting.root is not None:
            own = [table for table in tables if table.root is waiting.root]
            tables = own or tables
        removed = [table for table in tables if table.removed]
        if is_frozen(change.new):
            tables = removed or tables
        if change.old & PRESENT:
            shown = [table for table in tables if table.get(index)[0] != UNKNOWN]
            tables = shown or tables
        return tables

    def wait(self, waiting: UnexplainedChange) -> None:
        """Remember a change that fits no table yet."""
        for where in self._places(waiting):
            self._waiting_in.setdefault(where, []).append(waiting)
        if is_table(waiting.change.new, waiting.change.level):
            self._linking[waiting.below] += 1

    def settle(self, waiting: UnexplainedChange) -> None:
        """It waits no longer."""
        waiting.settled = True
        for where in self._places(waiting):
            others = self._waiting_in.get(where, [])
            if waiting in others:
                others.remove(waiting)
                if not others:
                    del self._waiting_in[where]
        if is_table(waiting.change.new, waiting.change.level):
            self._linking[waiting.below] -= 1

    @staticmethod
    def _places(waiting: UnexplainedChange) -> list[Where]:
        """Where a change that waits may belong."""
        if not waiting.lockless:
            return [waiting.where]
        gfn = waiting.change.gfn
        return [
            (as_id, level, gfn >> 9 * level << 9 * level) for as_id in (0, 1) for level in (1, 2, 3)
        ]

    def waiting_in(self, where: Where) -> list[UnexplainedChange]:
        """The changes that wait for something at a place."""
        return list(self._waiting_in.get(where, ()))

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting_in

    def lockless(self, waiting: UnexplainedChange) -> tuple[TracedTable, SpteChanged] | None:
        """Table and change of a leaf that a lockless fault has changed."""
        tree, fault = waiting.vm.tree, waiting.change
        for as_id, level, _ in self._places(waiting):
            for table in tree.tables_at(as_id, level, fault.gfn):
                known = table.get(index_of(level, fault.gfn))[0]
                if (
                    known > 0
                    and is_leaf(known, level)
                    and agrees(known, fault.old, self._world.volatile, 0)
                ):
                    base = fault.gfn >> 9 * (level - 1) << 9 * (level - 1)
                    return table, SpteChanged(as_id, base, level, fault.old, fault.new)
        return None


def older_can_exist(tree: TracedTree, waiting: UnexplainedChange) -> bool:
    """Whether the change can be in a table that is older than the recording."""
    if tree.complete or waiting.sure:
        return False
    return not (tree.renewed and waiting.valid and waiting.root is None)
