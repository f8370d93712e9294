"""A stored selftest as test cases (`stress.report.cases`): one for each variant and engine."""

from __future__ import annotations

from stress.report.cases import Outcome, Suite, SuiteCase, end, machine
from stress.results.verdict import Verdict
from stress.selftest.selftest import MatrixRow
from stress.selftest.stored import SelftestRecord, StoredAgreement, StoredDetector, selftest_of


def of_selftest(record: SelftestRecord) -> Suite:
    """The suite of a selftest."""
    test = selftest_of(record)
    cases = [
        end(
            "selftest",
            record.verdict,
            "; ".join(record.reasons) if record.verdict != Verdict.PASS.name else "",
            (),
        )
    ]
    cases += [_of_detector(detector) for detector in record.detectors]
    cases += [_of_agreement(agreement) for agreement in record.agreements]
    cases += [of_row(row) for row in test.rows]
    properties = (("verdict", record.verdict), *machine(record.environment))
    return Suite(
        "selftest",
        record.date,
        record.wall_s,
        f"{record.verdict}  selftest: {'; '.join(record.reasons)}",
        properties,
        tuple(cases),
    )


def _of_detector(detector: StoredDetector) -> SuiteCase:
    """A detector's own self-test."""
    if not detector.problems:
        return SuiteCase("detectors", detector.name)
    return SuiteCase(
        "detectors",
        detector.name,
        "failure",
        detector.code or "silence",
        detector.problems[0],
        "\n".join(detector.problems),
    )


def _of_agreement(agreement: StoredAgreement) -> SuiteCase:
    """Whether the engines agree on one scenario."""
    if agreement.state == "agree":
        return SuiteCase("engines", agreement.scenario)
    problems = (*agreement.errors, *agreement.holes) or ("threads have done nothing",)
    return SuiteCase(
        "engines",
        agreement.scenario,
        "error",
        agreement.state,
        problems[0].splitlines()[0],
        "\n".join(problems),
    )


def of_row(row: MatrixRow) -> SuiteCase:
    """One variant on one engine."""
    group = f"{row.kind}.{row.engine}"
    name = f"{row.name} on {row.scenario}" + (f" with {row.strategy}" if row.strategy else "")
    fired = ", ".join(f"{rule} in {count}" for rule, count in row.fired().items()) or "nothing"
    expected = " or ".join(row.expects) or "nothing"
    story = (
        f"state: {row.state}\nexpected: {expected}\nfired: {fired}\nattempts: {len(row.attempts)} "
        f"of {row.wanted}"
    )
    if row.state in ("killed", "silent"):
        return SuiteCase(group, name)
    if row.state == "not tried":
        return SuiteCase(group, name, "skipped", "", "not tried: the selftest was cut short")
    if row.state in ("error", "idle"):
        errors = row.errors or ("nothing happened",)
        return SuiteCase(
            group, name, "error", row.state, errors[0].splitlines()[0], "\n".join([story, *errors])
        )
    alive_on_threads = row.kind == "mutant" and row.engine == "threads"
    # One mutant that threads miss is allowed for; how many may be, the verdict says.
    outcome: Outcome = "skipped" if alive_on_threads else "failure"
    return SuiteCase(group, name, outcome, row.state, f"{row.state}: fired {fired}", story)
