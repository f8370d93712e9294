"""The charts of a run: latencies by percentile, rates, lock holds and waits over time, resources,
roots' lives, coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import frozen

from stress.observe.coverage import STATES, Coverage
from stress.observe.histograms import NUMBERS, Latency
from stress.observe.root_lives import RootLife, RootLives
from stress.report.charts import LEFT, RIGHT, WIDTH, Chart, Scale, Tick, line_chart
from stress.results.run_record import RunRecord

PERCENTILES: Final = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0)
FAMILIES: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("faults", "Faults", ("fault", "root_load", "io_fault", "io_fault_slots_lock")),
    (
        "memslot",
        "Memslot calls and their parts",
        (
            "memslot",
            "memslot_srcu",
            "memslot_flush_shadow",
            "memslot_commit",
            "zap_invalidate",
            "zap_exported",
            "zap_invalidated_roots",
        ),
    ),
    (
        "flush",
        "Flushes, importers, notifiers",
        (
            "flush",
            "importer_notify",
            "importer_switch",
            "device_window",
            "range_start",
            "nx_toggle",
        ),
    ),
    (
        "sections",
        "Sections and grace periods",
        ("mmu_lock_write_hold", "walk_section", "grace_period"),
    ),
)
"""Which operations share a chart."""
LIVES: Final = 32
"""Roots drawn, the newest."""


def percentile(latency: Latency, share: float) -> int:
    """The value in ns that `share` percent of all do not exceed, from the stored buckets."""
    if share >= 100:
        return latency.max
    wanted, seen = share / 100 * latency.count, 0
    for value, count in latency.buckets:
        seen += count
        if seen >= wanted:
            return min(value, latency.max)
    return latency.max


def _shown(latency: Latency, share: float) -> float | None:
    """In us; nothing beyond what so few samples can say."""
    beyond = share < 100 and latency.count * (100 - share) / 100 < 1
    return None if beyond else percentile(latency, share) / 1e3


def latency_charts(record: RunRecord) -> Iterator[Chart]:
    """A chart a family, of the operations that happened. The x axis is stretched towards the
    tail."""
    timed = {
        latency.operation: latency
        for latency in record.latencies
        if latency.operation not in NUMBERS
    }
    scale = Scale(0, len(PERCENTILES) - 1, LEFT, WIDTH - RIGHT)
    ticks = tuple(Tick(scale.at(place), _percent(share)) for place, share in enumerate(PERCENTILES))
    for key, title, names in FAMILIES:
        present = [timed[name] for name in names if name in timed]
        if present:
            yield line_chart(
                f"latency-{key}",
                title,
                "By percentile, in microseconds, on a logarithmic axis: flat lines are steady, a "
                "rise at the right end is the tail.",
                ("percentile", "us"),
                range(len(PERCENTILES)),
                [
                    (each.operation, [_shown(each, share) for share in PERCENTILES])
                    for each in present
                ],
                x_scale=scale,
                x_ticks=ticks,
                x_label=lambda place: _percent(PERCENTILES[round(place)]),
                label=lambda value: f"{value:,.1f}",
                log=True,
            )


def _percent(share: float) -> str:
    return {0.0: "min", 100.0: "max"}.get(share, f"{share:g}")


def time_charts(record: RunRecord) -> Iterator[Chart]:
    """What happened over time."""
    series = record.series
    if len(series.at_s) < 2:
        return
    seconds = f"{len(series.at_s)} windows"
    yield line_chart(
        "throughput",
        "Throughput over time",
        f"Events a second, on a logarithmic axis, in {seconds}; a dip that all lines share is a "
        "standstill or a busy machine.",
        ("seconds", "events a second"),
        series.at_s,
        [(name, [value or None for value in values]) for name, values in series.rates.items()],
        x_label=_seconds,
        label=lambda value: f"{value:,.1f}",
        log=True,
    )
    yield line_chart(
        "lock-hold",
        "mmu_lock held for write",
        "Share of the time, in percent, that mmu_lock was held for write: while it is, no vCPU can "
        "fault.",
        ("seconds", "% of the time"),
        series.at_s,
        [("held for write", series.write_held)],
        x_label=_seconds,
        label=lambda value: f"{value:.1f}",
    )
    if series.waiting:
        yield line_chart(
            "lock-wait",
            "Threads that wait, by what for",
            "Mean number of threads that waited, sampled about twenty times a second by a thread "
            "that takes no lock.",
            ("seconds", "threads"),
            series.at_s,
            list(_waits(series.waiting)),
            x_label=_seconds,
            label=lambda value: f"{value:.2f}",
        )


def _waits(waiting: dict[str, tuple[float, ...]]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """At most eight lines: what was waited for longest."""
    ranked = sorted(waiting, key=lambda name: -sum(waiting[name]))[:8]
    yield from ((name, waiting[name]) for name in waiting if name in ranked)


def resource_charts(record: RunRecord) -> Iterator[Chart]:
    """Memory and CPU over time."""
    samples = record.resources
    if len(samples) < 2:
        return
    at = [sample.at_s for sample in samples]
    yield line_chart(
        "memory",
        "Resident memory",
        "In MiB, of the process as a whole.",
        ("seconds", "MiB"),
        at,
        [("resident", [sample.rss / 2**20 for sample in samples])],
        x_label=_seconds,
        label=lambda value: f"{value:,.1f}",
    )
    yield line_chart(
        "cpu",
        "CPU time used",
        "In seconds, summed up; as steep as one when one CPU is busy.",
        ("seconds", "CPU s"),
        at,
        [("CPU", [sample.cpu_s for sample in samples])],
        x_label=_seconds,
        label=lambda value: f"{value:.1f}",
    )


def _seconds(value: float) -> str:
    return f"{value:.2f}"


# Roots.


@frozen
class Segment:
    """A stretch of a root's life: `state` is valid, invalid or zapped."""

    x: float
    width: float
    state: str


