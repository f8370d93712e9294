"""Live progress: one line that redraws itself on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from attrs import frozen
from rich.console import Console
from rich.live import Live
from rich.text import Text

from stress.runs.run import RunProgress
from stress.search.exploration import ExplorationTally

PLAIN_EVERY_S = 2.0
REDRAW_EVERY_S = 0.25
SHOWN = (
    "vcpu_faults",
    "memslot_deletes",
    "exported_zaps",
    "device_accesses",
    "io_faults",
    "rcu_grace_periods",
)
"""The counters in the progress line of a run."""

Progress = TypeVar("Progress")


@frozen
class ProgressLine:
    """One line of progress at `at_s` seconds. Where lines are not redrawn, the next one is due at
    `next_s`."""

    text: str
    at_s: float
    next_s: float
    style: str = ""


def display(
    console: Console, line_of: Callable[[Progress], ProgressLine], *, quiet: bool
) -> AbstractContextManager[Callable[[Progress], None]]:
    """A context in which progress is shown by calling what it yields."""
    if quiet:
        return nullcontext(lambda _: None)
    if console.is_terminal and not console.is_dumb_terminal:
        return _redrawn(console, line_of)
    return nullcontext(_printed(console, line_of))


@contextmanager
def _redrawn(
    console: Console, line_of: Callable[[Progress], ProgressLine]
) -> Iterator[Callable[[Progress], None]]:
    next_s = 0.0
    with Live(Text("starting"), console=console, refresh_per_second=4, transient=True) as live:

        def show(progress: Progress) -> None:
            nonlocal next_s
            now = time.monotonic()
            if now >= next_s:
                next_s = now + REDRAW_EVERY_S
                line = line_of(progress)
                live.update(Text(line.text, style=line.style, no_wrap=True, overflow="ellipsis"))

        yield show


def _printed(
    console: Console, line_of: Callable[[Progress], ProgressLine]
) -> Callable[[Progress], None]:
    next_s = PLAIN_EVERY_S

    def show(progress: Progress) -> None:
        nonlocal next_s
        line = line_of(progress)
        if line.at_s >= next_s:
            next_s = line.next_s
            console.print(line.text, highlight=False, markup=False, soft_wrap=True)

    return show


def run_line(progress: RunProgress) -> ProgressLine:
    """The progress of a run: plain lines every two seconds, or thirty of them for a longer run."""
    counts = progress.counters
    return ProgressLine(
        f"{progress.elapsed_s:5.1f}/{progress.budget.span} s  "
        f"{'  '.join(f'{name} {counts[name]:,}' for name in SHOWN)}  "
        f"findings {progress.findings}",
        progress.elapsed_s,
        progress.elapsed_s + max(PLAIN_EVERY_S, progress.budget.duration_s / 30),
        style="bold red" if progress.findings else "",
    )


def exploration_line(tally: ExplorationTally) -> ProgressLine:
    """The progress of an exploration: plain lines at growing distances."""
    left = (
        ""
        if tally.remaining is None
        else f"  left about {tally.remaining:,.0f} (estimate, tends to grow)"
    )
    return ProgressLine(
        f"{tally.seconds:6.1f} s  schedules {tally.schedules:,}  steps {tally.steps:,}  classes "
        f"{tally.classes:,}  "
        f"unseen {tally.unseen_mass:.1%}{left}  failures {len(tally.failures)}",
        tally.seconds,
        tally.seconds * 1.2 + PLAIN_EVERY_S,
    )
