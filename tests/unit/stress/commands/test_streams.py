"""What commands print: control characters are shown and not passed on, styles of ours are, and a
stream that cannot be written is no error of whoever writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stress.commands.console import SafeConsole, console
from stress.commands.streams import Output, Screen, styled
from stress.results.printable import printable

EVIL = "title\x1b[2K\x1b[1A\u202egnp\x07\r"
SHOWN = "title\\x1b[2K\\x1b[1A\\u202egnp\\x07\\r"


@pytest.fixture
def screen(tmp_path: object) -> Iterator[tuple[Screen, int]]:
    """A screen that writes into a pipe, and the pipe's other end."""
    read, write = os.pipe()
    yield Screen(Output(write, "w", closefd=False), None, by_line=True), read
    os.close(read)
    os.close(write)


@given(st.text())
def test_printable_text_has_nothing_that_acts(text: str) -> None:
    shown = printable(text)
    assert not set(shown) & set("\x1b\r\b\x07\x9b\u202e\u2066\u200f\ufeff\ud800")
    assert printable(shown) == shown
    assert shown.encode().decode() == shown
    if text.isprintable():
        assert shown == text


def test_ends_of_lines_tabs_and_other_scripts_stay() -> None:
    text = "a\tb\nµs, 漢字, é — \U0001f600"
    assert printable(text) == text


def test_a_screen_shows_control_characters(screen: tuple[Screen, int]) -> None:
    out, read = screen
    print(EVIL, file=out)
    out.writelines([EVIL, "\n"])
    styled(out).write("\x1b[1mours\x1b[0m\n")
    assert os.read(read, 1000).decode() == f"{SHOWN}\n{SHOWN}\n\x1b[1mours\x1b[0m\n"


def test_a_screen_takes_bytes_that_are_no_text(screen: tuple[Screen, int]) -> None:
    out, read = screen
    print("name\udcff", file=out)
    assert os.read(read, 1000) == b"name\\udcff\n"


def test_a_console_styles_what_it_shows_and_nothing_else(
    screen: tuple[Screen, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, read = screen
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = SafeConsole(file=styled(out), force_terminal=True, color_system="standard", width=90)
    table = Table(box=None)
    table.add_column(EVIL)
    table.add_row(Text(EVIL, "red"))
    made.print(EVIL, markup=False, highlight=False)
    made.print(table)
    with Live(Text(EVIL, "green"), console=made, transient=True):
        pass
    text = os.read(read, 10_000).decode()
    assert text.count(SHOWN[:-6]) >= 3
    assert EVIL[5:13] not in text
    assert "\x1b[31m" in text, "the style is ours"
    assert "\u202e" not in text


def test_a_console_is_as_wide_as_asked_where_nobody_looks(
    screen: tuple[Screen, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", screen[0])
    assert console(width=150).width == 150


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_a_stream_that_cannot_be_written_drops_the_rest(kind: str) -> None:
    if kind == "full":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        read, fd = os.pipe()
        os.close(read)
    output = Output(fd, "w", closefd=False)
    out = Screen(output, None, by_line=False)
    for _ in range(3):
        print("x" * 10_000, file=out)
        out.flush()
    assert isinstance(output.error, OSError if kind == "full" else BrokenPipeError)
    os.close(fd)
