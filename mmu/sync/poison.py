"""Use-after-free detection: a freed object changes its class, so the live path pays nothing for it.

`poison(obj)` turns an instance of a class that inherits `RcuHead` into an instance of a generated
subclass whose every access is a report (who freed it, who queued the free, who touches it). The
idea is KASAN's, the means is Python's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmu.report import Report, Reporter, section
from mmu.runtime import Table
from mmu.stack import Stack, capture, render
from mmu.task import current


class Obituary:
    """Who retired an object (call_rcu or direct free) and who freed it."""

    __slots__ = ("freed_by", "freed_stack", "reporter", "retired_by", "retired_stack", "what")

    def __init__(self, what: str, reporter: Reporter) -> None:
        self.what = what
        self.reporter = reporter
        self.retired_by = ""
        self.retired_stack: Stack = ()
        self.freed_by = ""
        self.freed_stack: Stack = ()


class RcuHead:
    """What a class inherits so that its objects can be retired through RCU or SRCU and poisoned
    afterwards."""

    __slots__ = ("obituary",)

    obituary: Obituary | None

    def retire(self, what: str, reporter: Reporter) -> None:
        """Note that the calling task took the object out of sight and asked for it to be freed."""
        note = Obituary(what, reporter)
        note.retired_by = str(current.task)
        note.retired_stack = capture(2)
        self.obituary = note


_poisoned: dict[type, type] = {}
_dead_types: set[type] = set()
_freed_words: dict[type, type] = {}


def poison(obj: RcuHead, reporter: Reporter) -> None:
    """Free `obj`: from now on every touch of it is an O2 report."""
    # a class that is only freed never sets it
    note: Obituary | None = getattr(obj, "obituary", None)
    if note is None:
        note = Obituary(type(obj).__name__, reporter)
        obj.obituary = note
    note.freed_by = str(current.task)
    note.freed_stack = capture(2)
    live = type(obj)
    dead = _poisoned.get(live)
    if dead is None:
        members = {
            "__slots__": (),
            "__getattribute__": _touch_attribute,
            "__setattr__": _touch_by_setting,
        }
        dead = type("Freed" + live.__name__, (live,), members)
        _dead_types.add(dead)
        _poisoned[live] = dead
    obj.__class__ = dead


def is_poisoned(obj: object) -> bool:
    """Whether `obj` was freed; does not count as a touch."""
    return type(obj) in _dead_types


def obituary_of(obj: RcuHead) -> Obituary | None:
    """The record of a freed object's death; does not count as a touch."""
    note: Obituary | None = object.__getattribute__(obj, "obituary")
    return note


class FreedWords(Table):
    """What a freed table does instead of its class: every load or store is a report, and reads as
    non-present."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        self._touched("read", index)
        return 0

    def __iter__(self) -> Iterator[int]:
        self._touched("iterated", "all")
        return iter(())

    def store(self, index: int, value: int) -> None:
        """Report; nothing is stored."""
        self._touched("written", index)

    def xchg(self, index: int, value: int) -> int:
        """Report; nothing is stored."""
        self._touched("written", index)
        return 0

    def cmpxchg(self, index: int, old: int, new: int) -> int:
        """Report; answers as if the compare had failed."""
        self._touched("written", index)
        return ~old

    def fetch_and(self, index: int, bits: int) -> int:
        """Report; nothing is stored."""
        self._touched("written", index)
        return 0

    def _touched(self, how: str, index: Any) -> None:
        report_touch(self.note, f"entry {index} {how}", 3)


def poison_table(table: Table, note: Obituary) -> None:
    """Free a table's words. `note` is the obituary of the page they belong to."""
    table.end()
    table.note = note
    live = type(table)
    dead = _freed_words.get(live)
    if dead is None:
        dead = type("Freed" + live.__name__, (FreedWords, live), {"__slots__": ()})
        _freed_words[live] = dead
    table.__class__ = dead


def report_touch(note: Obituary, how: str, skip: int = 2) -> None:
    """Emit the use-after-free report for an object that died as `note` says."""
    here = capture(skip + 1)
    where = render(here)[0]
    note.reporter.emit(
        Report(
            "O2",
            "use-after-free",
            f"BUG: use-after-free in {where}",
            f"{note.what} was freed, then {how} by {current.task}",
            "KASAN use-after-free; reference 2.6 handle_removed_pt, invariant I10",
            str(current.task),
            where.split(" (")[0],
            (
                section(f"touched by {current.task}", render(here)),
                section(f"freed by {note.freed_by}", render(note.freed_stack)),
                section(
                    f"retired by {note.retired_by or '(freed directly)'}",
                    render(note.retired_stack),
                ),
            ),
        )
    )


def _touch_by_setting(self: RcuHead, name: str, value: object) -> None:  # noqa: ARG001 - a dead object stores nothing
    """Report; nothing is set."""
    note = object.__getattribute__(self, "obituary")
    if note is not None:
        report_touch(note, f"attribute {name} set")


def _touch_attribute(self: RcuHead, name: str) -> Any:
    if not name.startswith("__"):
        note = object.__getattribute__(self, "obituary")
        if note is not None:
            report_touch(note, f"attribute {name} touched")
    return object.__getattribute__(self, name)
