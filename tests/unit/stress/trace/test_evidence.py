"""No accusation without evidence: what a healthy kernel does that looked like a broken rule, and
the true findings, in words that say what happened."""

from __future__ import annotations

import pytest

from stress.results.verdict import Verdict
from stress.trace.checker import CheckResult
from tests import recordings
from tests.recordings import judge, lines_of

HEALTHY = {
    "uninit_with_nobody_to_ask": "the TDP MMU is taken down when no vCPU is left",
    "spurious_mark_mmio": "a spurious fault marks an MMIO SPTE without changing it",
    "zap_without_functions": "neither flushes nor what the task does are recorded",
    "requested_with_access": "7.x says which access a fault asks for",
}


def healthy(name: str) -> CheckResult:
    return judge((recordings.DATA / "healthy" / f"{name}.trace").read_text().splitlines())


@pytest.mark.parametrize("name", HEALTHY, ids=HEALTHY.get)
def test_what_a_healthy_kernel_does_is_no_finding(name: str) -> None:
    result = healthy(name)
    assert result.reports == ()
    assert result.gaps == ()
    assert result.notes == ()
    assert result.judgement.verdict is Verdict.INCONCLUSIVE


def test_the_access_of_a_request_says_which_kernel_it_is() -> None:
    assert healthy("requested_with_access").layout == "7.2"


def test_an_mmio_spte_over_a_leaf_is_named_as_what_it_is() -> None:
    """Recorded from 6.12 with KVM_X86_QUIRK_SLOT_ZAP_ALL off: a fault that found no memslot."""
    result = judge(lines_of("findings/mmio_over_leaf"))
    assert result.judgement.verdict is Verdict.FAIL
    (report,) = result.reports
    assert (report.rule, report.code) == ("O7", "mmio-over-leaf")
    assert "an MMIO SPTE replaced a present leaf" in report.headline
    assert "a fault without a slot is never judged stale" in report.headline
    assert "gfn 0x80006 level 1: 0x87f9e67 -> 0x80000800066b7" in report.headline


def test_an_invalidation_that_returns_without_the_flush_of_another_is_reported() -> None:
    """Recorded from 6.12: a notifier's walk yields in the second slot while the flush for the first
    one is owed, and another thread invalidates a page of the first."""
    lines = lines_of("findings/hollow_slot")
    result = judge(lines)
    (report,) = result.reports
    assert (report.rule, report.code) == ("O1", "owed-by-another")
    assert "task 271 has invalidated gfn 0x40000 and returned without a flush" in report.headline
    assert "the host may free the page" in report.headline
    (line,) = result.lines
    assert "mn_start_ret" in lines[line - 1]


def test_an_invalidation_that_flushes_what_another_owes_is_right() -> None:
    lines = lines_of("findings/hollow_slot")
    (line,) = judge(lines).lines
    own = recordings.pid_of(lines[line - 1])
    zap = next(index for index in range(line - 1, 0, -1) if "unmap_gfn_range: " in lines[index])
    assert recordings.pid_of(lines[zap]) == own
    stamp = lines[zap].partition(": unmap")[0]
    flush = f"{stamp}: flush_remote: (kvm_flush_remote_tlbs+0x4/0x80 [kvm]) kvm=0x0"
    result = judge(recordings.header_for([*lines[: line - 1], flush, *lines[line - 1 :]]))
    assert "owed-by-another" not in {report.code for report in result.reports}
