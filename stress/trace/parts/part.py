"""What a part of the checker is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stress.trace.events import Event
from stress.trace.world import Check, TracedTask, TracedWorld

Handler = Callable[[Event, TracedTask, Any], None]
"""Gets the event, its task, and the parsed payload."""


class CheckPart:
    """Looks at some events. `before` hears of an event before its frame is opened or closed,
    `handlers` after."""

    checks: tuple[Check, ...] = ()
    """What it judges."""

    def __init__(self, world: TracedWorld) -> None:
        self.world = world

    def handlers(self) -> dict[str, Handler]:
        """By canonical event name, what to call."""
        raise NotImplementedError

    def tick(self, line: int) -> None:
        """Called now and then: whatever waited for longer than the horizon is judged now."""

    def forget(self) -> None:
        """The recording lost events."""

    def finish(self, line: int, *, whole: bool) -> None:
        """The recording ends; `whole` says that it was not cut off."""
