"""The Markdown summary: what a maintainer wants to know first, and nothing in it that is taken for
markup by mistake."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from stress.report import markdown
from tests.records import finding, record
from tests.stored import exploration


def cells(line: str) -> int:
    """How many cells GitHub sees in a line of a table."""
    return line.replace("\\\\", "").replace("\\|", "").count("|") - 1


def test_a_pass_says_what_ran_and_that_its_obligations_were_met() -> None:
    text = markdown.of_run(record())
    assert text.startswith(
        "# PASS: quick\n\nPASS quick, seed 7, 10.0 s: all 1 obligations met, no finding\n"
    )
    assert "| design | policy keep-valid, profile hardened, kernel 6.6 |" in text
    assert "| vcpu_faults | 1,000 | 12,345 | yes |" in text
    assert "| fault | 12,345 | 8.0 | 20.0 | 30.0 | 40.0 |" in text
    assert "`stress run --config configs/quick.toml --seed 7`" in text
    assert "A \\<made-up> scenario" in text


def test_findings_are_folded_away_with_their_splats() -> None:
    text = markdown.of_run(record(findings=2))
    assert "## Findings (2)" in text
    assert "<summary>O1 BUG: stale translation number 1, seen 2 times</summary>" in text
    assert f"```text\n{finding(1).splat}\n```" in text


def test_the_certificate_stands_in_both() -> None:
    for text in (markdown.of_run(record()), markdown.of_exploration(exploration())):
        assert (
            "## Certificate: what this PASS rests on\n\n| what | value |\n|---|---|\n| budget | "
            in text
        )
        assert "| rules judged | " in text


def test_many_findings_are_listed_without_splats() -> None:
    text = markdown.of_run(record(findings=markdown.MOST_SPLATS + 2))
    assert text.count("<details>") == markdown.MOST_SPLATS
    assert f"* O1 BUG: stale translation number {markdown.MOST_SPLATS + 1}" in text


def test_what_is_missing_stands_out() -> None:
    short = evolve(
        record(),
        obligations=(evolve(record().obligations[0], reached=3),),
        harness_errors=("observer died",),
    )
    text = markdown.of_run(short)
    assert "| vcpu_faults | 1,000 | 3 | **NO** |" in text
    assert "## Harness errors\n\n```text\nobserver died\n```" in text


def test_a_killed_run_says_so() -> None:
    assert markdown.of_run(
        evolve(record(), status="running", verdict="INCONCLUSIVE", pid=1, pid_started=1.0)
    ).startswith("# INCONCLUSIVE (killed)")


def test_an_exploration_says_how_far_it_came_and_how_to_replay() -> None:
    text = markdown.of_exploration(exploration(failures=1))
    assert text.startswith("# FAIL: fault-vs-delete\n")
    assert "| schedules | 10 of 100 steps in 1.5 s, started 2026-11-22T12:00:00Z |" in text
    assert "<summary>O1 BUG: stale | &lt;translation&gt; 0</summary>" in text
    assert "replay: stress replay schedule-1.json" in text
    assert "| fast_zaps | 1 | 10 | yes |" in text


@pytest.mark.parametrize(
    "text", [markdown.of_run(record(findings=3)), markdown.of_exploration(exploration(failures=2))]
)
def test_every_table_has_as_many_cells_in_each_line(text: str) -> None:
    tables: list[list[str]] = [[]]
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("|") and not fenced:
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    assert len(tables) > 2
    assert all(len({cells(line) for line in table}) == 1 for table in tables if table)


@given(st.text())
def test_any_text_stays_in_its_cell(text: str) -> None:
    (line,) = list(markdown.table(("a", "b"), [(text, "x")]))[2:-1]
    assert "\n" not in line
    assert cells(line) == 2


@given(st.text("`a\n"))
def test_a_fence_is_longer_than_what_is_in_it(text: str) -> None:
    first, *inside, last = markdown.fenced(text)
    assert first == f"{last}text"
    assert not any(line.strip().startswith(last) for line in inside)


def test_names_with_underscores_stay_readable() -> None:
    assert markdown.escaped("fast_zaps of vm_x, _this_ *that* [x](y) <b> a|b `c`") == (
        "fast_zaps of vm_x, \\_this\\_ \\*that\\* \\[x\\](y) \\<b> a\\|b \\`c\\`"
    )
