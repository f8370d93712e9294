"""What a run did over time: rates, how long mmu_lock was held for write, and who waited for what.

Only the main thread samples, so the model's threads pay nothing for it. A wait is not timed but
sampled, as a profiler does it: how many threads wait, by what for, at the moments when the main
thread looks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from attrs import field, frozen

from mmu.task import Task
from stress.scenario.counters import MEMSLOT_CALLS

KEPT = 48
"""Windows kept; when there are more, two become one."""
WAITS = 8
"""Waits told apart; the rarer ones are summed up as `OTHER`."""
OTHER = "other waits"
IDLE = frozenset({"a page response", "an IO page fault", "rcu callbacks"})
"""Waits of those who have nothing to do."""

RATES: dict[str, tuple[str, ...]] = {
    "vcpu_accesses": ("vcpu_accesses",),
    "vcpu_faults": ("vcpu_faults",),
    "device_accesses": ("device_accesses",),
    "io_faults": ("io_faults",),
    "memslot calls": MEMSLOT_CALLS,
    "exported_zaps": ("exported_zaps",),
    "remote_flushes": ("remote_flushes",),
    "rcu_grace_periods": ("rcu_grace_periods",),
}
"""What is counted a second: a counter, or the sum of several."""


@frozen
class TimeSeries:
    """Columns of equal length. `at_s` are the ends of the windows, in seconds into the run; `rates`
    are events a second; `write_held` is the share of the window, in percent, for which mmu_lock was
    held for write; `waiting` the mean number of threads that waited, by what they waited for."""

    at_s: tuple[float, ...] = ()
    rates: dict[str, tuple[float, ...]] = field(factory=dict)
    write_held: tuple[float, ...] = ()
    waiting: dict[str, tuple[float, ...]] = field(factory=dict)


@frozen
class _Mark:
    """Everything that has happened until `at_s`."""

    at_s: float
    counts: tuple[int, ...]
    held_ns: int
    looks: int
    waits: Mapping[str, int]


class Series:
    """Takes marks at even distances, which double whenever `KEPT` windows are there."""

    def __init__(self, held_ns: Callable[[], int], every_s: float = 0.1) -> None:
        """`held_ns` tells for how long mmu_lock has been held for write so far."""
        self._held_ns = held_ns
        self._every_s = every_s
        self._waits: Counter[str] = Counter()
        self._looks = 0
        self._marks: list[_Mark] = []

    def look(self, at_s: float, totals: Mapping[str, int], tasks: Iterable[Task]) -> None:
        """Called often: notes who waits now, and now and then how far everything has come."""
        self._looks += 1
        self._waits.update(
            what
            for task in tasks
            if (what := task.waiting_for.partition(",")[0]) and what not in IDLE
        )
        if not self._marks or at_s >= self._marks[-1].at_s + self._every_s:
            self._mark(at_s, totals)

    def _mark(self, at_s: float, totals: Mapping[str, int]) -> None:
        counts = tuple(sum(totals.get(name, 0) for name in names) for names in RATES.values())
        self._marks.append(_Mark(at_s, counts, self._held_ns(), self._looks, dict(self._waits)))
        if len(self._marks) > KEPT + 1:
            del self._marks[1:-1:2]
            self._every_s *= 2

    def series(self) -> TimeSeries:
        """The windows so far."""
        pairs = [
            (before, after)
            for before, after in zip(self._marks, self._marks[1:], strict=False)
            if after.at_s > before.at_s
        ]
        if not pairs:
            return TimeSeries()
        shown = [name for name, _ in self._waits.most_common(WAITS)]
        waiting = {
            name: tuple(_waiting(before, after, (name,)) for before, after in pairs)
            for name in shown
        }
        rest = tuple(name for name in self._waits if name not in waiting)
        if rest:
            waiting[OTHER] = tuple(_waiting(before, after, rest) for before, after in pairs)
        return TimeSeries(
            at_s=tuple(round(after.at_s, 2) for _, after in pairs),
            rates={
                name: tuple(_rate(before, after, number) for before, after in pairs)
                for number, name in enumerate(RATES)
                if pairs[-1][1].counts[number]
            },
            write_held=tuple(_share(before, after) for before, after in pairs),
            waiting=waiting,
        )


def _rate(before: _Mark, after: _Mark, number: int) -> float:
    return round((after.counts[number] - before.counts[number]) / (after.at_s - before.at_s), 1)


def _share(before: _Mark, after: _Mark) -> float:
    """In percent; a hold that ends in a window counts there as a whole, so one that is longer than
    a window is cut to it."""
    return round(min(100.0, (after.held_ns - before.held_ns) / (after.at_s - before.at_s) / 1e7), 1)


def _waiting(before: _Mark, after: _Mark, names: Iterable[str]) -> float:
    seen = sum(after.waits.get(name, 0) - before.waits.get(name, 0) for name in names)
    return round(seen / max(1, after.looks - before.looks), 2)
