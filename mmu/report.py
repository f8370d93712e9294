"""Reports of broken rules: values that look like the kernel's own splats.

A report is not an exception. The model goes on where a kernel with `WARN_ON` would go on, so that
one run can show what a first mistake leads to. Equal reports (same `signature`) are counted, not
repeated.
"""

from __future__ import annotations

import sys
import textwrap
import threading
from collections.abc import Callable, Iterable

from attrs import evolve, frozen

from mmu.numbers.oracles import RULES

WIDTH = 100
"""Columns of a splat; its headline is one line whatever its length, so that it can be searched
for."""


@frozen
class Section:
    """A titled block of lines in a report, such as one thread's stack or the locks held."""

    title: str
    lines: tuple[str, ...]


def signature_of(rule: str, code: str, subject: str) -> str:
    """What makes two reports the same finding."""
    return f"{rule}/{code}/{subject}"


@frozen
class Report:
    """One broken rule with its evidence.

    `rule` is a number from `RULES`; `code` names the check; `headline` is what the kernel would
    print after `WARNING:` or `BUG:`; `sentence` states the rule; `source` the kernel text, commit
    or section it comes from; `subject` (lock names, function) tells apart two reports of the same
    check. `gfn` is the guest frame it is about, where there is one, so that an observer can add
    what happened to it. `stands_for` is the rule that was broken somewhere before, where what is
    reported is only the state that it led to.
    """

    rule: str
    code: str
    headline: str
    sentence: str
    source: str
    task: str = ""
    subject: str = ""
    sections: tuple[Section, ...] = ()
    gfn: int | None = None
    count: int = 1
    stands_for: str = ""

    @property
    def signature(self) -> str:
        """What makes two reports the same finding."""
        return signature_of(self.rule, self.code, self.subject)

    def names(self) -> set[str]:
        """Every name that the report answers to: its rule, its code, and the rule that it stands
        for."""
        return {self.rule, self.code, self.stands_for or self.rule}

    def render(self) -> str:
        """The splat: headline, rule, source, then each section indented like a kernel stack."""
        bar = "=" * max(54, min(len(self.headline) + 9, WIDTH))
        lines = [bar, self.headline, "-" * len(bar)]
        lines += _wrapped(f"rule {self.rule} ({self.code}): {self.sentence}")
        if self.stands_for:
            lines += _wrapped(f"stands for {self.stands_for} {RULES[self.stands_for]}")
        lines += _wrapped(f"source: {self.source}")
        if self.task:
            lines.append(
                f"task: {self.task}" + (f"   seen {self.count} times" if self.count > 1 else "")
            )
        for section in self.sections:
            lines += ["", f"{section.title}:", *(f" {line}" for line in section.lines)]
        return "\n".join([*lines, bar])


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(
        line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def section(title: str, lines: Iterable[str]) -> Section:
    """A `Section` from any iterable of lines."""
    return Section(title, tuple(lines))


Sink = Callable[[Report], object]
Enricher = Callable[[Report], Report]


def print_report(report: Report) -> None:
    """The default sink: the splat on stderr, as the kernel's console would show it."""
    print(report.render(), file=sys.stderr, flush=True)


class Reporter:
    """Collects reports from any thread; new ones go to `sink`, repeated ones are only counted."""

    def __init__(self, sink: Sink | None = print_report) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._found: dict[str, Report] = {}
        self.enrich: Enricher | None = None

    def emit(self, report: Report) -> None:
        """Record `report`; pass it on to the sink when no equal one was seen before."""
        with self._lock:
            known = self._found.get(report.signature)
            if known is not None:
                self._found[report.signature] = evolve(known, count=known.count + 1)
                return
            self._found[report.signature] = report
        if self.enrich is not None:
            report = self._enriched(report)
        if self._sink is not None:
            self._sink(report)

    def repeats(self, signature: str) -> bool:
        """Count a report that an equal one was recorded before, so that nothing has to be made of
        it; returns whether there was one (WARN_ON_ONCE)."""
        with self._lock:
            known = self._found.get(signature)
            if known is not None:
                self._found[signature] = evolve(known, count=known.count + 1)
        return known is not None

    def redirect(self, sink: Sink | None) -> Sink | None:
        """Send new reports to `sink` from now on; returns where they went before."""
        with self._lock:
            before, self._sink = self._sink, sink
        return before

    def _enriched(self, report: Report) -> Report:
        """The report with what the enricher adds; a report must get through whatever happens to its
        decoration."""
        assert self.enrich is not None
        try:
            richer = self.enrich(report)
        except Exception as error:
            richer = evolve(
                report, sections=(*report.sections, section("could not be enriched", [repr(error)]))
            )
        with self._lock:
            self._found[report.signature] = evolve(
                richer, count=self._found[report.signature].count
            )
        return richer

    @property
    def reports(self) -> tuple[Report, ...]:
        """Everything reported so far, first seen first, with counts."""
        with self._lock:
            return tuple(self._found.values())

    def rules(self) -> set[str]:
        """The rule numbers that were reported."""
        return {report.rule for report in self.reports}
