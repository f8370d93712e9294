"""A stored result as test cases, the way CI systems think: one suite, each case passed, failed, in
error or skipped.

The suite has no failure and no error exactly when the verdict is PASS. Names are the same from run
to run, so that a CI system can show a case's history: a rule keeps its case, whatever is found;
only a rule's further findings add cases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import frozen

from mmu.numbers.oracles import RULES
from stress.report import certificate_text, exploration_console
from stress.report.run_console import verdict_line
from stress.results.exploration_record import ExplorationRecord
from stress.results.run_record import Environment, RunRecord
from stress.results.store import was_killed
from stress.results.verdict import Obligation, Verdict

Outcome = Literal["passed", "failure", "error", "skipped"]
MOST_CASES = 1000
"""So many cases of further findings; what is left is counted in a last one."""
TROUBLE = (Verdict.INCONCLUSIVE.name, Verdict.HARNESS_ERROR.name)


@frozen
class SuiteCase:
    """One test case: `message` is a line, `text` the whole story, `kind` what sort of failure or
    error it is."""

    group: str
    name: str
    outcome: Outcome = "passed"
    kind: str = ""
    message: str = ""
    text: str = ""


@frozen
class Suite:
    """All cases of one result. `started` is UTC, `wall_s` seconds, `summary` the verdict and its
    certificate, `properties` what ran where."""

    name: str
    started: str
    wall_s: float
    summary: str
    properties: tuple[tuple[str, str], ...]
    cases: tuple[SuiteCase, ...]

    def count(self, outcome: Outcome) -> int:
        """How many cases ended so."""
        return sum(case.outcome == outcome for case in self.cases)


def of_run(record: RunRecord) -> Suite:
    """A run: that it came to its end, its obligations, every rule, and what was to be found."""
    found = [
        (
            finding.rule,
            finding.code,
            finding.headline,
            _with_suspects(finding.splat, finding.suspects),
        )
        for finding in record.findings
    ]
    killed = was_killed(record)
    trouble = (
        ""
        if record.verdict not in TROUBLE and record.status == "finished"
        else "; ".join(record.reasons)
    )
    errors = (
        ["the process was killed" if killed else "the run is still going on"]
        if record.status == "running"
        else []
    )
    cases = [
        end("run", record.verdict, trouble, [*errors, *record.harness_errors]),
        *_expected(record.expected_rules, record.expected_seen),
        *_obligations(record.obligations, failed=bool(found)),
        *_rules(found, record.scenario, record.judged),
    ]
    summary = "\n".join([verdict_line(record), *certificate_text.lines(record.certified)])
    return Suite(
        record.name, record.started, record.run_s, summary, _run_properties(record), tuple(cases)
    )


def of_exploration(record: ExplorationRecord) -> Suite:
    """An exploration: likewise; a failure holds its splat, its schedule, and how to replay it."""
    found = []
    for failure in record.failures:
        how = (
            f"{exploration_console.how_found(failure)}\nreplay: stress replay "
            f"{failure.file}\nschedule: {failure.schedule}"
        )
        story = "\n".join(
            [
                _with_suspects(failure.splat, failure.suspects),
                *(f"also: {other}" for other in failure.also),
                how,
            ]
        )
        found.append((failure.rule, failure.code, failure.headline, story))
    needed: Mapping[str, int] = record.scenario.get("obligations", {})
    obligations = tuple(
        Obligation(name, count, record.counters.get(name, 0)) for name, count in needed.items()
    )
    trouble = "; ".join(record.reasons) if record.verdict in TROUBLE else ""
    cases = [
        end("exploration", record.verdict, trouble, record.harness_errors),
        *_expected(record.expected_rules, record.expected_seen),
        *_obligations(obligations, failed=bool(found)),
        *_rules(found, record.scenario, record.judged),
    ]
    ran = (
        ("strategy", record.strategy),
        ("schedules", str(record.schedules)),
        ("classes", str(record.classes)),
    )
    properties = (*_common(record, record.environment), *ran)
    summary = "\n".join(
        [exploration_console.verdict_line(record), *certificate_text.lines(record.certificate)]
    )
    return Suite(record.name, record.started, record.wall_s, summary, properties, tuple(cases))


def end(what: str, verdict: str, trouble: str, errors: Any) -> SuiteCase:
    """Whether the whole thing took place; not the place for findings, which have cases of their
    own."""
    if not trouble and not errors:
        return SuiteCase(what, "came to its end")
    kind = verdict if verdict != Verdict.PASS.name else Verdict.INCONCLUSIVE.name
    message = trouble or str(errors[0]).splitlines()[0]
    return SuiteCase(
        what, "came to its end", "error", kind, message, "\n".join([message, *map(str, errors)])
    )


def _expected(expected: tuple[str, ...], seen: tuple[str, ...]) -> Iterator[SuiteCase]:
    """A scenario that must fail: a missing finding is what is wrong with it."""
    if expected:
        name = f"{' or '.join(expected)} fires"
        yield (
            SuiteCase("expected", name)
            if seen
            else SuiteCase(
                "expected", name, "error", "INCONCLUSIVE", "none of the expected rules fired", name
            )
        )


def _obligations(obligations: tuple[Obligation, ...], *, failed: bool) -> Iterator[SuiteCase]:
    """What had to happen. After a finding nobody asks, as the run ended early."""
    for item in obligations:
        message = f"{item.counter}: {item.reached}, at least {item.needed} needed"
        outcome: Outcome = "passed" if item.met else "skipped" if failed else "error"
        yield SuiteCase(
            "obligations",
            f"{item.counter} at least {item.needed}",
            outcome,
            "INCONCLUSIVE",
            message,
            message,
        )


def _rules(
    found: list[tuple[str, str, str, str]], scenario: Mapping[str, Any], judged: Mapping[str, int]
) -> Iterator[SuiteCase]:
    """Every rule of the catalogue with its first finding, then the further findings: (rule, code,
    headline, story) each. A rule that had nothing to decide has not passed."""
    by_rule: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for rule, code, headline, story in found:
        by_rule[rule].append((code, headline, story))
    off = scenario.get("oracles", {}).get("off", ())
    for rule, meaning in {
        **RULES,
        **{rule: "an unknown rule" for rule in by_rule if rule not in RULES},
    }.items():
        name = f"{rule} {meaning}"
        if by_rule[rule]:
            code, headline, story = by_rule[rule][0]
            yield SuiteCase("rules", name, "failure", code, headline, story)
        elif rule in off or not judged.get(rule, 0):
            yield SuiteCase(
                "rules",
                name,
                "skipped",
                "",
                "this rule was switched off" if rule in off else "this rule had nothing to decide",
            )
        else:
            yield SuiteCase("rules", name)
    further = [(rule, *each) for rule, group in by_rule.items() for each in group[1:]]
    for number, (rule, code, headline, story) in enumerate(further[:MOST_CASES], 2):
        yield SuiteCase("findings", f"{rule} {code} {number}", "failure", code, headline, story)
    if len(further) > MOST_CASES:
        left = f"{len(further) - MOST_CASES} more findings are in the JSON file only"
        yield SuiteCase("findings", "all others", "failure", "more", left, left)


def _run_properties(record: RunRecord) -> tuple[tuple[str, str], ...]:
    vm = record.scenario.get("vm", {})
    return (
        *_common(record, record.environment),
        *((key, str(vm[key])) for key in ("profile", "policy", "kernel") if key in vm),
    )


def _common(
    record: RunRecord | ExplorationRecord, environment: Environment
) -> tuple[tuple[str, str], ...]:
    return (
        ("result", record.id),
        ("verdict", record.verdict),
        ("seed", str(record.seed)),
        ("command", record.command),
        *((("variants", ", ".join(record.variants)),) if record.variants else ()),
        *machine(environment),
    )


def machine(environment: Environment) -> tuple[tuple[str, str], ...]:
    """Where it ran, as properties."""
    return (
        ("version", environment.version),
        ("python", environment.python),
        ("gil", "on" if environment.gil_enabled else "off"),
        ("cpus", str(environment.cpus)),
    )


def _with_suspects(splat: str, suspects: tuple[str, ...]) -> str:
    if not suspects:
        return splat
    return "\n".join(
        [
            splat,
            "known defects of this build that break this rule:",
            *(f"  {title}" for title in suspects),
        ]
    )
