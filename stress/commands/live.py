"""Live progress: one line that redraws itself on a terminal, plain lines now and then anywhere
else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from stress.runs.run import RunProgress
from stress.search.exploration import ExplorationTally

PLAIN_EVERY_S = 2.0
SHOWN = (
    "vcpu_faults",
    "memslot_deletes",
    "exported_zaps",
    "device_accesses",
    "io_faults",
    "rcu_grace_periods",
)
"""The counters in the progress line of a run."""


class Display(Protocol):
    """Shows progress while a run goes on."""

    def show(self, progress: RunProgress) -> None:
        """Something changed."""
        ...

    def __enter__(self) -> Display: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class SilentDisplay:
    """Shows nothing."""

    def show(self, progress: RunProgress) -> None:
        """Nothing."""

    def __enter__(self) -> SilentDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class PlainDisplay(SilentDisplay):
    """A line every two seconds, or thirty lines for a longer run, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = PLAIN_EVERY_S

    def show(self, progress: RunProgress) -> None:
        """Print when it is time."""
        if progress.elapsed_s >= self._next:
            self._next = progress.elapsed_s + max(PLAIN_EVERY_S, progress.budget.duration_s / 30)
            self._console.print(line_of(progress), highlight=False, markup=False, soft_wrap=True)


class TerminalDisplay(SilentDisplay):
    """A line that is redrawn four times a second."""

    def __init__(self, console: Console) -> None:
        self._live = Live(Text("starting"), console=console, refresh_per_second=4, transient=True)
        self._next = 0.0

    def show(self, progress: RunProgress) -> None:
        """Redraw."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.25
            style = "bold red" if progress.findings else ""
            self._live.update(Text(line_of(progress), style=style))

    def __enter__(self) -> TerminalDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)


def display_for(console: Console, *, quiet: bool) -> Display:
    """The display that suits where the output goes."""
    if quiet:
        return SilentDisplay()
    return (
        TerminalDisplay(console)
        if console.is_terminal and not console.is_dumb_terminal
        else PlainDisplay(console)
    )


@contextmanager
def exploration_display(
    console: Console, *, quiet: bool
) -> Iterator[Callable[[ExplorationTally], None]]:
    """What shows the progress of an exploration; as for runs."""
    if quiet:
        yield lambda _: None
    elif console.is_terminal and not console.is_dumb_terminal:
        with Live(Text("starting"), console=console, refresh_per_second=4, transient=True) as live:
            yield lambda tally: live.update(Text(exploration_line(tally)))
    else:
        next_s = [PLAIN_EVERY_S]

        def show(tally: ExplorationTally) -> None:
            if tally.seconds >= next_s[0]:
                next_s[0] = tally.seconds * 1.2 + PLAIN_EVERY_S
                console.print(
                    exploration_line(tally), highlight=False, markup=False, soft_wrap=True
                )

        yield show


def exploration_line(tally: ExplorationTally) -> str:
    """The progress line of an exploration."""
    left = (
        ""
        if tally.remaining is None
        else f"  left about {tally.remaining:,.0f} (estimate, tends to grow)"
    )
    return (
        f"{tally.seconds:6.1f} s  schedules {tally.schedules:,}  steps {tally.steps:,}  classes "
        f"{tally.classes:,}  "
        f"unseen {tally.unseen_mass:.1%}{left}  failures {len(tally.failures)}"
    )


def line_of(progress: RunProgress) -> str:
    """The progress line."""
    counts = progress.counters
    return (
        f"{progress.elapsed_s:5.1f}/{progress.budget.span} s  "
        f"{'  '.join(f'{name} {counts[name]:,}' for name in SHOWN)}  "
        f"findings {progress.findings}"
    )
