"""The page of a mutant or control: every story tells who does what, every origin can be looked up,
every splat is the expected one."""

from __future__ import annotations

import re
import shlex

import pytest

from mmu.numbers.bugs import BUGS
from stress.mutants import commits
from stress.mutants.case import Control, Mutant
from stress.mutants.controls import CONTROLS
from stress.selftest import page
from stress.selftest.registry import all_mutants

ALL: dict[str, Mutant | Control] = {**all_mutants(), **CONTROLS}


def splat(name: str) -> str:
    """The report that a mutant brings."""
    failure = page.kill(all_mutants()[name])
    assert failure is not None
    return page.report_of(failure, all_mutants()[name]).render()


LOOKED_UP = re.compile(r"\b[0-9a-f]{12}\b|reference (\d|[A-Z])|RFC PATCH|kvm_vcpu_exit_request")


def test_an_origin_can_be_looked_up() -> None:
    """By a commit, or a section of the reference; its confidence is said once."""
    for name, variant in ALL.items():
        assert LOOKED_UP.search(variant.origin), (name, variant.origin)
        assert not re.search(r"\[(A|V|Vt)\]", variant.origin), name


def test_every_step_of_a_story_says_who_does_what() -> None:
    for name, mutant in all_mutants().items():
        assert len(mutant.story) > 1, name
        for step in mutant.story:
            who, _, what = step.partition(": ")
            assert 0 < len(who) <= 40, (name, step)
            assert what, (name, step)


def test_every_commit_that_is_named_is_known_by_its_subject() -> None:
    for name, variant in ALL.items():
        named = commits.HASH.findall(variant.origin)
        assert all(commit in commits.COMMITS for commit in named), (name, variant.origin)
        assert not re.search("unconfirmed", variant.origin), name


def test_no_commit_is_known_that_nobody_names() -> None:
    named = {commit for variant in ALL.values() for commit in commits.HASH.findall(variant.origin)}
    of_bugs = {commit for bug in BUGS.values() for commit in bug.commits}
    assert named <= set(commits.COMMITS) <= named | of_bugs


def test_a_page_is_no_wider_than_a_screen_but_for_words_that_cannot_be_broken() -> None:
    for name, variant in ALL.items():
        for line in page.facts(variant):
            assert (
                len(line) <= page.WIDTH
                or re.fullmatch(r"\s*--\w+ \S+=.*?( \\)?", line)
                or " in place of " in line
            ), (name, line)


def test_a_command_over_several_lines_is_the_same_command() -> None:
    mutant = all_mutants()["log-flush-only-if-changed"]
    assert mutant.threads is not None
    text = "\n".join(page.facts(mutant))
    shown = text[text.index("  stress run ") :].rstrip()
    assert shlex.split(shown.replace("\\\n", " ")) == shlex.split(
        page.command("run", mutant.threads, mutant)
    )
    assert all(line.endswith("\\") for line in shown.split("\n")[:-1])


def test_a_page_names_the_functions_that_are_replaced() -> None:
    assert "    replaces invalidate_begin(), invalidate_end()" in list(
        page.facts(all_mutants()["invalidation-not-announced"])
    )


@pytest.mark.parametrize("name", ["notifier-takes-slots-lock", "double-put-of-invalid-root"])
def test_the_report_that_is_shown_is_an_expected_one(name: str) -> None:
    """Though another may come first."""
    mutant = all_mutants()[name]
    failure = page.kill(mutant)
    assert failure is not None
    assert page.report_of(failure, mutant).names() & set(mutant.expects)


def test_a_deadlock_shows_where_everybody_stands_and_what_is_held() -> None:
    text = splat("notifier-takes-slots-lock")
    where = text[text.index("stack of host0/") :]
    assert "KeepSlotsStill.invalidate_range_end" in where.split("locks held by")[0]
    assert "stress/engines/" not in text
    assert (
        "(slots_lock){write} sleeping, at: Memslots.set_region"
        in text[text.index("locks held by memslot-worker/") :]
    )


def test_a_livelock_says_that_its_tasks_spin() -> None:
    text = splat("notifier-seq-truncated")
    assert "vcpu0 spins until something that it reads changes" in text
    assert "Vcpu._handle_violation" in text, "the fault is tried again and again"
