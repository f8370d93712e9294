"""Reports: pure functions of a stored run, readable in a narrow terminal and offline in a browser."""

from __future__ import annotations

from html.parser import HTMLParser

from attrs import evolve

from stress.report import console, html
from tests.records import record


def test_the_console_summary_of_a_pass() -> None:
    text = console.summary(record())
    assert "vCPUs: faults 12,345" in text
    assert text.rstrip().endswith("PASS  quick, seed 7, 10.0 s: all 1 obligations met, no finding")
    assert "memory 44.0 MiB, +1.0 MiB from second to last quarter" in text


def test_the_console_summary_shows_findings_before_the_verdict() -> None:
    text = console.summary(record(findings=2))
    assert text.index("stale translation number 1") < text.index("FAIL  quick")
    assert "expected O1: seen O1" in text


def test_an_expected_rule_that_did_not_fire_is_said() -> None:
    assert "expected O12: NOT seen" in console.verdict_line(evolve(record(findings=1), expected_rules=("O12",)))


def test_unmet_obligations_and_harness_errors_are_shown() -> None:
    short = evolve(record(), obligations=(evolve(record().obligations[0], reached=3),), harness_errors=("observer died",))
    text = console.summary(short)
    assert "obligation not met: vcpu_faults 3, needed 1,000" in text
    assert "harness error: observer died" in text


class _Checker(HTMLParser):
    """Collects outside references and checks that tags nest."""

    VOID = frozenset({"meta", "br", "polyline", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href") and value and not value.startswith("#")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_html_page_is_whole_offline_and_escapes_what_it_shows() -> None:
    page = html.render(record(findings=5))
    checker = _Checker()
    checker.feed(page)
    assert checker.open in ([], ["html"], ["p"]), checker.open
    assert checker.outside == []
    assert "A &lt;made-up&gt; scenario" in page
    assert "12,345" in page
    assert page.count("<details open>") == 3
    assert "locks held by device0/7" in page


def test_a_killed_run_is_shown_as_such() -> None:
    page = html.render(evolve(record(), status="running", verdict="INCONCLUSIVE", pid=1, pid_started=1.0))
    assert "(killed)" in page
