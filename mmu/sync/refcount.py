"""Reference counts that notice what `refcount_t` notices: underflow, get on zero, put after the last put."""

from __future__ import annotations

from mmu.report import Report, Reporter, section
from mmu.runtime import Cell, Runtime
from mmu.stack import Stack, capture, render
from mmu.task import current


class Refcount:
    """A counted lifetime. Misuse is an O4 report with both stacks: the caller's and the one that reached zero."""

    __slots__ = ("_count", "_last_put", "_reporter", "name")

    def __init__(self, runtime: Runtime, reporter: Reporter, name: str, value: int) -> None:
        self.name = name
        self._count = runtime.counter(name, value)
        self._reporter = reporter
        nobody: tuple[str, Stack] = ("", ())
        self._last_put: Cell[tuple[str, Stack]] = runtime.cell(f"{name}.last_put", nobody)

    def read(self) -> int:
        """refcount_read()."""
        return self._count.value

    def get(self) -> None:
        """refcount_inc(): the caller knows that the object is alive."""
        if self._count.fetch_add(1) <= 0:
            self._count.fetch_add(-1)
            self._report("get-on-zero", "refcount_t: addition on 0; use-after-free", "a reference may be taken only on a live object")

    def inc_not_zero(self) -> bool:
        """refcount_inc_not_zero(): take a reference unless the object is already dying."""
        return self._count.inc_not_zero()

    def put(self) -> bool:
        """refcount_dec_and_test(): drop a reference; true for the last one. An underflow is reported, never true."""
        before = self._count.fetch_add(-1)
        if before == 1:
            self._last_put.value = (str(current.task), capture(2))
            return True
        if before <= 0:
            self._count.fetch_add(1)
            self._report("underflow", "refcount_t: underflow; use-after-free", "every put needs its own get; this one is a double put")
        return False

    def _report(self, code: str, headline: str, sentence: str) -> None:
        task, stack = self._last_put.value
        here = capture(3)
        parts = [section("call trace", render(here))]
        if task:
            parts.append(section(f"reached zero in {task}", render(stack)))
        self._reporter.emit(
            Report(
                "O4",
                f"refcount-{code}",
                f"WARNING: {headline} ({self.name})",
                sentence,
                "lib/refcount.c; invariant I1",
                str(current.task),
                f"{self.name} in {here[0][0].co_qualname}",
                tuple(parts),
            )
        )
