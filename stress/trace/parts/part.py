"""What a part of the checker is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stress.trace.events import Event
from stress.trace.facts import Check
from stress.trace.world import TracedTask, TracedWorld

Handler = Callable[[Event, TracedTask, Any], None]
"""Gets the event, its task, and the parsed payload."""


class CheckPart:
    """Looks at some events."""

    checks: tuple[Check, ...] = ()
    """What it judges."""

    def __init__(self, world: TracedWorld) -> None:
        self.world = world

    def handlers(self) -> dict[str, Handler]:
        """By canonical event name, what to call."""
        raise NotImplementedError

    def before(self) -> dict[str, Handler]:
        """By canonical event name, what to call before the event closes or opens a frame."""
        return {}

    def tick(self, line: int) -> None:
        """Called now and then: whatever waited for longer than the horizon is judged now."""

    def forget(self) -> None:
        """The recording lost events."""

    def finish(self, line: int, *, whole: bool) -> None:
        """The recording ends; `whole` says that it was not cut off."""
