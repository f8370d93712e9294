"""`stress trace conform`: do a real kernel and the model do the same, operation by operation?

The recording is read into a script (`conform_script`), the script is replayed with the model of
that kernel in the order of the recording (`conform_replay`), and what came of it is judged here:
PASS only when there was something to compare and nothing unexplained (of operations that ran while
others did, 99 in 100 have to match), INCONCLUSIVE when the recording lacks what is needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from mmu.export.policies import SLOT_LEAVES
from mmu.kernels import RELEASED
from mmu.variant import Variant
from stress.results.verdict import Verdict
from stress.trace import conform_lacks
from stress.trace.conform_director import OperationOutcome, ReplayTally
from stress.trace.conform_inputs import find_inputs
from stress.trace.conform_replay import Replay
from stress.trace.conform_rules import FILTERED, RULES
from stress.trace.conform_script import ConformScript, Operation, read_script
from stress.trace.conform_values import KINDS

ENOUGH: Final = 0.99
"""Of the operations that ran while others did, the share that has to match."""

EXPECTED: Final = (
    ("request", "requests to all vCPUs", "a probe on kvm_make_all_cpus_request with req"),
    ("flush", "remote flushes", "a probe on kvm_flush_remote_tlbs and its ranged form"),
)
"""Kinds that the recording must have if the model does any: that the kernel did none at all would
look like no recording."""


@frozen
class Conformance:
    """What came of a recording: `kernel` is the model's name, `reasons` what the verdict rests
    on."""

    origin: str
    kernel: str
    script: ConformScript
    tally: ReplayTally
    verdict: Verdict
    reasons: tuple[str, ...]

    @property
    def outcomes(self) -> list[OperationOutcome]:
        """Every operation's, in the order of the recording."""
        return list(self.tally.outcomes.values())

    def compared(self) -> dict[str, int]:
        """How many happenings were equal, by what they are."""
        counts: Counter[str] = Counter(dict.fromkeys(KINDS.values(), 0))
        for kind, count in self.tally.compared.items():
            counts[KINDS[kind]] += count
        return dict(counts)

    def as_json(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        return {
            "origin": self.origin,
            "kernel": self.kernel,
            "vendor": self.script.vendor.name,
            "evidence": self.script.clues,
            "verdict": self.verdict.name,
            "reasons": list(self.reasons),
            "lines": self.script.lines,
            "operations": {kind: dict(counts) for kind, counts in by_kind(self.outcomes).items()},
            "compared": self.compared(),
            "not_recorded": {kind: self.tally.unseen[kind] for kind in not_recorded(self.script)},
            "explained": dict(self.tally.explained),
            "entries_checked": self.tally.entries,
            "hardware_bits": self.tally.hardware,
            "differences": [
                _difference_json(outcome)
                for outcome in self.outcomes
                if outcome.difference is not None
            ],
        }


def conform(
    path: Path, kernel: str = "", vendor: str = "", variants: Iterable[Variant] = ()
) -> Conformance:
    """Hold the model against a recording. `kernel` and `vendor` are told by the recording unless
    given; `variants` change the model, to see that it matters. Raises `TraceError` for what is no
    recording."""
    return conform_script(
        str(path), read_script(path, kernel.removesuffix("-quirkoff"), vendor), kernel, variants
    )


def conform_script(
    origin: str, script: ConformScript, kernel: str = "", variants: Iterable[Variant] = ()
) -> Conformance:
    """The same for a recording that has been read."""
    name = kernel or model_name(script)
    lacks = conform_lacks.inputs(script)
    if not lacks:
        find_inputs(script)
        if script.unborn:
            lacks = [f"the recording does not begin with the VM: {script.unborn}"]
    if lacks:  # what the model was not told, it cannot be held to: differences would show nothing
        return Conformance(origin, name, script, ReplayTally(), Verdict.INCONCLUSIVE, tuple(lacks))
    return judge(origin, name, script, Replay(script, (*model_of(name), *variants)).run())


def model_name(script: ConformScript) -> str:
    """The name of the model for a recording: its layout's kernel, without the slot-zap quirk if
    every deletion that shows how it zapped went over the slot's own range."""
    ways = Counter(
        _way_of_zapping(operation)
        for operation in script.operations
        if any(done.kind == "shadow" for done in operation.did)
    )
    quirk_off = ways["slot"] > 0 and not ways["all"]
    return script.kernel.name + ("-quirkoff" if quirk_off else "")


def _way_of_zapping(operation: Operation) -> str:
    """How a deletion zapped: "all" roots, the leaves of the "slot", or "" if that was not
    recorded. (A notifier's invalidation is an operation of its own, and not in this one.)"""
    kinds = {done.kind for done in operation.did}
    if kinds & {"zap_all_fast", "invalidate", "zap_invalidated"}:
        return "all"
    return "slot" if "unmap" in kinds else ""


def model_of(name: str) -> tuple[Variant, ...]:
    """The variants that make the model that kernel."""
    base = RELEASED[name.removesuffix("-quirkoff")]
    return (*base, SLOT_LEAVES) if name.endswith("-quirkoff") else base


def judge(origin: str, kernel: str, script: ConformScript, tally: ReplayTally) -> Conformance:
    """The verdict on a replay, from positive evidence only."""
    failures, gaps = _failures(script, tally), _gaps(script, tally)
    unordered = conform_lacks.order(script, tally) if failures else []
    if failures and not unordered and not script.missing:
        verdict, reasons = Verdict.FAIL, [*failures, *gaps]
    else:
        reasons = [*unordered, *gaps]
        verdict = Verdict.INCONCLUSIVE if reasons else Verdict.PASS
    return Conformance(origin, kernel, script, tally, verdict, tuple(reasons) or (_praise(tally),))


def _failures(script: ConformScript, tally: ReplayTally) -> list[str]:
    """What the model and the kernel did differently, before the kernel did something that the
    replay does not know."""
    limit = script.strays[0].line if script.strays else math.inf
    outcomes = [each for each in tally.outcomes.values() if each.line < limit]
    failures = []
    for running in (False, True):
        these = [outcome for outcome in outcomes if outcome.operation.running == running]
        bad = sum(outcome.difference is not None for outcome in these)
        share = 1 - bad / len(these) if these else 1.0
        if bad and (not running or share < ENOUGH):
            beside = "while others ran" if running else "while nothing else ran"
            failures.append(
                f"{bad} of {len(these)} operations {beside} have unexplained differences "
                f"({share:.2%} matched)"
            )
    if tally.stuck and not script.strays:
        failures.append(f"the replay got stuck: {tally.stuck}")
    return failures


def _gaps(script: ConformScript, tally: ReplayTally) -> list[str]:
    gaps = [f"lines are missing: {script.missing}"] if script.missing else []
    gaps += [
        f"line {stray.line}: the kernel did something in a call that conform does not know: "
        f"{stray}; nothing is concluded from here on"
        for stray in script.strays[:1]
    ]
    gaps += [
        f"no {what} in the recording, but {tally.unseen[kind]:,} in the model: it needs {how}"
        for kind, what, how in EXPECTED
        if tally.unseen[kind]
    ]
    if tally.unfreed:
        gaps.append(
            f"{tally.unfreed} of {tally.unfreed + tally.compared['freed']} page-table pages were "
            "not freed while the recording lasted: either the kernel leaks them, or their RCU "
            "callbacks ran later, or in a task that was not recorded"
        )
    if not sum(tally.compared.values()):
        gaps.append("nothing was compared")
    if script.damage:
        gaps.append(f"the recording cannot be relied on from here: {script.damage}")
    return gaps


def _praise(tally: ReplayTally) -> str:
    bad = sum(outcome.difference is not None for outcome in tally.outcomes.values())
    left = f", {bad} with differences (listed)" if bad else ", none with an unexplained difference"
    return (
        f"{len(tally.outcomes):,} operations compared{left}; {sum(tally.compared.values()):,} "
        "happenings equal"
    )


def by_kind(outcomes: Iterable[OperationOutcome]) -> dict[str, Counter[str]]:
    """How many operations of each kind matched, matched with explained differences, or did not."""
    table: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counts = table.setdefault(
            outcome.operation.kind, Counter(matched=0, explained=0, unexplained=0)
        )
        counts[
            "unexplained"
            if outcome.difference is not None
            else "explained"
            if outcome.explained
            else "matched"
        ] += 1
    return table


def not_recorded(script: ConformScript) -> list[str]:
    """Kinds that the recording does not have at all, so that the model's were not compared."""
    return [
        kind
        for kind in KINDS
        if not script.recorded[kind] and not (kind == "freed" and script.freed)
    ]


def _difference_json(outcome: OperationOutcome) -> dict[str, Any]:
    difference = outcome.difference
    assert difference is not None
    return {
        "operation": outcome.operation.name,
        "step": outcome.operation.step,
        "line": difference.line,
        "note": difference.note,
        "kernel": difference.kernel,
        "model": difference.model,
    }


def reason_of(rule: str) -> tuple[str, str]:
    """Why a rule explains a difference, and its source."""
    if rule == FILTERED[0]:
        return FILTERED[1], FILTERED[2]
    return next((each.reason, each.source) for each in RULES if each.name == rule)
