"""What the checks have found: what held, what broke, and what they could not tell.

A finding may rest on something that shows only later: on which kernel the recording is of, on the
recording being whole, on its clock being one for all CPUs. It is kept with that condition, and
judged at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import compress
from typing import Final

from attrs import define, evolve, field, frozen

from mmu.numbers.oracles import RULES
from mmu.report import Report, section
from stress.trace.facts import Check, Fact

MOST_REPORTS: Final = 40
"""Reports that are kept of one kind; the others are counted."""


@define(eq=False)
class Unknown:
    """A fact that was missing for some objects; `line` is that of the first."""

    count: int
    line: int


@define(eq=False)
class CheckTally:
    """What a check did so far."""

    held: Counter[str] = field(factory=Counter)
    """How often something was checked and was right, by what it was."""
    broken: int = 0
    unsure: dict[str, Unknown] = field(factory=dict)
    """What it could not judge, by the fact that was missing."""


@frozen
class TraceFinding:
    """A broken rule. The first of `lines` is where, the others prove it."""

    check: str
    code: str
    headline: str
    lines: tuple[tuple[int, str], ...]
    task: str = ""
    rule: str = ""
    absent: frozenset[str] = frozenset()
    """The fewest events that are missing, according to this finding, one line each: if as many
    lines were lost, they may have been these."""
    across: bool = False
    """Whether it rests on the order of events of different CPUs."""
    tables: bool = False
    """Whether it rests on the tables, which cannot be rebuilt where VMs are mixed up."""
    given: tuple[Fact, ...] = ()
    """What the recording must show somewhere, or it has no such events at all."""
    before: str = ""
    """The layout from which on the rule is not known to hold, or ""."""


@define(eq=False)
class CheckLedger:
    """The findings, and what held."""

    checks: dict[str, Check] = field(factory=dict)
    tallies: dict[str, CheckTally] = field(factory=dict)
    findings: list[TraceFinding] = field(factory=list)
    kinds: Counter[tuple[str, str]] = field(factory=Counter)
    times: list[int] = field(factory=list)
    """The time of the recording at which each finding was made."""
    clock: Callable[[], int] = int
    """Returns the time of the present event."""
    dropped: int = 0
    """Findings beyond `MOST_REPORTS` of a kind."""

    def held(self, check: str, what: str, times: int = 1) -> None:
        """Count something that was checked and was right."""
        self.tallies[check].held[what] += times

    def unknown(self, check: str, fact: Fact | str, line: int) -> None:
        """Count something that could not be judged, by the fact that was missing."""
        unsure = self.tallies[check].unsure
        name = fact if isinstance(fact, str) else fact.name
        known = unsure.get(name)
        if known is None:
            unsure[name] = Unknown(1, line)
        else:
            known.count += 1

    def broken(self, finding: TraceFinding) -> None:
        """Note a broken rule."""
        self.kinds[finding.check, finding.code] += 1
        if self.kinds[finding.check, finding.code] > MOST_REPORTS:
            self.dropped += 1
        else:
            self.findings.append(finding)
            self.times.append(self.clock())

    def retract(self, time: int, fact: str) -> None:
        """Events of this time come only now: what was found at later ones is not known."""
        kept = [at <= time for at in self.times]
        for finding in compress(self.findings, (not keep for keep in kept)):
            self.kinds[finding.check, finding.code] -= 1
            self.unknown(finding.check, fact, finding.lines[0][0])
        self.findings[:] = compress(self.findings, kept)
        self.times[:] = compress(self.times, kept)

    def count_broken(self, findings: list[TraceFinding]) -> None:
        """Put the figures of the findings that stand into the tallies."""
        kept = Counter((finding.check, finding.code) for finding in findings)
        for (check, code), count in kept.items():
            total = self.kinds[check, code]
            self.tallies[check].broken += total if total > MOST_REPORTS else count

    def report(self, finding: TraceFinding) -> Report:
        """A finding as a splat, without the text of its lines."""
        about = self.checks[finding.check]
        rule = finding.rule or about.rule
        line = finding.lines[0][0]
        return Report(
            rule=rule,
            code=finding.code,
            headline=f"{RULES[rule].partition(':')[0]}: line {line}: {finding.headline}",
            sentence=self._sentence(about, finding.code),
            source=about.source,
            task=finding.task,
            subject=f"line {line}",
        )

    @staticmethod
    def _sentence(about: Check, code: str) -> str:
        return next((rule.title for rule in about.rules if rule.code == code), about.title)


def with_lines(report: Report, lines: tuple[tuple[int, str], ...], texts: dict[int, str]) -> Report:
    """The report with the lines that prove it, as they stand in the recording."""
    shown = [
        f"{line:>8}  {what}\n{'':>11}{texts.get(line, '')}"
        if texts.get(line)
        else f"{line:>8}  {what}"
        for line, what in lines
    ]
    return evolve(
        report, sections=(section("lines of the recording", "\n".join(shown).splitlines()),)
    )
