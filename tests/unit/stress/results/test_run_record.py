"""From a session to its record: what was expected, who is suspected, and which accesses met memory
that was gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from mmu.candidates import CANDIDATES
from mmu.posted import POSTED
from mmu.runtime import Runtime
from stress.engines.session import Session, variants_of
from stress.mutants import MUTANTS
from stress.results.run_record import RUN_FORMAT, RunRecord
from stress.results.verdict import Verdict
from stress.runs.fanout.single_run import keep_run
from stress.runs.run import GONE, RunRequest, execute, stored_findings
from stress.scenario.types import (
    Budget,
    Expect,
    Limits,
    Positive,
    Scenario,
    Seconds,
    VariantName,
    VmSettings,
)
from tests.engine import small
from tests.patience import PATIENCE
from tests.records import finding, record

Find = Callable[..., Session]


@pytest.fixture
def find() -> Iterator[Find]:
    """A session of a scenario in which these (rule, code) were found."""
    made: list[Session] = []

    def make(*found: tuple[str, str], **changes: Any) -> Session:
        session = Session(small(**changes), 1, Runtime())
        made.append(session)
        for rule, code in found:
            session.vm.kvm.warn(rule, code, f"BUG: {code}", "a rule", "a source")
        return session

    yield make
    for session in made:
        session.vm.kvm.rcu.shutdown()


def under(profile: str = "hardened", *variants: str) -> VmSettings:
    return evolve(
        small().vm, profile=profile, variants=tuple(VariantName(name) for name in variants)
    )


# Who is suspected.


def test_on_the_mended_design_nobody_is_suspected(find: Find) -> None:
    (stored,) = stored_findings(find(("O1", "missing-flush")))
    assert stored.suspects == ()


def test_of_the_posted_series_those_are_suspected_that_break_the_rule(find: Find) -> None:
    session = find(
        ("O1", "missing-flush"),
        ("O13", "stale-mmio-honoured"),
        ("O11", "leak-roots"),
        vm=under("rfc-v1"),
    )
    flush, mmio, leak = stored_findings(session)
    assert flush.suspects == tuple(
        defect.title
        for defect in (*CANDIDATES.values(), *POSTED.values())
        if "O1" in defect.expects
    )
    assert [title.split()[0] for title in flush.suspects] == ["candidate:", "R5", "R12", "R23"]
    assert [title.split()[0] for title in mmio.suspects] == ["R9"]
    assert leak.suspects == ()


def test_a_variant_that_was_chosen_is_suspected_too_and_a_policy_that_is_right_is_not(
    find: Find,
) -> None:
    session = find(("O1", "missing-flush"), vm=under("hardened", "no-flush-after-exported-zap"))
    (stored,) = stored_findings(session)
    assert stored.suspects == (MUTANTS["no-flush-after-exported-zap"].title,)


def test_the_wrong_policy_is_a_suspect(find: Find) -> None:
    session = find(
        ("O12", "exported-root-invalid"), vm=evolve(under(), policy="invalidate-in-place")
    )
    (stored,) = stored_findings(session)
    assert [title.split(",")[0] for title in stored.suspects] == ["C"]


def test_a_variant_of_ones_own_is_suspected_by_what_it_expects(find: Find) -> None:
    scenario = small()
    own = evolve(
        MUTANTS["no-flush-after-exported-zap"], name="mine", title="my idea", expects=("O9",)
    )
    session = Session(scenario, 1, Runtime(), [own])
    for rule in ("O9", "O1"):
        session.vm.kvm.warn(rule, "x", "BUG: x", "a rule", "a source")
    assert [stored.suspects for stored in stored_findings(session)] == [("my idea",), ()]
    session.vm.kvm.rcu.shutdown()


def test_suspects_survive_the_round_trip() -> None:
    original = evolve(
        record(), findings=(evolve(finding(0), suspects=("R5 un-export", "R12 exit")),)
    )
    assert RUN_FORMAT.read(RUN_FORMAT.text(original), "here") == original


def test_variants_come_mildest_first() -> None:
    scenario = Scenario(
        vm=VmSettings(profile="rfc-v1", kernel="6.12", variants=(VariantName("put-before-zap"),))
    )
    names = [variant.name for variant in variants_of(scenario)]
    assert names == ["kernel-6.12", "keep-valid", *CANDIDATES, *POSTED, "put-before-zap"]


# What is expected.


@pytest.mark.parametrize(
    ("expect", "expected"),
    [
        (Expect(), ()),
        (Expect(rules=("O1", "O2")), ("O1", "O2")),
        (Expect(codes=("missing-flush",)), ("missing-flush",)),
        (Expect(rules=("O1",), codes=("missing-flush",)), ("missing-flush",)),
    ],
)
def test_codes_go_before_rules(expect: Expect, expected: tuple[str, ...]) -> None:
    assert expect.names == expected


@pytest.mark.parametrize(
    ("expected", "seen"),
    [
        (("O1",), ("O1",)),
        (("stale-tlb",), ("stale-tlb",)),
        (("missing-flush", "stale-tlb"), ("stale-tlb",)),
        (("O2", "missing-flush"), ()),
        ((), ()),
    ],
)
def test_a_record_says_which_of_the_expected_were_seen(
    expected: tuple[str, ...], seen: tuple[str, ...]
) -> None:
    assert evolve(record(findings=1), expected_rules=expected).expected_seen == seen


def run(tmp_path: Path, **changes: Any) -> RunRecord:
    scenario = small(**({"obligations": {"vcpu_accesses": 1}} | changes))
    done = execute(RunRequest(scenario, "test", 1, (), tmp_path), lambda _: None)
    assert keep_run(done) == (Verdict[done.record.verdict], "")
    assert done.directory.read() == done.record
    return done.record


NO_FLUSH = evolve(small().vm, variants=(VariantName("no-flush-after-exported-zap"),))


def test_an_expected_code_that_is_found_is_a_plain_fail(tmp_path: Path) -> None:
    stored = run(tmp_path, vm=NO_FLUSH, expect=Expect(codes=("missing-flush",)))
    assert stored.verdict == "FAIL"
    assert stored.expected_rules == ("missing-flush",)
    assert stored.expected_seen == ("missing-flush",)
    assert not any("expected" in reason for reason in stored.reasons)


def test_a_code_that_was_expected_is_missed_even_if_its_rule_fired(tmp_path: Path) -> None:
    stored = run(
        tmp_path,
        limits=Limits(write_hold_s=Seconds(1e-9)),
        expect=Expect(rules=("O10",), codes=("hung-task",)),
        budget=Budget(duration_s=Seconds(PATIENCE), max_findings=Positive(1)),
    )
    assert [item.rule for item in stored.findings] == ["O10"]
    assert stored.expected_seen == ()
    assert "none of the expected rules fired: hung-task" in stored.reasons


def test_nothing_found_where_a_code_is_expected_is_inconclusive(tmp_path: Path) -> None:
    stored = run(
        tmp_path,
        expect=Expect(codes=("missing-flush",)),
        budget=Budget(duration_s=Seconds(0.2)),
        obligations={"quiescent_checks": 1},
    )
    assert stored.verdict == "INCONCLUSIVE"
    assert stored.reasons == ("none of the expected rules fired: missing-flush",)


def test_a_record_has_the_figures_of_its_run(tmp_path: Path) -> None:
    stored = run(tmp_path, obligations={"remote_flushes": 1})
    assert stored.verdict == "PASS"
    figures = {figure.name: figure for figure in stored.figures}
    assert figures["accesses to memory that was gone"].value == 0
    assert figures["remote_flushes"].value == stored.counters["remote_flushes"]


def test_accesses_to_memory_that_was_gone_are_counted_one_by_one(tmp_path: Path) -> None:
    stored = run(tmp_path, vm=NO_FLUSH, expect=Expect(codes=GONE))
    bad = sum(item.count for item in stored.findings if item.code in GONE)
    assert bad > 0
    assert [
        figure.value for figure in stored.figures if figure.number == "M9" and "gone" in figure.name
    ] == [bad]


def test_the_profile_and_the_mutants_are_told_apart_in_the_record(tmp_path: Path) -> None:
    stored = run(tmp_path, vm=evolve(NO_FLUSH, kernel="6.12"))
    assert stored.variants == ("no-flush-after-exported-zap",)
    assert (stored.scenario["vm"]["profile"], stored.scenario["vm"]["kernel"]) == (
        "hardened",
        "6.12",
    )
