"""The pages: whole, offline, of a known structure; every number on them is in the JSON; they stay
small whatever was found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from stress.observe.coverage import Coverage, SpteChangeCount, SpteOrderCount
from stress.observe.histograms import Latency
from stress.observe.resources import Sample
from stress.observe.root_lives import RootLife, RootLives
from stress.observe.series import TimeSeries
from stress.report import certificate_text, exploration_page, lock_order, run_charts, run_page
from stress.results.figures import MeasuredFigure
from stress.results.known_kills import Kill, KnownKills
from stress.results.run_record import RUN_FORMAT, RunRecord, StoredFinding
from stress.runs.study.answer import Crossover
from stress.runs.study.costs import PRICES, Costs
from stress.runs.study.page import page as page_of_study
from stress.runs.study.study_record import (
    STUDY_FORMAT,
    StoredCell,
    StoredClaims,
    StoredPrice,
    StoredSensitivity,
    StudyRecord,
)
from stress.search.explain_data import (
    ExplainedFinding,
    Explanation,
    Inevitable,
    Picture,
    StepRow,
    Switch,
)
from stress.selftest import matrix_page
from tests.records import certified, finding, record
from tests.stored import exploration, selftest
from tests.unit.stress.report.pagetext import NUMBER, Page


def life(
    address: int, made: float, *ends: float | None, emptied: tuple[float, ...] = ()
) -> RootLife:
    invalidated, zapped, freed = ends
    return RootLife(address, "as0", bool(emptied), made, invalidated, zapped, freed, emptied)


def whole(*, findings: int = 2) -> RunRecord:
    """A run with something in every part of its page."""
    made = evolve(
        record(findings=findings),
        latencies=(
            Latency(
                "fault",
                1000,
                8000,
                9000,
                20000,
                30000,
                41234,
                ((8000, 700), (9000, 250), (20000, 45), (30000, 5)),
            ),
            Latency("grace_period", 3, 71000, 72000, 72000, 72000, 72000, ((71000, 2), (72000, 1))),
            Latency("walk_steps", 5, 7, 8, 9, 9, 9, ((7, 4), (9, 1))),
        ),
        figures=(MeasuredFigure("M1", "write hold", 2345.6789, "us"),),
        resources=tuple(
            Sample(at_s / 2, 40_000_000 + at_s * 12_345, at_s * 0.45, 8) for at_s in range(5)
        ),
        series=TimeSeries(
            (0.5, 1.0, 1.5),
            {"vcpu_faults": (6931.5, 7012.0, 0.0), "io_faults": (3.5, 1.5, 2.5)},
            (10.5, 12.5, 99.5),
            {"slots_lock": (0.25, 1.75, 0.0)},
        ),
        roots=RootLives(
            (
                life(0x104000, 0.1234, None, None, None, emptied=(0.5, 1.25)),
                life(0x118000, 0.2, 0.3, 0.4, 0.5125),
            ),
            17,
            2.0,
        ),
        coverage=Coverage(
            (
                SpteChangeCount("memslot delete", 1, "leaf", "empty", False, 4321),
                SpteChangeCount("vCPU fault", 1, "empty", "leaf", True, 1234),
            ),
            (SpteOrderCount("memslot delete", "vCPU fault", 567),),
        ),
        lock_orders=(
            ("slots_lock", "write", "mmu_lock", "write"),
            ("mmu_lock", "read", "own_lock", "write"),
        ),
        judged={"O1": 31_415},
        points=("P1",),
        selftest=KnownKills(
            "2026-11-20",
            "0.1.0",
            "there",
            "threads",
            26,
            15,
            0.5,
            14,
            (Kill("x", "threads", "quick", 3, 3, 1.75),),
        ),
    )
    return certified(made)


# What can be found in the JSON.


def values(data: Any) -> Iterator[Any]:
    """Every key and every value of a document, and the lengths of its lists."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from values(value)
    elif isinstance(data, list):
        yield len(data)
        for each in data:
            yield from values(each)
    else:
        yield data