@frozen
class LifeLine:
    """A root in the drawing: y, its stretches, where its leaves were zapped while it stayed valid,
    where it was freed."""

    y: float
    label: str
    segments: tuple[Segment, ...]
    emptied: tuple[float, ...]
    freed: float | None
    life: RootLife


@frozen
class LifeLines:
    """The newest roots of a run and those that were still alive; `left_out` older ones are not
    drawn."""

    lines: tuple[LifeLine, ...]
    ticks: tuple[Tick, ...]
    height: float
    left_out: int


_LIFE_LEFT: Final = 164
_LIFE_WIDTH: Final = 940
_ROW: Final = 16


def life_lines(roots: RootLives) -> LifeLines:
    """The drawing: from the birth of the oldest root that is shown, but for those that are much
    older, to the end."""
    alive = [life for life in roots.lives if life.freed_s is None]
    recent = [life for life in roots.lives if life.freed_s is not None][
        -max(0, LIVES - len(alive)) :
    ]
    shown = sorted([*alive[-LIVES:], *recent], key=lambda life: life.allocated_s)
    start = min(
        (life.allocated_s for life in recent),
        default=min((life.allocated_s for life in shown), default=0.0),
    )
    end = max([roots.until_s, *(life.freed_s or 0.0 for life in shown)])
    scale = Scale(start, end if end > start else start + 1, _LIFE_LEFT, _LIFE_WIDTH - 16)
    lines = tuple(_life_line(life, number, scale, end) for number, life in enumerate(shown))
    return LifeLines(
        lines,
        scale.ticks(),
        _ROW * (len(shown) + 1.5) + 16,
        roots.left_out + len(roots.lives) - len(shown),
    )


def _life_line(life: RootLife, number: int, scale: Scale, end: float) -> LifeLine:
    last = end if life.freed_s is None else life.freed_s
    begins = (
        (life.allocated_s, "valid"),
        (life.invalidated_s, "invalid"),
        (life.zapped_s, "zapped"),
        (last, ""),
    )
    known = [(at_s, state) for at_s, state in begins if at_s is not None]
    segments = [
        Segment(scale.at(begin), round(max(1.5, scale.at(until) - scale.at(begin)), 1), state)
        for (begin, state), (until, _) in itertools.pairwise(known)
    ]
    marks = tuple(scale.at(at_s) for at_s in life.emptied_s if at_s >= scale.low)
    freed = scale.at(life.freed_s) if life.freed_s is not None else None
    label = f"{life.address:#x} {life.role}{' exp.' if life.exported else ''}"
    return LifeLine(_ROW * (number + 1), label, tuple(segments), marks, freed, life)


# Coverage.


@frozen
class Matrix:
    """Rows by columns of counts, 0 where nothing was seen; `gaps` names what was never seen though
    it might have been."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    gaps: tuple[str, ...]


def state_matrix(coverage: Coverage) -> Matrix:
    """Change of an SPTE by operation and mode of mmu_lock. A gap is a state that others changed and
    this operation never did."""
    operations = sorted({cell.operation for cell in coverage.cells})
    columns = sorted({(cell.operation, cell.shared) for cell in coverage.cells})
    keys = sorted(
        {(cell.old, cell.new, cell.level) for cell in coverage.cells}, key=_order_of_change
    )
    counts = {
        (cell.operation, cell.shared, cell.old, cell.new, cell.level): cell.count
        for cell in coverage.cells
    }
    rows = tuple(
        (
            f"{key[0]} to {key[1]}, level {key[2]}",
            tuple(counts.get((*column, *key), 0) for column in columns),
        )
        for key in keys
    )
    met = {
        operation: {cell.old for cell in coverage.cells if cell.operation == operation}
        for operation in operations
    }
    seen = [state for state in STATES if any(state in states for states in met.values())]
    gaps = tuple(
        f"{operation}: {', '.join(missing)}"
        for operation in operations
        if (missing := [state for state in seen if state not in met[operation]])
    )
    return Matrix(
        tuple(f"{operation} ({'read' if shared else 'write'})" for operation, shared in columns),
        rows,
        gaps,
    )


def _order_of_change(key: tuple[str, str, int]) -> tuple[int, int, int]:
    old, new, level = key
    return level, STATES.index(old), STATES.index(new)


def order_matrix(coverage: Coverage) -> Matrix:
    """Which operation's change of a page came after which of another thread's."""
    names = sorted({name for order in coverage.orders for name in (order.first, order.then)})
    counts = {(order.first, order.then): order.count for order in coverage.orders}
    rows = tuple((first, tuple(counts.get((first, then), 0) for then in names)) for first in names)
    gaps = tuple(
        f"{then} after {first}"
        for first in names
        for then in names
        if (then, first) in counts and (first, then) not in counts
    )
    return Matrix(tuple(names), rows, gaps)


def shade(count: int, highest: int) -> int:
    """How dark a cell of a matrix is, from 0 to 4, by the logarithm of its count."""
    if not count or highest <= 1:
        return 1 if count else 0
    return 1 + min(3, math.floor(4 * math.log(count) / math.log(highest + 1)))


def highest(rows: Sequence[tuple[str, Sequence[int]]]) -> int:
    """The largest count of a matrix."""
    return max((count for _, counts in rows for count in counts), default=0)
