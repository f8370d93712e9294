"""What came of `stress trace conform`, for people: plain text that a terminal or a mail can
hold."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from typing import Final

from stress.trace.conform import Conformance, by_kind, not_recorded, reason_of
from stress.trace.conform_director import OperationDifference
from stress.trace.conform_values import KINDS

LINES = 8
"""Lines of a difference that are shown of each side."""
WIDTH = 58
"""Columns of the kernel's side."""


def render(result: Conformance, *, everything: bool = False) -> str:
    """The whole report; `everything` shows all differences, however many."""
    return "\n".join(_lines(result, everything)) + "\n"


def _lines(result: Conformance, everything: bool) -> Iterator[str]:
    yield from _head(result)
    yield from _operations(result)
    yield from _compared(result)
    yield from _explained(result)
    yield from _differences(result, everything)
    yield ""
    yield verdict_line(result)


def verdict_line(result: Conformance) -> str:
    """The verdict in one line."""
    return f"{result.verdict.name}  {result.origin}: {'; '.join(result.reasons)}"


def _head(result: Conformance) -> Iterator[str]:
    script = result.script
    yield (
        f"{result.origin}: {script.lines:,} lines, model of kernel {result.kernel}, "
        f"{script.vendor.name}"
    )
    for clue in script.clues:
        yield f"  {clue}"
    yield ""


def _operations(result: Conformance) -> Iterator[str]:
    yield f"{'operations':<16} {'all':>8} {'matched':>9} {'explained':>10} {'unexplained':>12}"
    for kind, counts in by_kind(result.outcomes).items():
        total = sum(counts.values())
        yield (
            f"{kind:<16} {total:>8,} {counts['matched']:>9,} {counts['explained']:>10,} "
            f"{counts['unexplained']:>12,}"
        )
    running = [outcome for outcome in result.outcomes if outcome.operation.running]
    bad = sum(outcome.difference is not None for outcome in running)
    if running:
        yield (
            f"{len(running):,} of them ran while others did: {1 - bad / len(running):.2%} of these "
            "match"
        )
    yield ""


def _compared(result: Conformance) -> Iterator[str]:
    counts = ", ".join(f"{count:,} {name}" for name, count in result.compared().items() if count)
    yield from textwrap.wrap(
        f"compared and equal: {counts or 'nothing'}", 110, subsequent_indent="  "
    )
    yield f"entries to the guest with every request served: {result.tally.entries:,}"
    if result.tally.hardware:
        yield f"leaves whose A or D bit the CPU had set in between: {result.tally.hardware:,}"
    unseen = result.tally.unseen
    missing = [
        f"{KINDS[kind]} ({kind}, the model: {unseen[kind]:,})"
        for kind in not_recorded(result.script)
        if unseen[kind]
    ]
    if missing:
        yield from textwrap.wrap(
            f"never in the recording, so not compared: {', '.join(missing)}",
            110,
            subsequent_indent="  ",
        )


def _explained(result: Conformance) -> Iterator[str]:
    for rule, count in result.tally.explained.items():
        reason, source = reason_of(rule)
        yield ""
        yield f"explained {count:,} times: {rule}"
        yield from textwrap.wrap(
            f"{reason} [{source}]", 106, initial_indent="  ", subsequent_indent="  "
        )


def _differences(result: Conformance, everything: bool) -> Iterator[str]:
    differences = [
        outcome.difference for outcome in result.outcomes if outcome.difference is not None
    ]
    for (operation, kernel, model), alike in _grouped(differences).items():
        yield ""
        parted = f"the kernel's next step was {kernel!r}, the model's {model!r}"
        apart = alike[0].note if kernel == model == NOTHING else parted
        yield f"{len(alike)} x {operation}: {apart}"
        function = FUNCTIONS.get(operation) or ""
        if function:
            yield f"  kernel code: {function}"
        others = ", ".join(str(each.line) for each in alike[1:LINES])
        if others and not everything:
            more = ", ..." if len(alike) > LINES else ""
            yield f"  also at lines {others}{more} (--all shows them)"
        for difference in alike if everything else alike[:1]:
            rows = len(difference.kernel) + len(difference.model) if everything else LINES
            yield from _difference(difference, rows)


Group = tuple[str, str, str]
NOTHING: Final = "none"


def _grouped(differences: list[OperationDifference]) -> dict[Group, list[OperationDifference]]:
    """Differences of one kind together, the most frequent kind first: the same operation, and the
    same happenings where both sides part."""
    groups: dict[Group, list[OperationDifference]] = {}
    for each in differences:
        key = each.operation.kind, _first_word(each.kernel), _first_word(each.model)
        groups.setdefault(key, []).append(each)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _first_word(did: list[str]) -> str:
    """The kind of the first happening of one side, as in "line 7: put 0x1 3 no"."""
    if not did:
        return NOTHING
    text = did[0].partition(": ")[2] if did[0].startswith("line ") else did[0]
    return text.split(" ")[0]


FUNCTIONS: Final = {
    "set-region": "kvm_set_memslot(), kvm_arch_flush_shadow_memslot()",
    "get-log": "kvm_get_dirty_log_protect()",
    "clear-log": "kvm_clear_dirty_log_protect(), kvm_arch_mmu_enable_log_dirty_pt_masked()",
    "fault": "kvm_tdp_page_fault(), kvm_tdp_mmu_map(), fast_page_fault()",
    "free-obsolete": "kvm_mmu_free_obsolete_roots()",
    "flush-tlb": "kvm_service_local_tlb_flush_requests()",
    "load-root": "kvm_mmu_load(), mmu_alloc_direct_roots()",
    "reset-context": "kvm_mmu_reset_context()",
    "range-start": "kvm_mmu_notifier_invalidate_range_start(), kvm_tdp_mmu_unmap_gfn_range()",
    "range-end": "kvm_mmu_notifier_invalidate_range_end()",
    "destroy": "kvm_destroy_vm(), kvm_mmu_uninit_tdp_mmu()",
    "release": "kvm_mmu_notifier_release(), kvm_tdp_mmu_zap_all()",
    "enter": "vcpu_enter_guest(), kvm_check_request()",
}
"""What to read in the kernel's source about an operation that differs."""


def _difference(difference: OperationDifference, limit: int) -> Iterator[str]:
    operation = difference.operation
    yield (
        f"DIFFERENCE at line {difference.line}: {operation.name}, task {operation.pid}, step "
        f"{operation.step!r}"
    )
    if difference.note:
        yield f"  {difference.note}"
    if difference.kernel or difference.model:
        yield f"  {'kernel':<{WIDTH}} model"
    rows = list(zip_longest(difference.kernel, difference.model, fillvalue="-"))
    for kernel, model in rows[:limit]:
        yield f"  {kernel:<{WIDTH}} {model}"
    if len(rows) > limit:
        yield f"  ... {len(rows) - limit} more"
