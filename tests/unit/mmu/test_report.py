"""Reports: equal ones are one finding."""

from __future__ import annotations

from mmu.report import Report, Reporter, signature_of


def test_what_was_reported_before_is_counted_without_another_report() -> None:
    reporter = Reporter(sink=None)
    report = Report("O1", "code", "BUG", "", "", subject="here")
    assert report.signature == signature_of("O1", "code", "here")
    assert not reporter.repeats(report.signature)
    assert reporter.reports == ()
    reporter.emit(report)
    assert reporter.repeats(report.signature)
    assert not reporter.repeats(signature_of("O1", "code", "there"))
    reporter.emit(report)
    assert [each.count for each in reporter.reports] == [3]
