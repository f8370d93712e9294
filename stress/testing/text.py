"""What a failing test prints: what went wrong, how to run it again, and who did what in which
order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from mmu.report import Report
from stress.engines.locks import ControlledLock
from stress.engines.program import Run
from stress.search.in_buffers import owner_of, unseen_stores
from stress.search.schedule import WordNames
from stress.testing.objects.watch import Watch
from stress.testing.program import RULE, FunctionInstance
from stress.testing.replay import Place

MOST_STEPS: Final = 160
MOST_COLUMNS: Final = 6
MOST_WORDS: Final = 20
HARNESS: Final = ("stress/testing", "stress/engines", "stress/search")


def finding(report: Report) -> list[str]:
    """A finding's lines, its headline first: an exception with its traceback, or a splat without
    the harness's frames."""
    if report.rule == RULE:
        return [
            report.headline,
            "",
            *(line for section in report.sections for line in section.lines),
        ]
    _, headline, _, *lines, _ = report.render().split("\n")
    return [
        headline,
        "",
        *(line for line in lines if not any(f"({folder}/" in line for folder in HARNESS)),
    ]


@frozen
class Shown:
    """A schedule to show: its steps as (task, operation), the places they come from, the shared
    words at its end, notes on some of the steps, by number from 0 on, and the cause in a
    sentence."""

    steps: tuple[tuple[str, str], ...]
    places: tuple[Place | None, ...] = ()
    words: tuple[str, ...] = ()
    notes: Mapping[int, str] = field(factory=dict)
    cause: str = ""


def interleaving(shown: Shown) -> list[str]:
    """Every step in a line: its number, the line of the test that it comes from, and the operation
    in its task's column."""
    files = {place[0] for place in shown.places if place is not None}
    missing = (None,) * (len(shown.steps) - len(shown.places))
    where = [_where(place, len(files) > 1) for place in (*shown.places, *missing)]
    rows = [
        (str(number), place, task, what + _note(shown.notes.get(number - 1)))
        for number, (place, (task, what)) in enumerate(zip(where, shown.steps, strict=False), 1)
    ]
    left_out = max(0, len(rows) - MOST_STEPS)
    rows = rows[left_out:]
    columns = list(dict.fromkeys(task for _, _, task, _ in rows))
    lines = _narrow(rows) if len(columns) > MOST_COLUMNS else _wide(rows, columns)
    return (
        [lines[0], f"... {left_out} steps are left out here ...", *lines[1:]] if left_out else lines
    )


def _note(note: str | None) -> str:
    return f" ({note})" if note else ""


def notes_on(run: Run) -> dict[int, str]:
    """What to say of steps that read a word to which another task's store was in its buffer."""
    if not run.follows or run.scheduler is None:
        return {}
    names = WordNames(run.scheduler)
    return {
        position: "; ".join(
            f"{owner_of(run, store)}'s store to {names.word(run.trace[position][2])} is still in "
            "its buffer"
            for store in stores
        )
        for position, stores in unseen_stores(run).items()
    }


def values_in(run: Run) -> dict[int, str]:
    """What steps on plain objects have read or written."""
    instance = run.instance
    watch = instance.watch if isinstance(instance, FunctionInstance) else None
    return dict(watch.notes) if isinstance(watch, Watch) else {}


def _where(place: Place | None, files_differ: bool) -> str:
    if place is None:
        return ""
    return f"{Path(place[0]).name}:{place[1]}" if files_differ else f"line {place[1]}"


def _wide(rows: Sequence[tuple[str, str, str, str]], columns: Sequence[str]) -> list[str]:
    widths = [
        max(len(name), *(len(what) for _, _, task, what in rows if task == name))
        for name in columns
    ]
    left = max(len(place) for _, place, _, _ in rows)
    digits = max(4, *(len(number) for number, _, _, _ in rows))
    head = "  ".join(
        [
            "step".rjust(digits),
            "".ljust(left),
            *(name.ljust(width) for name, width in zip(columns, widths, strict=True)),
        ]
    )
    lines = [head.rstrip()]
    for number, place, task, what in rows:
        cells = [
            (what if name == task else "").ljust(width)
            for name, width in zip(columns, widths, strict=True)
        ]
        lines.append("  ".join([number.rjust(digits), place.ljust(left), *cells]).rstrip())
    return lines


def _narrow(rows: Sequence[tuple[str, str, str, str]]) -> list[str]:
    left = max(len(place) for _, place, _, _ in rows)
    return [
        "step",
        *(
            f"{number:>4}  {place:<{left}}  {task}: {what}".rstrip()
            for number, place, task, what in rows
        ),
    ]


def words_at_end(run: Run) -> Iterator[str]:
    """The value of every shared word that the program made, in the order in which they were made;
    of a schedule that ended."""
    if not run.completed or run.scheduler is None or not isinstance(run.instance, FunctionInstance):
        return
    names = WordNames(run.scheduler)
    for number, (first, thing) in enumerate(run.scheduler.registry[run.instance.sync.own :]):
        if number >= MOST_WORDS:
            yield "..."
            return
        value = _value(thing)
        if value is not None:
            yield f"{names.word(first).removesuffix('[0]')} = {value}"


def _value(thing: Any) -> str | None:
    peek = getattr(thing, "peek", None)
    if peek is None:
        return None
    size = getattr(thing, "_size", None)
    if isinstance(thing, ControlledLock):
        return f"held by {thing.owner.name}" if thing.owner is not None else None
    text = (
        repr(peek())
        if size is None
        else repr([peek(index) for index in range(min(size, MOST_WORDS))])
    )
    return text if len(text) <= 60 else text[:57] + "..."


def failure(reports: Sequence[Report], summary: str, command: str, shown: Shown) -> str:
    """The whole message; its first line says what went wrong."""
    first, *others = reports
    lines = [*finding(first), ""]
    if shown.cause:
        lines += [f"cause: {shown.cause}", ""]
    lines.append(summary)
    lines += [
        "",
        "replay it:",
        f"  {command}",
        "",
        "the interleaving:",
        *(f"  {line}" for line in interleaving(shown)),
    ]
    if shown.words:
        lines += ["", "the shared words at the end:", *(f"  {line}" for line in shown.words)]
    for other in others:
        lines += ["", "also found:", *finding(other)]
    return "\n".join(lines)
