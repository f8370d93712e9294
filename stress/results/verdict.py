"""Verdicts and exit codes: what a run may claim, and the one place that claims it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import IntEnum

from attrs import field, frozen


class ExitCode(IntEnum):
    """What `stress` returns to the shell; public contract."""

    PASS = 0
    """Everything asked for happened and no rule was broken."""
    FAIL = 1
    """A rule was broken."""
    INCONCLUSIVE = 2
    """Nothing broke, but not enough happened to say so."""
    HARNESS_ERROR = 3
    """The harness itself failed."""
    USAGE = 4
    """The command line or the configuration is wrong."""
    REGRESSION = 5
    """Worse than the baseline."""
    INTERNAL = 6
    """A bug: the command failed, and there was nothing that it could have judged."""


class Verdict(IntEnum):
    """Ordered from good to bad: the worst of several wins, so that trouble elsewhere never masks a
    finding."""

    PASS = 0
    INCONCLUSIVE = 1
    HARNESS_ERROR = 2
    FAIL = 3

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that stands for this verdict."""
        return ExitCode[self.name]


@frozen
class Obligation:
    """A counter that had to reach `needed`."""

    counter: str
    needed: int
    reached: int

    @property
    def met(self) -> bool:
        """Whether it did."""
        return self.reached >= self.needed


@frozen
class Evidence:
    """Everything a verdict rests on."""

    findings: int
    harness_errors: tuple[str, ...]
    obligations: tuple[Obligation, ...]
    expected_missing: tuple[str, ...]
    completed: bool
    clean_end: bool
    quiescent_checks: int
    judged: Mapping[str, int]
    """How often each rule had something to decide, of those whose findings count."""
    accesses: int | None = None
    """Accesses to guest memory; None where a script says what is done."""
    off: tuple[str, ...] = ()
    """The rules whose findings do not count."""


@frozen
class Judgement:
    """A verdict with its reasons."""

    verdict: Verdict
    reasons: tuple[str, ...] = field(default=())


def conclude(reasons: list[tuple[Verdict, str]], positive: str) -> Judgement:
    """The only producer of PASS: nothing speaks against it, and `positive` says what speaks for
    it."""
    if not reasons:
        return Judgement(Verdict.PASS, (positive,))
    worst = max(verdict for verdict, _ in reasons)
    return Judgement(worst, tuple(text for _, text in sorted(reasons, key=lambda item: -item[0])))


def judge(evidence: Evidence) -> Judgement:
    """The verdict on a run: PASS needs positive evidence that the whole run took place, and nothing
    against it."""
    reasons: list[tuple[Verdict, str]] = []
    if evidence.findings:
        reasons.append(
            (Verdict.FAIL, f"{evidence.findings} finding{'s' if evidence.findings > 1 else ''}")
        )
    reasons += [(Verdict.HARNESS_ERROR, error.splitlines()[0]) for error in evidence.harness_errors]
    if evidence.expected_missing:
        reasons.append(
            (
                Verdict.INCONCLUSIVE,
                f"none of the expected rules fired: {', '.join(evidence.expected_missing)}",
            )
        )
    if not evidence.completed:
        reasons.append((Verdict.INCONCLUSIVE, "the run was interrupted before its budget was used"))
    if not evidence.clean_end:
        reasons.append(
            (
                Verdict.INCONCLUSIVE,
                "not every actor came to its end, so the VM could not be taken down and checked",
            )
        )
    if not evidence.quiescent_checks:
        reasons.append(
            (Verdict.INCONCLUSIVE, "the invariants were never checked at a quiescent point")
        )
    unmet = [item for item in evidence.obligations if not item.met and not evidence.findings]
    reasons += [
        (Verdict.INCONCLUSIVE, f"{item.counter}: {item.reached}, at least {item.needed} needed")
        for item in unmet
    ]
    if not evidence.findings and not any(evidence.judged.values()):
        reasons.append((Verdict.INCONCLUSIVE, "no rule that is on had anything to decide"))
    if not evidence.findings and evidence.accesses == 0:
        reasons.append((Verdict.INCONCLUSIVE, "neither a vCPU nor a device accessed memory"))
    if not evidence.obligations:
        reasons.append(
            (
                Verdict.INCONCLUSIVE,
                "the scenario has no obligations, so nothing says that anything happened",
            )
        )
    off = f"; switched off: {', '.join(evidence.off)}" if evidence.off else ""
    return conclude(reasons, f"all {len(evidence.obligations)} obligations met, no finding{off}")


def judged_rules(off: Collection[str], judged: Mapping[str, int]) -> dict[str, int]:
    """How often each rule that is not `off` had something to decide."""
    return {rule: count for rule, count in judged.items() if rule not in off}


def accesses_in(counters: Mapping[str, int]) -> int:
    """How often a vCPU or a device accessed memory."""
    return counters.get("vcpu_accesses", 0) + counters.get("device_accesses", 0)
