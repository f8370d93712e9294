"""The entries that a task freezes while it empties a table: 512 a table, most of them empty.

They are half of the lines of many a recording, and each is the same: it was empty in a table that
is being emptied, and is frozen now. Whatever else it is goes the long way.
"""

from __future__ import annotations

from typing import Final

from stress.trace.events import Event
from stress.trace.layouts import LEVELS
from stress.trace.tree import EMPTY
from stress.trace.world import TracedTask, TracedWorld

WORDS: Final = 11
"""Words of `as id A gfn G level L old_spte O new_spte N`."""


class Freezing:
    """Takes the changes from empty to frozen that need no second look."""

    def __init__(self, world: TracedWorld) -> None:
        self._world = world
        self._usual = ("", "")
        held = world.ledger.tallies
        self._frozen, self._transitions = held["frozen"].held, held["transitions"].held

    def _learn(self) -> bool:
        """The texts of the two values, once the kernel is known."""
        world = self._world
        if len(world.kernels) == 1:
            self._usual = (f"{world.kernel.none:x}", f"{world.kernel.frozen:x}")
        return bool(self._usual[0])

    def empty_entry(self, event: Event, task: TracedTask) -> bool:
        """Whether this is an empty entry of the table that its task is emptying. Notes it if so."""
        words = event.text.split()
        if len(words) != WORDS or not (self._usual[0] or self._learn()):
            return False
        if words[8] != self._usual[0] or words[10] != self._usual[1]:
            return False
        try:
            gfn, level = int(words[4], 16), LEVELS.index(int(words[6])) + 1
        except ValueError:
            return False
        table = task.emptying.get((level, gfn >> 9 * level << 9 * level))
        index = gfn >> 9 * (level - 1) & 511
        if table is None or table.get(index)[0] != EMPTY or words[2] != str(table.as_id):
            return False
        if gfn != table.base + (index << 9 * (level - 1)):
            return False
        table.entries[index] = (self._world.kernel.frozen, event.line)
        task.last_change = (gfn, level, self._world.kernel.frozen, event.line)
        task.fresh_flush = 0
        self._frozen[FROZEN] += 1
        self._transitions[LEGAL] += 1
        self._transitions[CONTINUED] += 1
        return True


FROZEN: Final = "entries frozen that were not frozen before"
LEGAL: Final = "changes legal in themselves"
CONTINUED: Final = "changes that continue the one before"
