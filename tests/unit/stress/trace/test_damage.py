"""Damaged copies of recordings: what breaks a rule is reported at its line, what loses information
is INCONCLUSIVE."""

from __future__ import annotations

import random
import re

import pytest

from stress.results.verdict import Verdict
from stress.trace.checker import CheckResult
from tests import damage, recordings
from tests.recordings import judge, lines_of

SEEDS = range(3)


def evidence(result: CheckResult) -> set[int]:
    """Every line that any report names."""
    return {
        int(row[:8])
        for report in result.reports
        for part in report.sections
        for row in part.lines
        if row[:8].strip().isdigit()
    }


def codes(result: CheckResult) -> set[str]:
    return {report.code for report in result.reports}


OF_THREE_KERNELS = ("6.1/w1_delete", "w1_delete_adj", "w4_dirty", "7.2/w1_delete")


def base(name: str) -> list[str]:
    return recordings.header_for(lines_of(name))


@pytest.mark.parametrize("what", damage.BROKEN)
@pytest.mark.parametrize("name", OF_THREE_KERNELS)
def test_what_breaks_a_rule_is_found_at_its_operation(name: str, what: str) -> None:
    damaged = damage.BROKEN[what](base(name), random.Random(what))
    if damaged is None:
        pytest.skip("the recording has nothing that could be damaged so")
    result = judge(damaged.lines)
    assert result.judgement.verdict is Verdict.FAIL
    lines = evidence(result) | set(result.lines)
    assert any(damaged.first <= line <= damaged.last for line in lines)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("what", damage.LOST)
@pytest.mark.parametrize("name", OF_THREE_KERNELS)
def test_what_only_loses_information_is_inconclusive(name: str, what: str, seed: int) -> None:
    damaged = damage.LOST[what](base(name), random.Random(seed))
    if damaged is None:
        pytest.skip("the recording has nothing that could be lost so")
    assert judge(damaged.lines).judgement.verdict is Verdict.INCONCLUSIVE


def test_every_damage_can_be_drawn_somewhere() -> None:
    names = (*OF_THREE_KERNELS, *recordings.NAMES)
    drawn = {
        what
        for what, draw in damage.BROKEN.items()
        if any(draw(base(name), random.Random(what)) for name in names)
    }
    assert set(damage.BROKEN) - drawn == {"writable_only", "rights_widened"}


def test_a_leaf_is_no_more_writable_than_its_fault_was_allowed() -> None:
    lines = damage.read_only(lines_of("w1_delete_adj"))
    assert judge(lines).reports == ()
    for draw, code in (
        (damage.rights_widened, "writable-frame"),
        (damage.writable_only, "writable"),
    ):
        damaged = draw(lines, random.Random(1))
        assert damaged is not None
        result = judge(damaged.lines)
        assert result.lines[0] == damaged.first
        assert result.reports[0].code == code


