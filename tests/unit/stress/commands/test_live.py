"""Live progress: redrawn on a terminal, printed when it is due elsewhere, and not at all."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stress.commands.live import ProgressLine, display, exploration_line, run_line
from stress.runs.run import RunProgress
from stress.scenario.counters import COUNTERS
from stress.scenario.types import Budget, Seconds
from stress.search.exploration import ExplorationTally


def every_second(second: int) -> ProgressLine:
    return ProgressLine(f"[{second}]", float(second), second + 3.0)


def shown(console: Console, *, quiet: bool = False) -> None:
    with display(console, every_second, quiet=quiet) as show:
        for second in range(10):
            show(second)


def test_plain_lines_come_when_they_are_due() -> None:
    out = io.StringIO()
    shown(Console(file=out))
    assert out.getvalue().splitlines() == ["[2]", "[5]", "[8]"]


def test_a_terminal_shows_a_line_at_once_and_is_left_clean() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, _environ={"TERM": "xterm"})
    with display(console, every_second, quiet=False) as show:
        show(0)
    assert "[0]" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue(), "the cursor is back"


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_shows_nothing(terminal: bool) -> None:
    out = io.StringIO()
    shown(Console(file=out, force_terminal=terminal), quiet=True)
    assert out.getvalue() == ""


def test_a_run_s_line_is_red_once_something_is_found() -> None:
    counters = dict.fromkeys(COUNTERS, 1234)
    budget = Budget(duration_s=Seconds(600.0))
    clean, broken = (run_line(RunProgress(3.0, budget, counters, found)) for found in (0, 2))
    assert clean.text == broken.text.replace("findings 2", "findings 0")
    assert clean.text.startswith("  3.0/600 s  vcpu_faults 1,234  memslot_deletes 1,234")
    assert (clean.next_s, clean.style, broken.style) == (23.0, "", "bold red")


def test_an_exploration_s_lines_grow_apart() -> None:
    tally = ExplorationTally(schedules=1000, seconds=10.0, remaining=5000.0)
    line = exploration_line(tally)
    assert "schedules 1,000" in line.text
    assert "left about 5,000 (estimate, tends to grow)" in line.text
    assert (line.at_s, line.next_s) == (10.0, 14.0)
