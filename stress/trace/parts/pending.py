"""What a change of an SPTE may have to wait for: the event of a change before it."""

from __future__ import annotations

from attrs import define

from stress.trace.events import Event, SpteChanged
from stress.trace.tree import Root, TracedTable, Where
from stress.trace.world import TracedVm, name_of


@define(eq=False)
class UnexplainedChange:
    """A change with what is known about its place. Where it does not follow from the change before,
    the event of that one may still come."""

    event: Event
    change: SpteChanged
    where: Where
    """The table that it must be in."""
    vm: TracedVm
    line: int
    since: int = 0
    """Line of its task's event before it: the SPTE was written after that."""
    root: Root | None = None
    """The root that the task has named."""
    hard: bool = False
    """Whether it is known that the task has not gone on since it named the root."""
    valid: bool | None = None
    """Whether the task works on valid roots or on invalid ones, where it can be told."""
    table: TracedTable | None = None
    """The table, where the task has shown which."""
    lockless: bool = False
    """Whether it is a lockless fault's, of which only the address is known."""
    settled: bool = False

    @property
    def who(self) -> str:
        """Its task, for reports."""
        return name_of(self.event)

    @property
    def pid(self) -> int:
        """Its task."""
        return self.event.pid

    @property
    def below(self) -> Where:
        """The table that its entry may point to."""
        return self.change.as_id, self.change.level - 1, self.change.gfn

    @property
    def sure(self) -> bool:
        """Whether everything is known of the root that the task has named."""
        return self.hard and self.root is not None and self.root.sure


@define(eq=False)
class AnnouncedRemoval:
    """A table that was announced as removed before its parent's event."""

    line: int
    who: str
    level: int
    gfn: int
