"""`check` on whole recordings, and on what other kernels, CPUs, clocks and tracers would have made
of them."""

from __future__ import annotations

import re

import pytest

from stress.results.verdict import Verdict
from stress.trace.checker import check
from tests import recordings
from tests.recordings import NAMES, judge, lines_of, path_of

KNOWN = {
    # From the summary that came with the recordings.
    "w1_delete_adj": (
        "deletes=3 new_root=3 alloc_root=3 put_last=3 free_sp=16 zap_all_fast=3 leaf_zap=132 "
        "leaf_set=132 pf=140 mmio=4"
    ),
    "w1_delete_thp": (
        "deletes=3 new_root=3 put_last=3 free_sp=17 leaf_zap=12 leaf_set=12 flush_remote=1 pf=20 "
        "flush_asid=5"
    ),
    "w3_move": (
        "moves=14 new_root=13 alloc_root=24 reused=11 put_last=13 free_sp=105 zap_all_fast=12 "
        "leaf_zap=192 leaf_set=201 req_free_obs=12 kicked=6 ack_kick=6 pf=1196 pf_retry=413 "
        "stale=2 mmio=164 mn_start=11 flush_asid=26"
    ),
    "w4_dirty": (
        "new_root=1 alloc_root=2 reused=1 flush_remote=9 kicked=5 ack_kick=5 pf=147 fast_fixed=120 "
        "mmio=8 mn_start=10"
    ),
    "w6_close": (
        "new_root=1 alloc_root=2 reused=1 put_last=1 free_sp=6 leaf_zap=17 leaf_set=17 pf=17 "
        "mn_start=4 flush_asid=4"
    ),
    "w8_roots": (
        "deletes=4 new_root=6 alloc_root=13 reused=8 put_last=6 free_sp=34 zap_all_fast=4 "
        "leaf_zap=27 req_free_obs=4"
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_real_kernel_passes(name: str) -> None:
    result = check(path_of(name))
    assert result.judgement.verdict is Verdict.PASS, result.judgement.reasons
    assert result.reports == ()
    assert result.layout == ("6.12" if name != "w1_delete_quirkoff" else result.layout)
    assert result.vendor == "AMD"
    assert result.counts.events == result.counts.announced
    for check_name in ("transitions", "roots", "tables", "statistics", "obsolete", "flushes"):
        assert result.tallies[check_name].held, check_name
    for figure, count in (pair.split("=") for pair in KNOWN.get(name, "").split()):
        assert result.summary.get(figure) == int(count), figure


@pytest.mark.parametrize(
    "name", ["w1_delete_adj", "w1_delete_thp", "w3_move", "w8_roots", "w1_delete_quirkoff"]
)
@pytest.mark.parametrize(
    ("make", "layout"), [(recordings.as_kernel_6_1, "6.1"), (recordings.as_kernel_7_2, "7.2")]
)
def test_other_kernels_pass_and_are_recognised(name: str, make, layout: str) -> None:  # type: ignore[no-untyped-def]
    result = judge(make(lines_of(name)))
    assert result.judgement.verdict is Verdict.PASS, result.judgement.reasons
    assert result.layout == layout


@pytest.mark.parametrize("name", ["w1_delete_adj", "w1_delete_thp", "w8_roots"])
def test_intel_passes_and_is_recognised(name: str) -> None:
    lines = recordings.header_for(recordings.as_intel(lines_of(name)))
    result = judge(lines)
    assert result.judgement.verdict is Verdict.PASS, (
        result.judgement.reasons,
        [report.headline for report in result.reports][:3],
    )
    assert result.vendor == "Intel"


def test_a_value_of_another_kernel_in_between_is_illegal() -> None:
    lines = lines_of("w8_roots")
    at = recordings.find(lines, "new_spte 8000000000000000")[5]
    lines[at] = lines[at].replace("new_spte 8000000000000000", "new_spte 0")
    result = judge(lines)
    assert (at + 1, "foreign-value") in {
        (line, report.code) for report, line in zip(result.reports, result.lines, strict=True)
    }


def seconds(line: str) -> str:
    """The same line by `trace_clock=local`."""
    return re.sub(
        r"^(.{16}-\d+ +\[\d+\] \S+ +)(\d+): ",
        lambda found: f"{found[1]}{int(found[2]) / 1e6:12.6f}: ",
        line,
    )


CONVERSIONS = {
    "local clock": seconds,
    "no irq-info": lambda line: re.sub(r"^(.{16}-\d+ +\[\d+\]) \S+ ", r"\1 ", line),
    "tgid": lambda line: re.sub(r"^(.{16}-\d+ +)\[", r"\1(   1234) [", line),
    "latency format": lambda line: re.sub(
        r"^ *(\S+)-(\d+) +\[0*(\d+)\] (\S+) +(\d+): ",
        lambda f: f"{f[1][-8:]:>8}-{f[2]:<7} {f[3]:>3}{f[4]} {f[5]}us : ",
        line,
    ),
    "symbol offsets": lambda line: re.sub(
        r": ([\w.]+) <-([\w.]+)$", r": \1+0x4/0x2a0 <-\2+0x17/0x90", line
    ),
    "odd task": lambda line: line.replace("           kvmwl", "a b-1 [2] (c): d"[:16]),
}


@pytest.mark.parametrize("what", CONVERSIONS)
def test_the_tracers_options_do_not_matter(what: str) -> None:
    lines = [
        line if line.startswith("#") else CONVERSIONS[what](line) for line in lines_of("w8_roots")
    ]
    assert lines != lines_of("w8_roots")
    result = judge(lines)
    assert result.judgement.verdict is Verdict.PASS, result.judgement.reasons
    assert result.tallies["obsolete"].held == judge(lines_of("w8_roots")).tallies["obsolete"].held


def test_a_recording_that_begins_in_the_middle_breaks_nothing() -> None:
    for name in NAMES:
        lines = lines_of(name)
        for share in (0.2, 0.5, 0.8):
            result = judge(recordings.header_for([*lines[:12], *lines[int(len(lines) * share) :]]))
            assert result.reports == (), (name, share, result.reports[0].render())


def test_two_recordings_in_one_file_are_judged_apart() -> None:
    result = judge([*lines_of("w6_close"), *lines_of("w8_roots"), *lines_of("w1_delete_adj")])
    assert result.judgement.verdict is Verdict.PASS, result.judgement.reasons
    assert result.counts.recordings == 3


def test_vms_one_after_the_other_in_one_recording() -> None:
    events = [
        line
        for name in ("w6_close", "w8_roots", "w6_close")
        for line in lines_of(name)
        if not line.startswith("#")
    ]
    stamped = [
        re.sub(r" +\d+: ", f" {number}: ", line, count=1) for number, line in enumerate(events)
    ]
    result = judge(recordings.header_for([*lines_of("w8_roots")[:12], *stamped]))
    assert result.judgement.verdict is Verdict.PASS, (
        result.judgement.reasons,
        [report.headline for report in result.reports][:4],
    )
    assert result.tallies["roots"].held["VMs that left no root behind"] == 3


def test_plain_tracepoints_prove_little_and_say_so() -> None:
    plain = [
        line
        for line in lines_of("w8_roots")
        if re.search(
            r"^#|: kvm_(tdp_mmu_spte_changed|mmu_get_page|mmu_prepare_zap_page|mmu_set_spte):", line
        )
    ]
    result = judge(recordings.header_for(plain))
    assert result.judgement.verdict is Verdict.INCONCLUSIVE
    assert result.reports == ()
    assert set(result.missing) == {"slots", "flushes", "roots", "statistics", "obsolete"}
    assert result.tallies["transitions"].held


def test_two_vms_that_nothing_tells_apart_are_not_judged_as_one() -> None:
    first, second = lines_of("w8_roots"), lines_of("w6_close")
    other = [
        re.sub(r"-(\d+) ", lambda found: f"-{int(found[1]) + 5000} ", line)
        for line in second
        if not line.startswith("#")
    ]
    mixed = first[:12]
    for pair in zip(first[12:], other, strict=False):
        mixed += pair
    stamped = [
        line if line.startswith("#") else re.sub(r"\d+: ", f"{number}: ", line, count=1)
        for number, line in enumerate(mixed)
    ]
    result = judge(recordings.header_for(stamped))
    assert result.judgement.verdict in (Verdict.INCONCLUSIVE, Verdict.FAIL)


def test_two_vms_with_their_pointers_are_judged_apart() -> None:
    first = [with_kvm(line, 0xFFFF000000001000) for line in lines_of("w8_roots")]
    second = [with_kvm(line, 0xFFFF000000002000) for line in lines_of("w6_close")]
    other = [
        re.sub(r"-(\d+) ", lambda found: f"-{int(found[1]) + 5000} ", line)
        for line in second
        if not line.startswith("#")
    ]
    mixed = first[:12]
    for index, line in enumerate(first[12:]):
        mixed.append(line)
        mixed += other[index : index + 1]
    stamped = [
        line if line.startswith("#") else re.sub(r" +\d+: ", f" {number}: ", line, count=1)
        for number, line in enumerate(mixed)
    ]
    result = judge(recordings.header_for(stamped))
    assert result.judgement.verdict is Verdict.PASS, (
        result.judgement.reasons,
        [report.headline for report in result.reports][:4],
    )


def with_kvm(line: str, pointer: int) -> str:
    """The line as a probe with a kvm= argument prints it."""
    return (
        f"{line} kvm={pointer:#x}"
        if re.search(r": \w+: \([^<]*\)", line) and "free_sp_rcu" not in line
        else line
    )
