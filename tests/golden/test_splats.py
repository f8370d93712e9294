"""Golden splats: what a report looks like, to the letter. Line numbers are left out, so that only
the words count."""

from __future__ import annotations

import re
from pathlib import Path

from mmu.report import Report, Reporter
from mmu.sync import Sync

HERE = Path(__file__).parent


def normal(report: Report) -> str:
    """A report without line numbers, task numbers and the frames of the test runner."""
    lines = []
    for line in report.render().splitlines():
        if re.search(r"\((?!tests/|mmu/|stress/)[\w./]+\.py:\d+\)", line):
            continue
        lines.append(re.sub(r"\.py:\d+", ".py:N", re.sub(r"MainThread/\d+", "MainThread/N", line)))
    return "\n".join(lines) + "\n"


def expect(name: str, report: Report) -> None:
    """Compare with the golden file; a changed splat is a decision, made by changing the file."""
    assert normal(report) == (HERE / f"{name}.txt").read_text(encoding="utf-8")


def inverted(sync: Sync) -> None:
    slots_lock, cache_lock = sync.mutex("slots_lock"), sync.mutex("exported_tdp_cache_lock")
    with slots_lock, cache_lock:
        pass
    with cache_lock, slots_lock:
        pass


def test_a_lock_inversion() -> None:
    reporter = Reporter(sink=None)
    inverted(Sync(reporter=reporter))
    expect("lock-inversion", reporter.reports[0])


def test_sleeping_under_a_spinning_lock() -> None:
    reporter = Reporter(sink=None)
    sync = Sync(reporter=reporter)
    with sync.spinlock("tdp_mmu_pages_lock"):
        sync.might_sleep("get_user_pages")
    expect("sleep-in-atomic", reporter.reports[0])


def test_rcu_dereference_outside_a_section() -> None:
    reporter = Reporter(sink=None)
    Sync(reporter=reporter).rcu.assert_held("sptep")
    expect("suspicious-rcu-usage", reporter.reports[0])
