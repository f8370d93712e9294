"""Poison: a freed object or table says who retired it, who freed it and who touches it; a freed
table reads as zero."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from mmu.report import Report, Reporter
from mmu.runtime import Runtime, Table
from mmu.sync.poison import Obituary, RcuHead, is_poisoned, obituary_of, poison, poison_table
from tests.conftest import evidence, finish, the_report

HERE = r" \(tests/unit/mmu/sync/test_poison\.py:\d+\)"


class Page(RcuHead):
    """An object with a lifetime, laid out like the model's page-table pages."""

    __slots__ = ("gfn", "level")

    def __init__(self) -> None:
        self.obituary = None
        self.gfn = 0x100
        self.level = 2

    def covers(self, gfn: int) -> bool:
        """Whether `gfn` is the page's first one."""
        return gfn == self.gfn


def retire_page(page: Page, reporter: Reporter) -> None:
    """Take the page out of sight."""
    page.retire("page 0x100 of level 2", reporter)


def free_page(page: Page, reporter: Reporter) -> None:
    """Free the page."""
    poison(page, reporter)


def freed_page(reporter: Reporter) -> Page:
    """A page that was retired and freed."""
    page = Page()
    retire_page(page, reporter)
    free_page(page, reporter)
    return page


def freed_table(reporter: Reporter) -> Table:
    """A table whose page was freed while the first of its four words was 7."""
    table = Runtime().table(4)
    table.store(0, 7)
    page = freed_page(reporter)
    note = obituary_of(page)
    assert note is not None
    poison_table(table, note)
    return table


# Objects


def test_a_live_object_makes_no_report(reporter: Reporter) -> None:
    page = Page()
    page.retire("page", reporter)
    page.level = 3
    assert (page.gfn, page.level, page.covers(0x100)) == (0x100, 3, True)
    assert not is_poisoned(page)
    assert reporter.reports == ()


def test_a_touch_of_a_freed_object_is_a_use_after_free(reporter: Reporter) -> None:
    page = freed_page(reporter)
    assert page.gfn == 0x100
    report = the_report(reporter, "use-after-free")
    assert report.rule == "O2"
    assert re.fullmatch(
        r"BUG: use-after-free in test_a_touch_of_a_freed_object_is_a_use_after_free" + HERE,
        report.headline,
    )
    assert report.sentence.startswith(
        "page 0x100 of level 2 was freed, then attribute gfn touched by "
    )


def test_a_use_after_free_names_who_retired_who_freed_and_who_touched(
    runtime: Runtime, reporter: Reporter
) -> None:
    page = Page()

    def touch_page() -> None:
        assert page.level == 2

    def in_thread(name: str, body: Callable[[], None]) -> str:
        task = runtime.spawn(name, body)
        finish(runtime, task)
        return str(task)

    retirer = in_thread("zapper", lambda: retire_page(page, reporter))
    freer = in_thread("rcu_gp", lambda: free_page(page, reporter))
    toucher = in_thread("vcpu", touch_page)
    report = the_report(reporter, "use-after-free")
    assert report.task == toucher
    assert re.search("touch_page" + HERE, evidence(report, f"touched by {toucher}"))
    assert re.search("free_page" + HERE, evidence(report, f"freed by {freer}"))
    assert re.search("retire_page" + HERE, evidence(report, f"retired by {retirer}"))


def test_an_object_freed_without_being_retired_says_so(reporter: Reporter) -> None:
    page = Page()
    free_page(page, reporter)
    assert page.level == 2
    report = the_report(reporter, "use-after-free")
    assert report.sentence.startswith("Page was freed")
    assert evidence(report, "retired by (freed directly)")


def test_a_method_call_on_a_freed_object_is_a_touch(reporter: Reporter) -> None:
    freed_page(reporter).covers(0x100)
    assert "attribute covers touched" in reporter.reports[0].sentence


def test_a_write_to_a_freed_object_is_a_touch(reporter: Reporter) -> None:
    page = freed_page(reporter)
    page.level = 1
    assert "level" in the_report(reporter, "use-after-free").sentence


