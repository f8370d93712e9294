"""Waits of programs under `explore`: predicates of any truth value, and deadlocks while tasks hold
things that their unwinding releases."""

from __future__ import annotations

from typing import Any

import pytest

from stress.testing import ScheduleFailed, Settings, explore

EVERYTHING = Settings(exhaustive=True)


@pytest.mark.parametrize("nothing", [0, None, "", ()])
def test_a_predicate_may_return_anything_that_is_true_or_false(nothing: object) -> None:
    def program(sync: Any) -> Any:
        first, second = sync.cell("first", nothing), sync.cell("second", nothing)
        seen = sync.cell("seen", False)

        def wait() -> None:
            sync.wait_until(lambda: first.value and second.value, "both")
            seen.value = True

        def write() -> None:
            first.value = 7
            second.value = 7

        sync.spawn(wait)
        sync.spawn(write)
        return lambda: seen.value

    assert explore(program, EVERYTHING).exhausted


def test_a_deadlock_is_no_error_of_the_unwinding_that_follows_it() -> None:
    def program(sync: Any) -> None:
        lock, go = sync.lock("m"), sync.cell("go", False)

        def waiter() -> None:
            with lock:
                lock.release()
                sync.wait_until(lambda: go.value, "go")
                lock.acquire()

        sync.spawn(waiter)

    with pytest.raises(ScheduleFailed) as failed:
        explore(program, EVERYTHING)
    assert str(failed.value).startswith("BUG: deadlock: waiter1 can never go on")
    assert "RuntimeError" not in str(failed.value)


def test_an_error_before_the_end_is_still_one() -> None:
    def program(sync: Any) -> None:
        lock = sync.lock("m")
        sync.spawn(lock.release)

    with pytest.raises(ScheduleFailed, match="release unlocked lock"):
        explore(program, EVERYTHING)
