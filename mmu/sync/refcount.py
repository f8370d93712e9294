"""Reference counts that notice what `refcount_t` notices - underflow, get on zero, put after the
last put - and who did it.

Each thread keeps a ledger of its own: the places where it took a reference and has not given one
back, and those where it gave back one that it had not taken. References that are handed from thread
to thread leave a line on both sides; what a leak or a double put leaves over is on one side only
(the kernel's ref_tracker asks for a tracker a reference instead).
"""

from __future__ import annotations

from mmu.report import Report, Reporter, section
from mmu.runtime import Cell, Runtime
from mmu.stack import Stack, capture, innermost, render
from mmu.task import Task, current

FRAMES = 4
KEPT = 8
"""Places that a thread remembers a count, the newest; more than that are only counted."""


class Ledger:
    """What one thread took and gave back of one count. Written by its thread; the tuples are
    replaced, never changed."""

    __slots__ = ("gets", "got", "put", "puts")

    def __init__(self) -> None:
        self.gets = 0
        self.puts = 0
        self.got: tuple[Stack, ...] = ()
        self.put: tuple[Stack, ...] = ()

    def take(self, place: Stack) -> None:
        """A get."""
        self.gets += 1
        self.got = (*self.got[1 - KEPT :], place)

    def give(self, place: Stack) -> None:
        """A put: of this thread's newest get, if it has one."""
        if self.gets:
            self.gets -= 1
            self.got = self.got[:-1]
        else:
            self.puts += 1
            self.put = (*self.put[1 - KEPT :], place)


class Refcount:
    """A counted lifetime. Misuse is an O4 report with the stacks of the caller, of who reached
    zero, and of who holds on."""

    __slots__ = ("_count", "_last_put", "_ledgers", "_made", "_reporter", "name")

    def __init__(self, runtime: Runtime, reporter: Reporter, name: str, value: int) -> None:
        self.name = name
        self._count = runtime.counter(name, value)
        self._reporter = reporter
        nobody: tuple[str, Stack] = ("", ())
        self._last_put: Cell[tuple[str, Stack]] = runtime.cell(f"{name}.last_put", nobody)
        self._made = (value, str(current.task), capture(2, FRAMES))
        self._ledgers: dict[Task, Ledger] = {}

    def read(self) -> int:
        """refcount_read()."""
        return self._count.value

    def get(self) -> None:
        """refcount_inc(): the caller knows that the object is alive."""
        if self._count.fetch_add(1) <= 0:
            self._count.fetch_add(-1)
            self._report(
                "get-on-zero",
                "refcount_t: addition on 0; use-after-free",
                "a reference may be taken only on a live object",
            )
            return
        self._ledger().take(capture(2, FRAMES))

    def inc_not_zero(self) -> bool:
        """refcount_inc_not_zero(): take a reference unless the object is already dying."""
        if not self._count.inc_not_zero():
            return False
        self._ledger().take(capture(2, FRAMES))
        return True

    def put(self) -> bool:
        """refcount_dec_and_test(): drop a reference; true for the last one. An underflow is
        reported, never true."""
        before = self._count.fetch_add(-1)
        if before <= 0:
            self._count.fetch_add(1)
            self._report(
                "underflow",
                "refcount_t: underflow; use-after-free",
                "every put needs its own get; this one is a double put",
            )
            return False
        here = capture(2, FRAMES)
        self._ledger().give(here)
        if before == 1:
            self._last_put.value = (str(current.task), here)
        return before == 1

    def check_released(self) -> bool:
        """Report a leak unless the count is zero; for the end of whatever the references were to.
        Whether it was zero."""
        left = self._count.value
        if not left:
            return True
        self._report(
            "leaked",
            f"refcount_t: {left} reference{'s' if left > 1 else ''} leaked",
            "every get needs its own put before the object's owner goes",
            where=False,
        )
        return False

    def history(self) -> list[tuple[str, list[str]]]:
        """Who made the count, and thread by thread what was taken and not given back, or given back
        and not taken."""
        value, task, place = self._made
        parts = [(f"made with {value} by {task}", render(place))]
        for owner, ledger in list(self._ledgers.items()):
            got, put = ledger.got, ledger.put
            parts += [
                (f"got and not put by {owner}{_of(ledger.gets, number)}", render(at))
                for number, at in enumerate(got, 1)
            ]
            parts += [
                (f"put but not got by {owner}{_of(ledger.puts, number)}", render(at))
                for number, at in enumerate(put, 1)
            ]
        return parts

    def _ledger(self) -> Ledger:
        task = current.task
        known = self._ledgers.get(task)
        if known is None:
            known = self._ledgers[task] = Ledger()
        return known

    def _report(self, code: str, headline: str, sentence: str, where: bool = True) -> None:
        task, stack = self._last_put.value
        here = capture(3)
        parts = [section("call trace", render(here))]
        if task:
            parts.append(section(f"reached zero in {task}", render(stack)))
        parts += [section(title, lines) for title, lines in self.history()]
        self._reporter.emit(
            Report(
                "O4",
                f"refcount-{code}",
                f"WARNING: {headline} ({self.name})",
                sentence,
                "lib/refcount.c, lib/ref_tracker.c; invariant I1",
                str(current.task),
                f"{self.name} in {innermost(here)}" if where else self.name,
                tuple(parts),
            )
        )


def _of(total: int, number: int) -> str:
    """Which of several."""
    return f" ({number} of {total})" if total > 1 else ""
