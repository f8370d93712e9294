"""`stress trace conform`: the model does what a real kernel did; whatever is changed on either side
is seen, and where."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmu.memory.memslots import Memslot
from mmu.paging.table import RootPage
from mmu.runtime import Table
from mmu.tdp.dirty import DirtyLog
from mmu.tdp.fault import Fault, FaultHandler
from mmu.tdp.notifier import MmuNotifier
from mmu.tdp.zap import Zapper
from mmu.variant import Variant
from stress.commands.command_line import cli
from stress.mutants import MUTANTS
from stress.results.verdict import Verdict
from stress.trace import conform_replay, conform_report
from stress.trace.conform import Conformance, conform_script, reason_of
from stress.trace.conform_rules import RULES
from stress.trace.conform_script import script_of
from stress.trace.reader import TraceReader
from tests import recordings

STOPPED = [
    *("w1_delete_adj", "w1_delete_quirkoff", "w1_delete_thp"),
    *("w4_dirty_thp_manual3", "w6_close", "w8_roots"),
]
"""Recordings in which nothing ran at the same time as something else."""
RUNNING = ["w2_touched_begin", "w4_dirty", "w12_two_slots"]


def judge(lines: Sequence[str], *variants: Variant, kernel: str = "") -> Conformance:
    """What `conform` says to these lines, with a model that `variants` change."""
    return conform_script("lines", script_of(TraceReader.of_lines(lines)), kernel, variants)


def variant(part: type) -> Variant:
    """A change of the model that is one part."""
    return Variant(part.__name__, part.__name__, (part,))


def first(result: Conformance) -> tuple[str, int, str, str]:
    """The first operation with a difference: its kind and line, and what each side did there."""
    outcome = next(outcome for outcome in result.outcomes if outcome.difference is not None)
    difference = outcome.difference
    assert difference is not None
    kernel = difference.kernel[0].partition(": ")[2] if difference.kernel else ""
    return (
        outcome.operation.kind,
        difference.line,
        kernel,
        difference.model[0] if difference.model else difference.note,
    )


@pytest.mark.parametrize("name", [*STOPPED, *RUNNING])
def test_the_model_does_what_the_kernel_did(name: str) -> None:
    result = judge(recordings.lines_of(name))
    assert result.verdict is Verdict.PASS, result.reasons
    assert [outcome for outcome in result.outcomes if outcome.difference is not None] == []
    compared = result.compared()
    assert (
        min(
            compared[what]
            for what in ("SPTE changes", "root operations", "requests", "faults", "memslot steps")
        )
        > 0
        or name == "w6_close"
    )
    assert any(outcome.operation.running for outcome in result.outcomes) == (name in RUNNING)


def test_two_running_vcpus_are_replayed_in_the_order_of_the_recording() -> None:
    result = judge(recordings.lines_of("w3_move"))
    running = [outcome for outcome in result.outcomes if outcome.operation.running]
    assert len(running) > 1000
    assert result.verdict is Verdict.PASS, result.reasons
    assert result.tally.hardware > 0, "the guest has used pages"
    assert result.tally.compared["mmio_check"] > 300


# The model is changed: the difference is seen in the operation that it is in.


class SkipsAPass(Zapper):
    def zap_levels(self, root: RootPage) -> tuple[int, ...]:
        return tuple(level for level in super().zap_levels(root) if level != 2)


class LargestFirst(Zapper):
    def zap_levels(self, root: RootPage) -> tuple[int, ...]:
        return tuple(reversed(super().zap_levels(root)))


class KeepsItsReference(Zapper):
    def zap_scheduled_root(self, root: RootPage) -> None:
        self.zap_root(root, shared=True)


class AsksNobody(Zapper):
    def request_obsolete_roots(self, invalidated: list[RootPage]) -> None:
        pass


class FlushesTooMuch(Zapper):
    def zap_invalidated_roots(self) -> None:
        super().zap_invalidated_roots()
        self.tlb.flush("for nothing")


class FlushesNoSlot(Zapper):
    def zap_memslot_leafs(self, slot: Memslot) -> None:
        self.kvm.mmu_lock.write_lock()
        self.unmap_memslot(slot)
        self.kvm.mmu_lock.write_unlock()


class FlushesNoLog(DirtyLog):
    def flush_protected(self, slot: Memslot) -> None:
        pass


class ProtectsNothing(DirtyLog):
    def remove_write_access(self, slot: Memslot) -> bool:
        return False


class ProtectsInBulk(DirtyLog):
    def take_words(self, slot: Memslot, bitmap: Table, pages: list[int]) -> set[int]:
        self.word = len(bitmap)
        return super().take_words(slot, bitmap, pages)


class HandsOn(MmuNotifier):
    def unmap_next(self, slot: Memslot, start: int, end: int, *, owed: bool) -> bool:
        return self.unmap_gfn_range(slot, start, end, flush=owed)


class MapsReadOnly(FaultHandler):
    def is_host_writable(self, fault: Fault, slot: Memslot) -> bool:
        return False


CHANGES = [
    ("w1_delete_adj", variant(SkipsAPass), "set-region", "zap_pass .* 2 yes", "zap_pass .* 3 yes"),
    (
        "w1_delete_adj",
        variant(LargestFirst),
        "set-region",
        "zap_pass .* 1 yes",
        "zap_pass .* 4 yes",
    ),
    ("w1_delete_adj", variant(KeepsItsReference), "set-region", "put .* 2 yes", "walk -"),
    (
        "w1_delete_adj",
        variant(AsksNobody),
        "set-region",
        "request MMU_FREE_OBSOLETE_ROOTS",
        "zap_invalidated",
    ),
    ("w1_delete_adj", variant(FlushesTooMuch), "set-region", "swap 0", "request TLB_FLUSH"),
    (
        "w1_delete_adj",
        variant(MapsReadOnly),
        "fault",
        "spte 0 1 1 none leaf.*rwxADhm",
        "spte 0 1 1 none leaf.*r-xA---",
    ),
    ("w1_delete_quirkoff", variant(FlushesNoSlot), "set-region", "flush", "swap 0"),
    ("w4_dirty", variant(FlushesNoLog), "get-log", "flush", ""),
    ("w4_dirty", variant(ProtectsNothing), "set-region", "walk ", "wrprot_done no"),
    (
        "w4_dirty_thp_manual3",
        variant(ProtectsInBulk),
        "clear-log",
        "split 0x40000 0x40040 no",
        "split 0x40000 0x40400 no",
    ),
    (
        "w12_two_slots",
        variant(HandsOn),
        "range-start",
        "unmap 0x40005 0x4000a 2 no",
        "unmap 0x40005 0x4000a 2 yes",
    ),
    ("w1_delete_adj", MUTANTS["put-before-zap"], "set-region", "request", "put .* 2 yes"),
    (
        "w8_roots",
        MUTANTS["double-put-of-invalid-root"],
        "set-region",
        "put .* 2 yes",
        "zap_root .* 2 yes yes",
    ),
    (
        "w8_roots",
        MUTANTS["table-freed-at-once"],
        "set-region",
        "",
        "the model reports O3 free-without-rcu",
    ),
]


@pytest.mark.parametrize(
    ("name", "change", "kind", "kernel", "model"), CHANGES, ids=[case[1].name for case in CHANGES]
)
def test_a_changed_model_parts_from_the_kernel_where_it_was_changed(
    name: str, change: Variant, kind: str, kernel: str, model: str
) -> None:
    result = judge(recordings.lines_of(name), change)
    assert result.verdict is Verdict.FAIL
    found = first(result)
    assert found[0] == kind
    assert re.match(kernel, found[2]), found
    assert re.match(model, found[3]), found


def test_one_difference_does_not_become_many() -> None:
    class OnceReadOnly(FaultHandler):
        def is_host_writable(self, fault: Fault, slot: Memslot) -> bool:
            return fault.gfn != 0x40003

    result = judge(recordings.lines_of("w1_delete_adj"), variant(OnceReadOnly))
    bad = [outcome.operation for outcome in result.outcomes if outcome.difference is not None]
    assert {operation.given["gfn"] for operation in bad} == {0x40003}, (
        "each fault on that page, and no delete after it"
    )


# The recording is changed.


def operation_at(result: Conformance, line: int) -> str:
    """The kind of the operation with a difference that holds a line, or begins right after it."""
    for outcome in result.outcomes:
        lines = [done.line for done in outcome.operation.did]
        if (
            outcome.difference is not None
            and lines
            and outcome.operation.line - 3 <= line <= max(lines) + 3
        ):
            return outcome.operation.kind
    return ""


@pytest.mark.parametrize("seed", range(1))
def test_a_doubled_put_is_seen(seed: int) -> None:
    lines, at = recordings.put_doubled(recordings.lines_of("w8_roots"), seed)
    result = judge(lines)
    assert result.verdict is Verdict.FAIL
    assert operation_at(result, at)


def test_a_removed_flush_is_seen() -> None:
    lines, at = recordings.flush_removed(recordings.lines_of("w4_dirty"), 1)
    result = judge(lines)
    assert result.verdict is Verdict.FAIL
    assert operation_at(result, at) in ("get-log", "set-region", "range-start")


@pytest.mark.parametrize(
    ("probe", "what"),
    [("kvm_flush_remote_tlbs", "remote flushes"), ("kvm_make_all_cpus_request", "requests")],
)
def test_a_kernel_that_never_did_what_the_model_did_is_not_taken_for_one_that_was_not_recorded(
    probe: str, what: str
) -> None:
    lines = recordings.lines_of("w4_dirty")
    result = judge(
        [line for line in lines if f"({probe}" not in line and f"{probe} <-" not in line]
    )
    assert result.verdict is not Verdict.PASS
    assert any(f"no {what}" in reason and "in the model" in reason for reason in result.reasons), (
        result.reasons
    )


def test_a_dropped_request_is_seen() -> None:
    lines, at = recordings.request_dropped(recordings.lines_of("w8_roots"), 0)
    result = judge(lines)
    assert result.verdict is Verdict.FAIL
    assert operation_at(result, at) == "set-region"


def test_a_dropped_reload_is_seen() -> None:
    lines, at = recordings.reload_dropped(recordings.lines_of("w8_roots"), 2)
    result = judge(lines)
    assert result.verdict is Verdict.FAIL
    assert (
        min(
            outcome.difference.line for outcome in result.outcomes if outcome.difference is not None
        )
        >= at - 3
    )


@pytest.mark.parametrize(("old", "new"), [("e67", "e65"), ("bfda", "bfdb")])
def test_another_right_or_frame_of_a_leaf_is_seen(old: str, new: str) -> None:
    lines = recordings.lines_of("w1_delete_adj")
    at = next(
        index
        for index, line in enumerate(lines)
        if "spte_changed" in line and "level 1" in line and "new_spte 2" in line
    )
    found = re.search(r"new_spte ([0-9a-f]+)", lines[at])
    assert found is not None
    spte = found[1].replace(old, new) if old in found[1] else f"3{found[1][1:]}"
    changed = [
        *lines[:at],
        lines[at].replace(f"new_spte {found[1]}", f"new_spte {spte}"),
        *lines[at + 1 :],
    ]
    result = judge(changed)
    assert result.verdict is Verdict.FAIL
    assert first(result)[:2] == ("fault", at + 1)


def test_a_page_that_rcu_never_freed_is_named_but_accuses_nobody() -> None:
    lines = recordings.lines_of("w1_delete_adj")
    at = recordings.find(lines, " free_sp_rcu: ")[-1]
    result = judge(recordings.header_for(recordings.without(lines, {at})))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert re.search(r"^1 of 1\d page-table pages were not freed", result.reasons[0])


def test_a_page_that_rcu_freed_twice_is_a_difference() -> None:
    lines = recordings.lines_of("w1_delete_adj")
    at = recordings.find(lines, " free_sp_rcu: ")[-1]
    result = judge(uncounted([*lines[:at], lines[at], *lines[at:]]))
    assert result.verdict is Verdict.FAIL


# What cannot be concluded.


def test_a_file_that_is_cut_is_inconclusive() -> None:
    lines = recordings.lines_of("w1_delete_adj")
    half = lines[: len(lines) // 2]
    result = judge(half)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert any("lines are missing" in reason for reason in result.reasons)


def test_a_recording_that_begins_in_the_middle_is_inconclusive_or_fails_but_never_passes() -> None:
    lines = recordings.lines_of("w1_delete_adj")
    middle = recordings.find(lines, "MK begin touch A_after")[0]
    result = judge(recordings.header_for([*lines[:12], *lines[middle:]]))
    assert result.verdict is not Verdict.PASS
    assert any("does not begin with the VM" in reason for reason in result.reasons)


def test_plain_tracepoints_are_not_enough() -> None:
    lines = [
        line
        for line in recordings.lines_of("w1_delete_adj")
        if line.startswith("#") or re.search(r": kvm_\w+: ", line)
    ]
    result = judge(recordings.header_for(lines))
    assert result.verdict is not Verdict.PASS
    assert any("it needs a probe on" in reason for reason in result.reasons)


def test_nothing_compared_is_inconclusive() -> None:
    lines = [
        line
        for line in recordings.lines_of("w1_delete_adj")
        if line.startswith("#") or "tracing_mark_write: MK stats" in line
    ]
    result = judge(recordings.header_for(lines))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.reasons[0].startswith("no SPTE changes in the recording")
    assert not result.outcomes


# Rules.


def test_every_rule_has_a_reason_and_a_source() -> None:
    for rule in RULES:
        assert reason_of(rule.name) == (rule.reason, rule.source)
        assert len(rule.reason) > 40


def test_no_rule_is_there_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conform_replay, "RULES", ())
    result = judge(recordings.lines_of("w1_delete_adj"))
    assert result.verdict is Verdict.FAIL
    assert first(result)[0] == "destroy"


# Other kernels.


def ends_exclusively(lines: list[str]) -> list[str]:
    """The last zap under the write lock, as in 7.2."""
    last = recordings.find(lines, " uninit_tdp: ")[0]
    return [*lines[:last], *(line.replace("shared=1", "shared=0") for line in lines[last:])]


def test_7_2_tells_of_a_table_after_its_entries_and_ends_exclusively() -> None:
    result = judge(ends_exclusively(recordings.as_kernel_7_2(recordings.lines_of("w1_delete_thp"))))
    assert result.kernel == "7.2"
    assert result.verdict is Verdict.PASS, (result.reasons, first(result))


def test_a_shared_zap_at_the_end_is_not_what_7_2_does() -> None:
    result = judge(recordings.as_kernel_7_2(recordings.lines_of("w1_delete_thp")))
    assert result.verdict is Verdict.FAIL
    assert first(result)[0] == "destroy"


def test_6_12_is_not_taken_for_7_2() -> None:
    result = judge(recordings.lines_of("w1_delete_adj"), kernel="7.2")
    assert result.verdict is Verdict.FAIL
    assert first(result)[0] == "set-region"


def test_6_1_zaps_in_two_recursive_passes() -> None:
    result = judge(recordings.as_kernel_6_1(recordings.lines_of("w1_delete_adj")))
    assert result.kernel == "6.1"
    deletes = [
        outcome.difference
        for outcome in result.outcomes
        if outcome.operation.kind == "set-region" and outcome.difference
    ]
    assert deletes[0].kernel[0].partition(": ")[2].startswith("zap_pass")
    assert re.match(r"zap_pass .* 3 yes", deletes[0].model[0])
    assert any(re.match(r"spte 0 0x40000 1 leaf.* frozen", line) for line in deletes[0].model)


# The command.


def test_the_command_and_its_exit_codes(tmp_path: Path) -> None:
    run = CliRunner().invoke
    good = str(recordings.path_of("w6_close"))
    result = run(cli, ["trace", "conform", good], standalone_mode=False)
    assert (result.return_value, result.output.splitlines()[-1].split()[0]) == (0, "PASS")
    assert "SPTE changes" in result.output
    change = tmp_path / "idea.py"
    change.write_text(
        "from mmu.tdp.zap import Zapper\nfrom mmu.variant import Variant\n"
        "class Idea(Zapper):\n    def zap_levels(self, root):\n        return (root.level,)\n"
        "VARIANT = Variant('idea', 'one pass', (Idea,))\n"
    )
    result = run(cli, ["trace", "conform", "--variant", str(change), good], standalone_mode=False)
    assert result.return_value == 1
    assert "DIFFERENCE at line" in result.output
    assert "zap_pass" in result.output
    result = run(cli, ["trace", "conform", "--json", good], standalone_mode=False)
    assert '"verdict": "PASS"' in result.output


@pytest.mark.parametrize("probe", ["kvm_destroy_vm", "kvm_arch_flush_shadow_all"])
def test_a_functions_entry_stands_in_for_a_probe_that_is_missing(probe: str) -> None:
    lines = recordings.lines_of("w8_roots")
    cut = [line for line in lines if f"({probe}+" not in line]
    assert len(cut) < len(lines)
    result = judge(uncounted(cut))
    assert result.verdict is Verdict.PASS, result.reasons


def test_several_probes_of_one_function_are_one_happening() -> None:
    lines = recordings.lines_of("w8_roots")
    twice = []
    for line in lines:
        twice.append(line)
        if ": put_root: (" in line:
            twice.append(line.replace(": put_root: (", ": other: (").partition(" root=")[0])
    assert len(twice) > len(lines)
    assert judge(uncounted(twice)).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("without", "needs"),
    [
        (": swap_memslots", "kvm_swap_active_memslots"),
        (": put_root", "kvm_tdp_mmu_put_root"),
        (": kvm_tdp_mmu_spte_changed", "kvm_tdp_mmu_spte_changed"),
    ],
)
def test_a_recording_that_lacks_an_input_is_inconclusive_and_names_it(
    without: str, needs: str
) -> None:
    result = judge(
        uncounted(line for line in recordings.lines_of("w1_delete_adj") if without not in line)
    )
    assert result.verdict is Verdict.INCONCLUSIVE
    assert needs in result.reasons[0]


def uncounted(lines: Iterable[str]) -> list[str]:
    """The lines without the header that announces how many there are."""
    return [line for line in lines if "entries-in-buffer" not in line]


def test_differences_of_one_kind_are_shown_once_with_the_kernels_code_to_read() -> None:
    lines = [line.replace("ret=5", "ret=1") for line in recordings.lines_of("w1_delete_adj")]
    result = judge(lines)
    text = conform_report.render(result)
    different = [outcome for outcome in result.outcomes if outcome.difference is not None]
    assert len(different) > 1
    assert text.count("DIFFERENCE at line") < len(different)
    assert " x fault: the kernel's next step was 'mapped', the model's 'mapped'" in text
    assert "kernel code: kvm_tdp_page_fault()" in text
    assert "(--all shows them)" in text
    whole = conform_report.render(result, everything=True)
    assert whole.count("DIFFERENCE at line") == len(different)
