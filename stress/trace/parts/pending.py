"""What a change of an SPTE may have to wait for: the event of a change before it."""

from __future__ import annotations

from attrs import define

from stress.trace.events import SpteChanged
from stress.trace.tree import Root, Where
from stress.trace.world import TracedVm


@define(eq=False)
class UnexplainedChange:
    """A change that does not follow from what is known: the event of the write before it may still
    come."""

    line: int
    who: str
    pid: int
    change: SpteChanged
    root: Root | None
    sure: bool
    vm: TracedVm
    settled: bool = False

    @property
    def where(self) -> Where:
        """The table that it must be in."""
        change = self.change
        return change.as_id, change.level, change.gfn >> 9 * change.level << 9 * change.level


@define(eq=False)
class AnnouncedRemoval:
    """A table that was announced as removed before its parent's event."""

    line: int
    who: str
    level: int
    gfn: int
