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

WORDS: Final = 7
"""Words of `as id A gfn G level L`, before the values."""
LEVEL_OF: Final = {str(level): level for level in LEVELS}


class Freezing:
    """Takes the changes from empty to frozen that need no second look."""

    def __init__(self, world: TracedWorld) -> None:
        self._world = world
        self._values = ""
        self._frozen = 0
        self.count = 0
        """Entries that were taken."""

    def _learn(self) -> bool:
        """The text of the two values, once the kernel is known."""
        world = self._world
        if len(world.kernels) != 1:
            return False
        kernel = world.kernel
        self._frozen = kernel.frozen
        self._values = f" old_spte {kernel.none:x} new_spte {kernel.frozen:x}"
        return True

    def empty_entry(self, event: Event, task: TracedTask) -> bool:
        """Whether this is an empty entry of the table that its task is emptying. Notes it if so."""
        if not (self._values or self._learn()):
            return False
        text = event.text
        if not text.endswith(self._values):
            return False
        words = text[: -len(self._values)].split(" ")
        level = LEVEL_OF.get(words[-1])
        if len(words) != WORDS or level is None:
            return False
        try:
            gfn = int(words[4], 16)
        except ValueError:
            return False
        return self._take(event, task, words[2], gfn, level)

    def _take(self, event: Event, task: TracedTask, space: str, gfn: int, level: int) -> bool:
        shift = 9 * (level - 1)
        table = task.emptying.get((level, gfn >> shift + 9 << shift + 9))
        if table is None or space != str(table.as_id):
            return False
        index = gfn >> shift & 511
        if table.get(index)[0] != EMPTY or gfn != table.base + (index << shift):
            return False
        table.entries[index] = (self._frozen, event.line)
        task.last_change = (gfn, level, self._frozen, event.line)
        task.fresh_flush = 0
        self.count += 1
        return True

    def tally(self) -> None:
        """Add what was taken to the tallies."""
        tallies, count = self._world.ledger.tallies, self.count
        if count:
            tallies["frozen"].held[FROZEN] += count
            tallies["transitions"].held[LEGAL] += count
            tallies["transitions"].held[CONTINUED] += count


FROZEN: Final = "entries frozen that were not frozen before"
LEGAL: Final = "changes legal in themselves"
CONTINUED: Final = "changes that continue the one before"