def test_an_event_that_comes_late_takes_back_what_was_found_without_it() -> None:
    """The lines of a load come after the entry to the guest that follows it."""
    lines = base("7.2/w13_smm_delete")
    damaged = damage.disordered(lines, random.Random("disordered/1"))
    assert damaged is not None
    result = judge(damaged.lines)
    assert result.reports == ()
    assert "the order of the events" in result.tallies["obsolete"].unsure


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["w4_dirty", "w1_delete_quirkoff", "w1_delete_thp"])
def test_a_flush_removed_is_reported_when_the_call_returns(name: str, seed: int) -> None:
    lines, at = recordings.flush_removed(lines_of(name), seed)
    result = judge(lines)
    assert result.judgement.verdict is Verdict.FAIL
    assert codes(result) == {"no-flush"}
    assert [report.rule for report in result.reports] == ["O1"]
    assert result.lines[0] >= at - 3, "the call returns after the flush that is gone"
    last = max(index for index in recordings.find(lines[:at], "spte_changed"))
    assert evidence(result) & set(range(last - 20, last + 2)), (
        "the changes that were not flushed are shown"
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name", ["w8_roots", "w3_move", "w1_delete_adj", "w6_close", "w2_touched_begin"]
)
def test_a_doubled_put_is_reported_at_its_line(name: str, seed: int) -> None:
    lines, at = recordings.put_doubled(lines_of(name), seed)
    result = judge(lines)
    assert result.judgement.verdict is Verdict.FAIL
    assert at in result.lines
    assert codes(result) & {"put-twice", "count"}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "name", ["w1_delete_adj", "w8_roots", "w1_delete_quirkoff", "w2_touched_begin"]
)
def test_a_leaf_revived_after_the_delete_is_reported_at_its_line(name: str, seed: int) -> None:
    lines, at = recordings.leaf_revived(lines_of(name), seed)
    result = judge(lines)
    assert result.judgement.verdict is Verdict.FAIL
    assert ("O6", "leaf-revived") in {
        (report.rule, report.code)
        for report, line in zip(result.reports, result.lines, strict=True)
        if line == at
    }


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["w1_delete_adj", "w3_move", "w8_roots"])
def test_a_dropped_reload_is_reported_at_the_next_entry(name: str, seed: int) -> None:
    lines, entry = recordings.reload_dropped(lines_of(name), seed)
    result = judge(lines)
    assert result.judgement.verdict is Verdict.FAIL
    assert entry in result.lines
    assert "no-root" in codes(result)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_that_was_never_made_is_reported_before_the_zap(seed: int) -> None:
    lines, zap = recordings.request_dropped(lines_of("w3_move"), seed)
    result = judge(lines)
    assert result.judgement.verdict is Verdict.FAIL
    assert {zap - 1, zap} & set(result.lines), "the function's entry, or the probe on it"
    assert "not-asked" in codes(result)


@pytest.mark.parametrize("which", ["old_spte", "new_spte"])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["w1_delete_adj", "w4_dirty", "w8_roots"])
def test_an_altered_spte_is_among_the_lines_that_prove_it(name: str, seed: int, which: str) -> None:
    lines, at = recordings.spte_altered(lines_of(name), seed, which)
    result = judge(lines)
    assert result.judgement.verdict is Verdict.FAIL
    assert at in evidence(result)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", recordings.NAMES)
def test_lines_out_of_order_make_it_inconclusive(name: str, seed: int) -> None:
    result = judge(recordings.shuffled(lines_of(name), seed))
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert "time goes back" in result.judgement.reasons[0]


