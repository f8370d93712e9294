"""What a page of the zoo says: every story tells who does what, every origin can be looked up, every splat is the expected one."""

from __future__ import annotations

import re

import pytest

from mmu.invariants import names_of
from stress.controls import CONTROLS
from stress.zoo import page
from stress.zoo.mutant import Control, Mutant
from stress.zoo.registry import zoo

ALL: dict[str, Mutant | Control] = {**zoo(), **CONTROLS}
LOOKED_UP = re.compile(r"\b[0-9a-f]{12}\b|reference (\d|[A-Z])|RFC PATCH|kvm_vcpu_exit_request")


@pytest.mark.parametrize("name", ALL)
def test_an_origin_can_be_looked_up(name: str) -> None:
    """By a commit, or a section of the reference; its confidence is said once."""
    assert LOOKED_UP.search(ALL[name].origin), ALL[name].origin
    assert not re.search(r"\[(A|V|Vt)\]", ALL[name].origin)


@pytest.mark.parametrize("name", zoo())
def test_every_step_of_a_story_says_who_does_what(name: str) -> None:
    assert len(zoo()[name].story) > 1
    for step in zoo()[name].story:
        who, _, what = step.partition(": ")
        assert 0 < len(who) <= 40, step
        assert what, step


@pytest.mark.parametrize("name", ["notifier-takes-slots-lock", "double-put-of-invalid-root"])
def test_the_report_that_is_shown_is_an_expected_one(name: str) -> None:
    """Though another may come first."""
    mutant = zoo()[name]
    text = page.page(name)
    shown = re.search(r"^rule (\w+) \((\S+)\)", text, re.MULTILINE)
    assert shown is not None
    failure = page.kill(mutant)
    assert failure is not None
    report = next(report for report in failure.reports if (report.rule, report.code) == shown.groups())
    assert names_of(report) & set(mutant.expects)


def test_a_deadlock_shows_where_everybody_stands_and_what_is_held() -> None:
    text = page.page("notifier-takes-slots-lock")
    where = text[text.index("stack of host0/") :]
    assert "KeepSlotsStill.invalidate_range_end" in where.split("locks held by")[0]
    assert "stress/engines/" not in text
    assert "(slots_lock){write} sleeping, at: Memslots.set_region" in text[text.index("locks held by memslot-worker/") :]


def test_a_livelock_says_that_its_tasks_spin() -> None:
    text = page.page("notifier-seq-truncated")
    assert "vcpu0 spins until something that it reads changes" in text
    assert "NarrowSnapshot" in text or "FaultHandler.page_fault" in text
