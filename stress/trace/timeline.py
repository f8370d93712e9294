"""What a recording shows over time: slices (functions entered and returned from) and instants, for any display.

    for item in timeline(Reader.open(path)):
        ...                                     # Slice(pid, task, name, start, end, line, args) or Instant(...)

It streams: a slice comes when its function returns, and nothing but the open functions of each task is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stress.trace.events import NOTICES, Event, FieldError, Probe
from stress.trace.names import Names


class Slice(NamedTuple):
    """A task was in a function; times are in the recording's own unit (see `Event.time`)."""

    pid: int
    task: str
    name: str
    start: int
    end: int
    line: int
    """Of its entry."""
    args: dict[str, int | str]


class Instant(NamedTuple):
    """Something happened: an SPTE changed, a marker was written, the recording lost events."""

    pid: int
    task: str
    cpu: int
    name: str
    time: int
    line: int
    text: str


def timeline(events: Iterable[Event]) -> Iterator[Slice | Instant]:
    """Slices and instants, in the order in which they end."""
    names = Names()
    opened: dict[int, list[tuple[str, Event, Probe]]] = {}
    for event in events:
        if event.name in NOTICES:
            yield Instant(0, "", event.cpu, event.name, event.time, event.line, event.text)
            opened.clear()
            continue
        if event.function:
            continue
        try:
            fields = event.fields()
        except FieldError:
            continue
        name = names.of(event)
        stack = opened.setdefault(event.pid, [])
        if isinstance(fields, Probe) and fields.caller:
            begun = next((i for i in range(len(stack) - 1, -1, -1) if f"{stack[i][0]}_ret" == name), None)
            if begun is not None:
                start = stack[begun]
                del stack[begun:]
                yield Slice(event.pid, event.task, start[0], start[1].time, event.time, start[1].line, {**start[2].args, **fields.args})
            continue
        if isinstance(fields, Probe):
            stack.append((name, event, fields))
            del stack[:-64]
        yield Instant(event.pid, event.task, event.cpu, name, event.time, event.line, event.text)