@pytest.mark.parametrize("name", ["w2_touched_begin", "w8_roots"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_cut_in_a_line_is_inconclusive(name: str, share: float) -> None:
    lines = lines_of(name)
    at = int(len(lines) * share)
    for cut in ([*lines[:at], lines[at][:60]], [*lines[:at], lines[at][:4]]):
        result = judge(cut)
        assert result.judgement.verdict is Verdict.INCONCLUSIVE, result.reports


def test_lost_events_make_it_inconclusive_from_there_on() -> None:
    lines = lines_of("w8_roots")
    middle = len(lines) // 2
    result = judge([*lines[:middle], "CPU:1 [LOST 17 EVENTS]", *lines[middle + 17 :]])
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert result.counts.lost == 17
    assert result.gaps[0][0] == middle + 1


def test_a_violation_before_lost_events_stays_one() -> None:
    lines, at = recordings.put_doubled(lines_of("w8_roots"), 0)
    result = judge([*lines[: at + 5], "CPU:0 [LOST EVENTS]", *lines[at + 5 :]])
    assert result.judgement.verdict is Verdict.FAIL
    assert at in result.lines


def test_a_kernel_that_skips_the_flush_of_a_root_load_is_caught() -> None:
    lines = lines_of("w3_move")
    load = recordings.find(lines, r" mmu_load: ")[3]
    gone = set(recordings.find(lines, r"svm_flush", load)[:4])
    ret = recordings.find(lines, r" mmu_load_ret: ", load)[0]
    result = judge(recordings.never(lines, {index for index in gone if index < ret}))
    assert "no-local-flush" in codes(result)


def test_a_frozen_entry_is_nobody_elses() -> None:
    lines = lines_of("w3_move")
    frozen = recordings.find(lines, "new_spte 80000000000005a0")[0]
    thawed = (
        lines[frozen].rsplit(" old_spte", 1)[0]
        + " old_spte 80000000000005a0 new_spte 8000000000000000"
    )
    result = judge([*lines[: frozen + 1], thawed, *lines[frozen + 1 :]])
    assert "frozen-changed" in codes(result)
    assert frozen + 2 in result.lines


def test_a_table_that_is_removed_while_linked_is_reported() -> None:
    lines = lines_of("w1_delete_adj")
    entry = recordings.find(lines, "kvm_entry")[20]
    removed = (
        "kvm_mmu_prepare_zap_page: sp gen 0 gfn 40000 l1 8-byte q0 direct wux nxe ad root 0 sync"
    )
    early = re.sub(r"kvm_entry: .*", removed, lines[entry])
    result = judge([*lines[: entry + 1], early, *lines[entry + 1 :]])
    assert ("removed-while-linked", entry + 2) in {
        (report.code, line) for report, line in zip(result.reports, result.lines, strict=True)
    }


def test_a_lock_that_is_left_without_a_flush_is_reported_when_somebody_else_holds_it() -> None:
    """Another vCPU's fault, which holds mmu_lock for read, in the middle of what a memslot call
    zaps with it held for write."""
    lines = lines_of("w1_delete_quirkoff")
    zap = recordings.find(lines, r" unmap_gfn_range: ")[0]
    last = recordings.find(lines, "kvm_tdp_mmu_spte_changed", zap)[3]
    fault = lines[recordings.find(lines, " stale: ")[0]]
    time = re.search(r"[0-9.]+: ", lines[last])
    assert time is not None
    other = re.sub(r" +[0-9.]+: ", f" {time[0]}", fault, count=1).replace("kvmwl-278", "kvmwl-279")
    result = judge([*lines[: last + 1], other, *lines[last + 1 :]])
    assert [("O1", "lock-left", last + 2)] == [
        (report.rule, report.code, line)
        for report, line in zip(result.reports, result.lines, strict=True)
        if report.code == "lock-left"
    ]
    same = judge([*lines[: last + 1], other.replace("kvmwl-279", "kvmwl-278"), *lines[last + 1 :]])
    assert "lock-left" not in codes(same)


def test_a_page_that_is_freed_while_linked_is_reported() -> None:
    lines = lines_of("w1_delete_adj")
    entry = recordings.find(lines, "kvm_entry")[20]
    freed = re.sub(
        r"kvm_entry: .*",
        "free_sp_rcu: (tdp_mmu_free_sp_rcu_callback+0x4/0x30 [kvm]) head=0xffff8c7000000040",
        lines[entry],
    )
    result = judge([*lines[: entry + 1], freed, *lines[entry + 1 :]])
    assert ("freed-linked", entry + 2) in {
        (report.code, line) for report, line in zip(result.reports, result.lines, strict=True)
    }


def test_a_leaf_that_survives_the_delete_is_reported_at_its_return() -> None:
    lines = lines_of("w1_delete_quirkoff")
    call = recordings.find(lines, r" set_memslot: .*change=1 ")[0]
    zaps = recordings.find(
        lines, r"level 1 old_spte [1-9a-f][0-9a-f]{2,9} new_spte 8000000000000000", call
    )
    ret = recordings.find(lines, " set_memslot_ret: ", call)[0]
    result = judge(recordings.never(lines, {zaps[3]}))
    assert {
        (report.rule, line) for report, line in zip(result.reports, result.lines, strict=True)
    } >= {("O6", ret)}


def test_a_root_that_is_never_freed_is_a_leak() -> None:
    lines = lines_of("w6_close")
    last = recordings.find(lines, r" put_root: .*ref=1 ")[-1]
    result = judge(recordings.never(lines, {last - 1, last}))
    assert ("O11", "never-freed") in {(report.rule, report.code) for report in result.reports}


def test_statistics_that_disagree_are_reported() -> None:
    lines = [line.replace("tdp_pages=5", "tdp_pages=6") for line in lines_of("w8_roots")]
    assert "tdp-pages" in codes(judge(lines))
    log = (recordings.DATA / "w8_roots.log").read_text().replace("pages_4k=5 ", "pages_4k=7 ")
    assert "pages" in codes(judge(lines_of("w8_roots"), statistics=log))