def written(value: float) -> Iterator[str]:
    """The ways in which a page may write a stored number: with fewer digits, in us for ns, in MiB
    for bytes, as an address."""
    for scaled in (value, value / 1e3, value / 2**20):
        for digits in range(5):
            yield f"{scaled:,.{digits}f}"
            yield f"{scaled:+.{digits}f}"
        yield f"{scaled:,.4g}"
    yield from (f"{value}", f"{value:.3g}", f"{value:g}")
    if isinstance(value, int):
        yield f"{value:#x}"


def stored_numbers(document: Any, *more: str) -> set[str]:
    """Every number of a document, in every way in which a page may write it."""
    found: set[str] = set()
    for value in [*values(document), *more]:
        if isinstance(value, str):
            found.update(NUMBER.findall(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.update(written(value))
    return found


FIXED = (
    "M1 to M12 of the reference, 5.3; p50 p90 p99 99.9; within 6 %; reference 2.1",
    " ".join(f"{share:g}" for share in run_charts.PERCENTILES),
    "99.99",
)
"""What the page itself says, whatever the run."""


def unexplained(page: str, document: Any, *more: str) -> set[str]:
    known = stored_numbers(document, *more)
    return {
        number
        for number in Page(page).numbers()
        if number not in known and number.strip("+-,") not in known
    }


def own_words() -> list[str]:
    """The reference's names and the texts of the catalogues, which have numbers in them."""
    texts = [
        *run_page.RULES,
        *run_page.RULES.values(),
        *run_page.JUDGED.values(),
        *run_page.COUNTERS.values(),
        *run_page.OPERATIONS.values(),
    ]
    judgements = [order.judgement for order in lock_order.orders_of(whole().lock_orders)]
    return [*texts, *judgements, *FIXED]


def test_every_number_on_the_page_of_a_run_is_in_its_json() -> None:
    made = whole()
    certificate = " ".join(text for _, text in certificate_text.parts(made.certified))
    page = run_page.render(made)
    assert len(Page(page).numbers()) > 150
    assert unexplained(page, json.loads(RUN_FORMAT.text(made)), *own_words(), certificate) == set()


def test_a_number_that_is_not_in_the_json_is_noticed() -> None:
    page = run_page.render(whole()).replace("41.2", "41.3")
    assert unexplained(page, json.loads(RUN_FORMAT.text(whole())), *own_words()) >= {"41.3"}


# Structure.


def test_the_page_of_a_run_in_order() -> None:
    page = Page(run_page.render(whole()))
    assert [heading for heading in page.headings if heading] == [
        "Certificate: what this run has done; it certifies nothing, as it is FAIL",
        "Findings (2)",
        "Evidence",
        "Latency",
        "Over time",
        "Lock order seen",
        "Lives of the last roots",
        "Coverage",
        "Measurements",
        "Scenario and environment",
    ]
    assert page.charts == {
        "latency-faults": 10,
        "latency-sections": 10,
        "throughput": 3,
        "lock-hold": 3,
        "lock-wait": 3,
        "memory": 5,
        "cpu": 5,
    }, "every chart has a table with a row for each place on its x axis"


PAGES = {
    "run": lambda: run_page.render(whole()),
    "empty run": lambda: run_page.render(
        evolve(record(), latencies=(), lock_orders=(), resources=(), obligations=())
    ),
    "exploration": lambda: exploration_page.render(
        exploration(failures=3), Path("there"), {1: STORY}
    ),
    "selftest": lambda: matrix_page.page(selftest()),
    "study": lambda: page_of_study(STUDY),
}


@pytest.mark.parametrize("name", ["run", "empty run", "exploration", "selftest", "study"])
def test_a_page_is_whole_offline_and_can_be_read_by_keyboard(name: str) -> None:
    page = Page(PAGES[name]())
    assert page.outside == []
    assert len(page.ids) == len(set(page.ids)), "an id twice"
    assert "main" in page.ids
    assert all(each.get("tabindex") == "0" and each.get("aria-label") for each in page.scrolls)


def test_however_much_was_found_the_page_stays_small() -> None:
    one = finding(1)
    found: tuple[StoredFinding, ...] = tuple(
        evolve(one, headline=f"BUG: number {number}", count=number) for number in range(100_000)
    )
    page = run_page.render(evolve(whole(), findings=found))
    assert len(page) < 1_000_000
    assert "Findings (100,000)" in page
    assert "These are the first 440 of 100,000; all are in <code>run.json</code>" in page
    assert "<li>O1: 100,000</li>" in page
    assert page.count("<details open>") == 3


# Other pages.


def test_the_page_of_an_exploration_shows_the_interleaving_of_what_is_explained() -> None:
    record = exploration(failures=2)
    page = exploration_page.render(record, Path("there"), {1: STORY})
    Page(page)
    assert "switch 1: vcpu0 could have gone on; without it: no failure" in page
    assert page.index("role.invalid = true") < page.index("rule O12 is found broken")
    assert page.count("The interleaving") == 1, "of the second failure there is no explanation"
    assert "<del>- root valid</del>" in page
    assert "<ins>+ root invalid</ins>" in page
    assert "stress replay there/schedule-1.json" in page
    assert "stress replay there/schedule-2.json" in page


def test_the_numbers_of_a_study_are_those_of_its_json() -> None:
    page = page_of_study(STUDY)
    data = json.loads(STUDY_FORMAT.text(STUDY))
    assert unexplained(page, data, *FIXED, "95 %") == set()
    assert Page(page).charts == {"axis-memory-fixed_pages": 2}, "an axis of words has no curve"
    assert "republish: 123" in page, "the crossover is marked"


def test_what_a_study_lacks_is_a_gap_in_its_curve() -> None:
    missing = evolve(STUDY, cells=STUDY.cells[:-1])
    assert '<td class="n"></td>' in page_of_study(missing)


STORY = Explanation(
    program="fault-vs-delete",
    seed=1,
    steps=12,
    turns=3,
    summary=("vcpu0 has begun.",),
    finding=ExplainedFinding("O12", "", "stale", "", "", "", "vcpu0", 3),
    others=(),
    columns=("vcpu0", "memslot-worker"),
    rows=(
        StepRow(2, "vcpu0", "read_lock(mmu_lock)", "", ""),
        StepRow(3, "memslot-worker", "role.invalid = true", "f()", "", more=2, switches=(1,)),
    ),
    left_out=4,
    pictures=(Picture(1, ("root valid",)), Picture(3, ("root invalid",))),
    switches=(Switch(1, 3, "vcpu0", "memslot-worker", "no failure"),),
    untried_switches=0,
    inevitable=Inevitable(3, 3, 1),
    likelihood=(),
    tries=3,
)


def cell(policy: str, pages: int, cost: float) -> StoredCell:
    return StoredCell(
        policy=policy,
        place={"memory.fixed_pages": pages, "vm.policy": "a"},
        runs=3,
        deletes=321,
        device_accesses=0,
        guest_accesses=0,
        findings=0,
        bad_accesses=0,
        cost_us=(cost, cost * 0.9, cost * 1.1),
        call_us=(cost / 2, cost / 4, cost),
        amounts_a_delete=dict.fromkeys(PRICES, 1.25),
        model_p99_us={},
    )


STUDY = StudyRecord(
    name="made-up",
    title="",
    planned=12,
    made=12,
    policies=("keep-valid", "republish"),
    point={"memory.fixed_pages": 64, "vm.policy": "a"},
    axes={"memory.fixed_pages": (64, 256), "vm.policy": ("a", "b")},
    costs_us=Costs(flush_us=3.5),
    prices={name: StoredPrice(**facts) for name, facts in PRICES.items()},
    cells=(
        cell("keep-valid", 64, 1300.0),
        cell("keep-valid", 256, 5200.0),
        cell("republish", 64, 2600.0),
        cell("republish", 256, 3900.0),
    ),
    idle=(),
    crossovers=(Crossover("memory.fixed_pages", "republish", 123.4, ("keep-valid", "republish")),),
    sensitivities=(StoredSensitivity("flush_us", "republish", (0.75, 2.0, 3.25), flips=True),),
    claims=StoredClaims("Over 321 deletes nothing.", "A delete costs 1.3 ms."),
)
