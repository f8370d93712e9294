"""`stress trace conform`: do a real kernel and the model do the same, operation by operation?

The recording is read into a script (`conform_script`), the script is replayed with the model of
that kernel in the order of the recording (`conform_replay`), and what came of it is judged here:
PASS only when there was something to compare and nothing unexplained (of operations that ran while
others did, 99 in 100 have to match), INCONCLUSIVE when the recording lacks what is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from mmu.export.policies import SLOT_LEAVES
from mmu.kernels import RELEASED
from mmu.variant import Variant
from stress.results.verdict import Verdict
from stress.trace.conform_director import OperationOutcome, ReplayTally
from stress.trace.conform_inputs import find_inputs
from stress.trace.conform_replay import Replay
from stress.trace.conform_rules import FILTERED, RULES
from stress.trace.conform_script import ConformScript, Operation, read_script
from stress.trace.conform_values import KINDS

ENOUGH: Final = 0.99
"""Of the operations that ran while others did, the share that has to match."""

NEEDS: Final = (
    ("spte", "SPTE changes", "the tracepoint kvmmmu:kvm_tdp_mmu_spte_changed"),
    (
        "swap",
        "memslot calls",
        "a probe on kvm_swap_active_memslots, and one on kvm_set_memslot with its arguments",
    ),
    ("put", "references of roots", "a probe on kvm_tdp_mmu_put_root with root, ref and role"),
)
"""Kinds without which nothing can be concluded: what they are, and how they are recorded."""

ARGUMENTS: Final = (
    ("unmap", "start, end and slot of a probe on kvm_tdp_mmu_unmap_gfn_range"),
    ("shadow", "id, gfn and n of a probe on kvm_arch_flush_shadow_memslot"),
)
"""Kinds whose arguments place the memory of slots: the model needs them."""

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
    find_inputs(script)
    name = kernel or model_name(script)
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
    """The verdict, from positive evidence only."""
    lacks, failures, gaps = _lacks(script), _failures(tally), _gaps(script, tally)
    if lacks:
        # what the model was not told, it cannot be held to: differences show nothing
        verdict, reasons = Verdict.INCONCLUSIVE, [*lacks, *gaps]
    else:
        verdict = Verdict.FAIL if failures else Verdict.INCONCLUSIVE if gaps else Verdict.PASS
        reasons = [*failures, *gaps]
    return Conformance(origin, kernel, script, tally, verdict, tuple(reasons) or (_praise(tally),))


def _lacks(script: ConformScript) -> list[str]:
    """The inputs of the model that the recording does not have."""
    lacks = [
        f"no {what} in the recording: it needs {how}"
        for kind, what, how in NEEDS
        if not script.recorded[kind]
    ]
    kinds = Counter(operation.kind for operation in script.operations)
    if kinds["range-start"] and not kinds["range-end"]:
        lacks.append(
            "no end of any mmu_notifier invalidation in the recording: it needs a probe on, or the "
            "entry of, kvm_mmu_notifier_invalidate_range_end"
        )
    if any("end" not in each.given for each in script.operations if each.kind == "range-start"):
        lacks.append(
            "mmu_notifier invalidations without their ranges: it needs start and end of a probe on "
            "kvm_mmu_notifier_invalidate_range_start"
        )
    lacks += [
        f"{kind} without arguments: it needs {how}"
        for kind, how in ARGUMENTS
        if script.recorded[kind]
        and any(
            None in done.values[:3]
            for operation in script.operations
            for done in operation.did
            if done.kind == kind
        )
    ]
    if script.strays:
        more = f" and {len(script.strays) - 1} more" if len(script.strays) > 1 else ""
        lacks.append(
            "the kernel did something in a call that conform does not know: "
            f"{script.strays[0]}{more}"
        )
    if script.unborn:
        lacks.append(f"the recording does not begin with the VM: {script.unborn}")
    return lacks


def _failures(tally: ReplayTally) -> list[str]:
    outcomes = list(tally.outcomes.values())
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
    if tally.stuck:
        failures.append(f"the replay got stuck: {tally.stuck}")
    return failures


def _gaps(script: ConformScript, tally: ReplayTally) -> list[str]:
    gaps = [
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
