"""Reference counts: the last put is told once, and a reference that nobody had is a report with
both stacks."""

from __future__ import annotations

import re
import threading

from mmu.report import Reporter
from mmu.sync import Refcount, Sync
from tests.conftest import codes, evidence, finish, the_report, together
from tests.patience import PATIENCE


def dead_refcount(sync: Sync) -> Refcount:
    """A count that has reached zero."""
    count = sync.refcount("root")
    assert count.put()
    return count


# Ordinary life


def test_only_the_last_put_says_so(sync: Sync, reporter: Reporter) -> None:
    count = sync.refcount("root")
    count.get()
    count.get()
    assert [count.put(), count.put(), count.put()] == [False, False, True]
    assert count.read() == 0
    assert reporter.reports == ()


def test_a_count_may_start_above_one(sync: Sync) -> None:
    count = sync.refcount("root", 2)
    assert [count.put(), count.put()] == [False, True]


def test_inc_not_zero_takes_a_reference_on_a_live_object(sync: Sync, reporter: Reporter) -> None:
    count = sync.refcount("root")
    assert count.inc_not_zero()
    assert count.read() == 2
    assert reporter.reports == ()


def test_inc_not_zero_refuses_a_dying_object_without_a_report(
    sync: Sync, reporter: Reporter
) -> None:
    count = dead_refcount(sync)
    assert not count.inc_not_zero()
    assert count.read() == 0
    assert reporter.reports == ()


def test_of_many_threads_exactly_one_sees_the_last_put(sync: Sync, reporter: Reporter) -> None:
    count, start, last = sync.refcount("root", 4), threading.Barrier(4), []

    def come_and_go() -> None:
        start.wait(PATIENCE)
        for _ in range(200):
            assert count.inc_not_zero()
            assert not count.put()
        last.append(count.put())

    together(sync.runtime, *[come_and_go] * 4)
    assert sorted(last) == [False, False, False, True]
    assert reporter.reports == ()


# Misuse


def test_a_double_put_is_an_underflow_and_never_the_last_put(
    sync: Sync, reporter: Reporter
) -> None:
    count = dead_refcount(sync)
    assert not count.put()
    report = the_report(reporter, "refcount-underflow")
    assert report.rule == "O4"
    assert report.headline == "WARNING: refcount_t: underflow; use-after-free (root)"
    assert count.read() == 0


def test_a_double_put_shows_who_put_twice_and_who_put_last(sync: Sync, reporter: Reporter) -> None:
    count = sync.refcount("root")

    def drop_the_last() -> None:
        assert count.put()

    def drop_once_more() -> None:
        assert not count.put()

    first = sync.runtime.spawn("first", drop_the_last)
    finish(sync.runtime, first)
    second = sync.runtime.spawn("second", drop_once_more)
    finish(sync.runtime, second)
    report = the_report(reporter, "refcount-underflow")
    assert report.task == str(second)
    here = r" \(tests/unit/mmu/sync/test_refcount\.py:\d+\)"
    assert re.search(r"\bdrop_once_more" + here, evidence(report, "call trace"))
    assert re.search(r"\bdrop_the_last" + here, evidence(report, f"reached zero in {first}"))


def test_a_get_on_zero_is_a_report(sync: Sync, reporter: Reporter) -> None:
    dead_refcount(sync).get()
    report = the_report(reporter, "refcount-get-on-zero")
    assert report.headline == "WARNING: refcount_t: addition on 0; use-after-free (root)"
    assert "dead_refcount" in evidence(report, "reached zero in")


def test_a_reference_taken_on_a_dead_object_cannot_free_it_again(
    sync: Sync, reporter: Reporter
) -> None:
    count = dead_refcount(sync)
    count.get()
    assert not count.put()
    assert codes(reporter)[0] == "refcount-get-on-zero"


def test_misuse_is_told_apart_by_the_function_that_did_it(sync: Sync, reporter: Reporter) -> None:
    count = dead_refcount(sync)

    def put_in_error_path() -> None:
        count.put()

    def put_in_release() -> None:
        count.put()

    put_in_error_path()
    put_in_release()
    put_in_release()
    assert [(report.subject.rsplit(".", 1)[-1], report.count) for report in reporter.reports] == [
        ("put_in_error_path", 1),
        ("put_in_release", 2),
    ]