def test_a_double_free_is_a_touch(reporter: Reporter) -> None:
    free_page(freed_page(reporter), reporter)
    assert re.search(
        "free_page" + HERE, evidence(the_report(reporter, "use-after-free"), "touched by")
    )


def test_to_ask_whether_an_object_is_freed_is_no_touch(reporter: Reporter) -> None:
    page = freed_page(reporter)
    note = obituary_of(page)
    assert is_poisoned(page)
    assert isinstance(page, Page)
    assert note is not None
    assert note.what == "page 0x100 of level 2"
    assert reporter.reports == ()


def test_freeing_one_object_leaves_others_of_its_class_alive(reporter: Reporter) -> None:
    alive, dead = Page(), freed_page(reporter)
    assert alive.level == 2
    assert not is_poisoned(alive)
    assert is_poisoned(dead)
    assert reporter.reports == ()


def test_freed_objects_of_one_class_share_one_poisoned_class(reporter: Reporter) -> None:
    assert type(freed_page(reporter)) is type(freed_page(reporter))


def test_touches_by_one_function_are_counted_once_and_by_two_are_two_reports(
    reporter: Reporter,
) -> None:
    page = freed_page(reporter)

    def walk() -> None:
        for _ in range(3):
            assert page.level == 2

    def map_leaf() -> None:
        assert page.gfn == 0x100

    walk()
    map_leaf()
    assert [(report.subject.rsplit(".", 1)[-1], report.count) for report in reporter.reports] == [
        ("walk", 3),
        ("map_leaf", 1),
    ]


# Tables

TOUCHES: dict[str, tuple[Callable[[Table], Any], str]] = {
    "load": (lambda table: table[0], "entry 0 read"),
    "store": (lambda table: table.store(0, 5), "entry 0 written"),
    "xchg": (lambda table: table.xchg(0, 5), "entry 0 written"),
    "cmpxchg": (lambda table: table.cmpxchg(0, 7, 5), "entry 0 written"),
    "iterate": (lambda table: [word for word in table if word], "read"),
}


@pytest.mark.parametrize("how", TOUCHES)
def test_every_touch_of_a_freed_table_is_a_use_after_free(reporter: Reporter, how: str) -> None:
    touch, described = TOUCHES[how]
    touch(freed_table(reporter))
    report: Report = the_report(reporter, "use-after-free")
    assert report.sentence.startswith("page 0x100 of level 2 was freed")
    assert described in report.sentence
    assert re.search("free_page" + HERE, evidence(report, "freed by"))
    assert re.search("retire_page" + HERE, evidence(report, "retired by"))


def test_a_freed_table_reads_as_zero(reporter: Reporter) -> None:
    table = freed_table(reporter)
    assert [table[0], table[3]] == [0, 0]
    assert table.xchg(0, 5) == 0


def test_an_iteration_over_a_freed_table_reads_zeros(reporter: Reporter) -> None:
    assert [word for word in freed_table(reporter) if word] == []


@pytest.mark.parametrize("expected", [0, 7])
def test_a_cmpxchg_on_a_freed_table_never_succeeds(reporter: Reporter, expected: int) -> None:
    assert freed_table(reporter).cmpxchg(0, expected, 5) != expected


def test_a_store_to_a_freed_table_stores_nothing(reporter: Reporter) -> None:
    table = freed_table(reporter)
    table.store(0, 5)
    table.xchg(0, 5)
    table.cmpxchg(0, 7, 5)
    assert list.__getitem__(table, 0) == 7


def test_a_live_table_is_not_touched_by_the_death_of_another(
    runtime: Runtime, reporter: Reporter
) -> None:
    table = runtime.table(4)
    freed_table(reporter)
    table.store(0, 9)
    assert table[0] == 9
    assert reporter.reports == ()


def test_a_note_may_be_written_by_hand(runtime: Runtime, reporter: Reporter) -> None:
    table = runtime.table(4)
    poison_table(table, Obituary("slot 3", reporter))
    assert table[1] == 0
    assert the_report(reporter, "use-after-free").sentence.startswith(
        "slot 3 was freed, then entry 1 read by "
    )
