"""An explanation as text for a console: 100 columns of ASCII, the same on every machine."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from stress.search.explain_data import Explanation, Picture, StepRow

WIDTH: Final = 100
_LEAST: Final = 28
"""A column that would be narrower than this is none: then steps are listed one below another."""


def text(explanation: Explanation) -> str:
    """The whole explanation."""
    return _joined(explanation, _head, _interleaving, _pictures, _switches, _inevitable)


def course(explanation: Explanation) -> str:
    """The explanation without what the report says already."""
    return _joined(explanation, _summary, _interleaving, _pictures, _switches, _inevitable)


def _joined(explanation: Explanation, *parts: Callable[[Explanation], Iterator[str]]) -> str:
    return "\n".join(line.rstrip() for part in parts for line in part(explanation)) + "\n"


def _wrapped(line: str, indent: str = "", first: str | None = None) -> list[str]:
    start = indent if first is None else first
    return textwrap.wrap(
        line, WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    ) or [start]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _title(title: str) -> Iterator[str]:
    yield ""
    yield f"{title} {'-' * (WIDTH - len(title) - 1)}"


def _head(it: Explanation) -> Iterator[str]:
    """The summary and the findings."""
    found = it.finding
    yield "=" * WIDTH
    yield from _wrapped(found.headline)
    yield "-" * WIDTH
    yield from _summary(it)
    yield ""
    yield from _wrapped(f"{found.rule} {found.meaning}", "           ", "rule       ")
    if found.stands_for:
        yield from _wrapped(found.stands_for, "           ", "stands for ")
    yield from _wrapped(f"{found.sentence}", "           ", f"{'':11}")
    yield from _wrapped(f"{found.code}", "           ", "check      ")
    yield from _wrapped(found.source, "           ", "source     ")
    yield (
        f"found in   {found.task}, {found.when(it.steps)}"
        if found.task
        else f"found      {found.when(it.steps)}"
    )
    yield f"schedule   {_count(it.steps, 'step')} in {_count(it.turns, 'turn')}" + (
        "; a race that did no harm in it" if it.predicted else ""
    )
    for line in found.waits:
        yield from _wrapped(line, "           ", "waiting    ")
    for other in it.others:
        yield from _wrapped(
            f"{other.rule} {other.headline} ({other.when(it.steps)})", "           ", "also       "
        )
    yield "=" * WIDTH


def _summary(it: Explanation) -> Iterator[str]:
    """Who did what between which two steps of whom."""
    for line in it.summary:
        yield from _wrapped(line, "  ", "* ")


# The interleaving.


def _interleaving(it: Explanation) -> Iterator[str]:
    """One column a task, time downwards."""
    yield from _title("What happened")
    if not it.rows:
        yield (
            "No step before the finding conflicts with a step of another task: their order does "
            "not matter."
        )
        return
    count = _count(sum(1 + row.more for row in it.rows), "step")
    yield from _wrapped(
        f"{count} before the finding: those that conflict with a step of another task, and the "
        f"last ones; {it.left_out} others of"
        " these tasks are left out. A line across all columns is a switch away from a task that "
        "could have gone on."
    )
    yield ""
    width = (WIDTH - 6) // len(it.columns) - 3
    yield from _columns(it, width) if width >= _LEAST else _listed(it)


def _columns(it: Explanation, width: int) -> Iterator[str]:
    widths = [width] * len(it.columns)
    yield _line("step", it.columns, widths)
    yield "-" * 6 + "".join("+" + "-" * (width + 2) for width in widths)
    last: dict[str, tuple[str, str]] = {}
    for row in it.rows:
        yield from _switch_line(it, row)
        place = row.operation, row.function
        if last.get(row.task) != place:
            yield from _cells(it, row.task, _heading(row, last.get(row.task)), "", widths)
            last[row.task] = place
        yield from _cells(
            it, row.task, [f"  {line}" for line in _cell(row, width - 2)], str(row.step), widths
        )
    yield from _verdict_line(it)


def _heading(row: StepRow, before: tuple[str, str] | None) -> list[str]:
    operation = (
        [f"[{row.operation}]"]
        if row.operation and (before is None or before[0] != row.operation)
        else []
    )
    return [*operation, row.function] if row.function else operation


def _cell(row: StepRow, width: int) -> list[str]:
    what = row.what or "(the last step before the finding)"
    lines = textwrap.wrap(what, width, subsequent_indent="  ", break_on_hyphens=False)
    return [*lines, f"  and {row.more} more like it"] if row.more else lines


def _cells(
    it: Explanation, task: str, lines: Sequence[str], step: str, widths: Sequence[int]
) -> Iterator[str]:
    width = widths[0]
    pieces = [
        piece for line in lines for piece in textwrap.wrap(line, width, drop_whitespace=False)
    ]
    for number, piece in enumerate(pieces):
        yield _line(
            "" if number else step, [piece if name == task else "" for name in it.columns], widths
        )


def _line(step: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"{step:>5} " + "".join(
        f"| {cell:<{width}} " for cell, width in zip(cells, widths, strict=True)
    )


def _switch_line(it: Explanation, row: StepRow) -> Iterator[str]:
    """The switches between two rows: a line for each that matters, and one for the others between
    two of those."""
    switches = [it.switches[number - 1] for number in row.switches]
    for decisive, group in itertools.groupby(switches, key=lambda switch: switch.decisive):
        if decisive:
            for switch in group:
                yield _rule(
                    f"switch {switch.number}: {switch.away_from} could have gone on; without it: "
                    f"{switch.without}",
                    "=",
                )
        else:
            numbers = [str(switch.number) for switch in group]
            many = len(numbers) > 1
            yield _rule(
                f"switch{'es' if many else ''} {', '.join(numbers)}: fails without "
                f"{'them' if many else 'it'}, too",
                "-",
            )


def _rule(note: str, filler: str) -> str:
    return (
        f"{filler}{filler}{filler} {textwrap.shorten(note, WIDTH - 12, placeholder=' ...')} ".ljust(
            WIDTH, filler
        )
    )


def _verdict_line(it: Explanation) -> Iterator[str]:
    yield _rule(
        f"{it.finding.when(it.steps)}: rule {it.finding.title} is found broken ({it.finding.code})",
        ">",
    )


def _listed(it: Explanation) -> Iterator[str]:
    """For many tasks: one step a line."""
    width = max(len(name) for name in it.columns) if it.columns else 0
    for row in it.rows:
        yield from _switch_line(it, row)
        what = f"{row.what} and {row.more} more like it" if row.more else row.what
        yield from _wrapped(
            f"{what}" + (f"   [{row.function}]" if row.function else ""),
            " " * (width + 9),
            f"{row.step:>5} {row.task:<{width}} ",
        )
    yield from _verdict_line(it)


# The page tables.


def _pictures(it: Explanation) -> Iterator[str]:
    """The first picture whole, then what changed, and the last one whole."""
    if not it.pictures:
        return
    yield from _title("Page tables")
    first, *others = it.pictures
    yield "at the start:" if first.step < 0 else f"after step {first.step}:"
    yield from _whole(first)
    before = first
    for number, picture in enumerate(others, 1):
        if number == len(others) or picture.lines != before.lines:
            yield f"after step {picture.step}" + (
                ", where the rule was found broken:" if picture.step == it.finding.step else ":"
            )
            yield from _whole(picture) if number == len(others) else _changes(before, picture)
        before = picture


def _whole(picture: Picture) -> Iterator[str]:
    for line in picture.lines:
        yield from _wrapped(
            line.lstrip(),
            " " * (len(line) - len(line.lstrip()) + 6),
            " " * (len(line) - len(line.lstrip()) + 4),
        )


def _changes(before: Picture, after: Picture) -> Iterator[str]:
    """Lines that went and lines that came, in the order of the page tables."""
    for mark, lines, others in (("-", before.lines, after.lines), ("+", after.lines, before.lines)):
        for line in lines:
            if line not in others:
                yield from _wrapped(
                    line.lstrip(),
                    " " * (len(line) - len(line.lstrip()) + 6),
                    f"  {mark} " + " " * (len(line) - len(line.lstrip())),
                )


# What becomes of it otherwise.


def _switches(it: Explanation) -> Iterator[str]:
    """Each switch with what comes of the schedule without it."""
    yield from _title("Switches away from a task that could have gone on")
    if not it.switches:
        yield "none: every task ran until it had to wait or was done"
    for switch in it.switches:
        yield from _wrapped(
            f"before step {switch.step}, from {switch.away_from} to {switch.to}; without it: "
            f"{switch.without}",
            " " * 5,
            f"{switch.number:>3}. ",
        )
    if it.untried_switches:
        yield f"     {it.untried_switches} earlier ones were not left out one by one"


def _inevitable(it: Explanation) -> Iterator[str]:
    """From where on it could not be avoided any more."""
    yield from _title("How likely, and from where on inevitable")
    for kept, failing in it.likelihood:
        where = (
            f"before switch {next((each.number for each in it.switches if each.step == kept), 0)}, "
            f"step {kept}"
            if kept
            else "from the start"
        )
        yield f"{where}: {failing} of {it.tries} random continuations fail in this way"
    found = it.inevitable
    if found is None:
        yield "not before the finding itself, as far as was tried"
    elif found.step < 0:
        yield from _wrapped(
            f"inevitable from the start: {found.tried} of {found.tried} random schedules fail in "
            "this way"
        )
    else:
        yield from _wrapped(
            f"inevitable from step {found.step} on: {found.tried} of {found.tried} random "
            "continuations fail in this way, and the"
            f" default one; before that step {found.failed_before} of {found.tried}. Found by "
            "bisection and by trying, not proved."
        )
