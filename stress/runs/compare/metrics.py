"""The figures by which runs are compared, each with what a change of it means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from attrs import frozen

from stress.observe.histograms import NUMBERS, OPERATIONS, Latency
from stress.results.run_record import RunRecord
from stress.scenario.counters import MEMSLOT_CALLS

LEAST_COUNT = 20
"""A percentile of fewer operations is no figure."""
Kind = Literal["rate", "latency", "cost", "amount", "share"]


@frozen
class Metric:
    """One figure of a run. `better` is which way is good; `does` completes "A ... 1.3x faster than
    B": a verb phrase for rates and latencies, the thing that there is more or less of for the
    others. `number` is the reference's M-number, if it has one."""

    name: str
    title: str
    unit: str
    kind: Kind
    better: Literal["lower", "higher"]
    does: str
    number: str = ""


_VERBS = {
    "fault": "handles a vCPU fault",
    "memslot": "completes a memslot call",
    "memslot_srcu": "waits for SRCU readers in a memslot call",
    "memslot_flush_shadow": "unmaps a memslot",
    "zap_invalidate": "makes roots invalid",
    "zap_exported": "zaps the exported root's leaves",
    "zap_invalidated_roots": "zaps invalidated roots",
    "memslot_commit": "commits a memslot",
    "device_window": "closes a deleted slot to devices",
    "flush": "completes a remote flush",
    "root_load": "loads a root",
    "io_fault_slots_lock": "releases slots_lock in an IO page fault",
    "io_fault": "answers an IO page fault",
    "importer_notify": "tells an exported root's importers",
    "importer_switch": "switches an importer to a republished root",
    "range_start": "invalidates a range for an MMU notifier",
    "nx_toggle": "toggles the NX mitigation",
    "walk_section": "leaves a walk's RCU read section",
    "grace_period": "completes a grace period",
    "mmu_lock_write_hold": "releases mmu_lock held for write",
}
_NUMBERS = {
    "fault": "M4",
    "memslot": "M3",
    "memslot_srcu": "M3",
    "memslot_flush_shadow": "M3",
    "zap_invalidate": "M3",
    "zap_exported": "M3",
    "zap_invalidated_roots": "M3",
    "memslot_commit": "M3",
    "device_window": "M9",
    "root_load": "M4",
    "io_fault": "M6",
    "io_fault_slots_lock": "M6",
    "importer_notify": "M7",
    "importer_switch": "M7",
    "range_start": "M10",
    "walk_section": "M2",
    "walk_steps": "M1",
    "grace_period": "M12",
    "mmu_lock_write_hold": "M1",
}
_RATES = {
    "guest_rate": ("vcpu_accesses", "lets guests access memory", ("vcpu_accesses",)),
    "device_rate": ("device_accesses", "lets devices access memory", ("device_accesses",)),
    "memslot_rate": (
        "memslot calls",
        "changes memslots",
        MEMSLOT_CALLS,
    ),
}
_PER_DELETE = {
    "refaults": ("vcpu_faults_fixed", "M5"),
    "io_faults": ("io_faults", "M5"),
    "root_loads": ("vcpu_root_loads", "M4"),
    "flushes": ("remote_flushes", "M7"),
    "notifications": ("importer_notifications", "M7"),
}

Value = tuple[Metric, float]


def metrics_of(record: RunRecord) -> dict[str, Value]:
    """Every figure that the run has data for, by name."""
    return {metric.name: (metric, value) for source in _SOURCES for metric, value in source(record)}


def _rates(record: RunRecord) -> Iterator[Value]:
    for name, (title, does, counters) in _RATES.items():
        amount = sum(record.counters.get(counter, 0) for counter in counters)
        if amount and record.run_s:
            yield (
                Metric(name, f"{title} a second", "/s", "rate", "higher", does),
                amount / record.run_s,
            )


def _latencies(record: RunRecord) -> Iterator[Value]:
    for latency in record.latencies:
        operation = latency.operation
        if latency.count < LEAST_COUNT or operation not in OPERATIONS:
            continue
        number = _NUMBERS.get(operation, "")
        for percentile, value in (("p50", _median(latency)), ("p99", latency.p99)):
            title = f"{operation} {percentile}"
            if operation in NUMBERS:
                yield (
                    Metric(
                        f"{operation}.{percentile}",
                        title,
                        "",
                        "amount",
                        "lower",
                        "SPTEs between two yields of a zap",
                        number,
                    ),
                    value,
                )
            else:
                does = _VERBS[operation] + (
                    "" if percentile == "p50" else " at the 99th percentile"
                )
                yield (
                    Metric(
                        f"{operation}.{percentile}", title, "us", "latency", "lower", does, number
                    ),
                    value / 1e3,
                )


def _median(latency: Latency) -> float:
    """The median with more resolution than a bucket has: interpolated among the values of its
    bucket."""
    half, seen, before = latency.count / 2, 0, 0
    for middle, count in latency.buckets:
        if seen + count >= half:
            width = max(1, (middle - before) if before else 1)
            return middle - width / 2 + width * (half - seen) / count
        seen += count
        before = middle
    return latency.p50


def _locks(record: RunRecord) -> Iterator[Value]:
    held = next(
        (latency for latency in record.latencies if latency.operation == "mmu_lock_write_hold"),
        None,
    )
    if held is not None and record.run_s:
        total = sum(middle * count for middle, count in held.buckets) / 1e9
        metric = Metric(
            "write_held",
            "mmu_lock held for write, share of the time",
            "",
            "share",
            "lower",
            "time under mmu_lock for write",
            "M1",
        )
        yield metric, total / record.run_s


def _per_delete(record: RunRecord) -> Iterator[Value]:
    deletes = record.counters.get("memslot_deletes", 0) + record.counters.get("memslot_moves", 0)
    if not deletes:
        return
    for name, (counter, number) in _PER_DELETE.items():
        metric = Metric(
            f"{name}_per_delete",
            f"{counter} a delete or move",
            "",
            "amount",
            "lower",
            f"{counter} a delete or move",
            number,
        )
        yield metric, record.counters.get(counter, 0) / deletes


def _memory(record: RunRecord) -> Iterator[Value]:
    peaks: Mapping[str, float] = {
        figure.name: figure.value for figure in record.figures if figure.number == "M8"
    }
    for key, title in (
        ("table_pages at most", "page-table pages at most"),
        ("roots at most", "roots at most"),
    ):
        if key in peaks:
            yield (
                Metric(
                    key.split()[0],
                    title,
                    "",
                    "amount",
                    "lower",
                    title.removesuffix(" at most"),
                    "M8",
                ),
                peaks[key],
            )
    if record.resources:
        peak = max(sample.rss for sample in record.resources)
        yield (
            Metric("rss", "resident memory at most", "MiB", "amount", "lower", "resident memory"),
            peak / 2**20,
        )


def _findings(record: RunRecord) -> Iterator[Value]:
    yield (
        Metric("findings", "findings", "", "amount", "lower", "findings"),
        float(len(record.findings)),
    )


_SOURCES: tuple[Callable[[RunRecord], Iterator[Value]], ...] = (
    _rates,
    _latencies,
    _locks,
    _per_delete,
    _memory,
    _findings,
)
