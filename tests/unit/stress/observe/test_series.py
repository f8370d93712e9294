"""What a run did over time: rates and shares by window, waits by sampling; bounded, however long
the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from mmu.task import Task
from stress.observe.series import IDLE, KEPT, OTHER, RATES, WAITS, Series, TimeSeries
from stress.scenario.counters import COUNTERS


def waiting(*what: str) -> list[Task]:
    return [cast(Task, cast(Any, SimpleNamespace(waiting_for=each))) for each in what]


def test_every_rate_is_of_counters_that_exist() -> None:
    assert {name for names in RATES.values() for name in names} <= set(COUNTERS)


def test_rates_and_shares_are_those_of_each_window() -> None:
    held = [0]
    series = Series(lambda: held[0], every_s=1.0)
    for second, faults in enumerate((0, 100, 150)):
        series.look(
            float(second),
            {"vcpu_faults": faults, "memslot_creates": second, "memslot_deletes": second},
            [],
        )
        held[0] += 250_000_000
    found = series.series()
    assert found.at_s == (1.0, 2.0)
    assert found.rates == {"vcpu_faults": (100.0, 50.0), "memslot calls": (2.0, 2.0)}
    assert found.write_held == (25.0, 25.0)


def test_before_a_window_is_over_there_is_nothing() -> None:
    series = Series(lambda: 0)
    assert series.series() == TimeSeries()
    series.look(0.0, {}, [])
    assert series.series() == TimeSeries()


def test_a_wait_is_the_mean_number_of_threads_that_were_seen_waiting() -> None:
    series = Series(lambda: 0, every_s=1.0)
    series.look(0.0, {}, [])
    series.look(0.25, {}, waiting("slots_lock", "slots_lock", ""))
    series.look(0.50, {}, waiting("slots_lock", next(iter(IDLE))))
    series.look(0.75, {}, waiting("kvm->srcu grace period, reader vcpu0/3"))
    series.look(1.0, {}, [])
    assert series.series().waiting == {"slots_lock": (0.75,), "kvm->srcu grace period": (0.25,)}


def test_rare_waits_are_summed_up() -> None:
    series = Series(lambda: 0, every_s=1.0)
    series.look(0.0, {}, [])
    for number in range(WAITS + 2):
        series.look(0.5, {}, waiting(*(f"lock {number}" for _ in range(WAITS + 2 - number))))
    series.look(1.0, {}, [])
    found = series.series().waiting
    assert set(found) == {*(f"lock {number}" for number in range(WAITS)), OTHER}


def test_a_long_run_has_wider_windows_and_no_more_of_them() -> None:
    series = Series(lambda: 0, every_s=0.1)
    for tenth in range(20_000):
        series.look(tenth / 10, {"vcpu_faults": 7 * tenth}, [])
    found = series.series()
    assert KEPT // 2 <= len(found.at_s) <= KEPT + 1
    assert all(abs(rate - 70.0) < 0.2 for rate in found.rates["vcpu_faults"])
