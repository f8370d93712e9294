"""The measurements M1 to M12 (reference 5.3) of one run, from what was counted, timed and
sampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from stress.observe.histograms import Latency


@frozen
class MeasuredFigure:
    """One measurement: the reference's number, a name, a value and its unit; `timed` ones come from
    a histogram."""

    number: str
    name: str
    value: float
    unit: str
    timed: bool = False


def figures_of(
    counters: Mapping[str, int],
    latencies: Mapping[str, Latency],
    peak: Mapping[str, int],
    last: Mapping[str, int],
    bad_accesses: int,
) -> tuple[MeasuredFigure, ...]:
    """Every figure that the run has data for, in the order of the reference.

    `bad_accesses` counts accesses that reached memory after it was taken away; M9 wants none.
    """
    made = [
        *_times(latencies),
        *_per_delete(counters),
        *_io_faults(counters),
        *_flushes(counters),
        *(
            MeasuredFigure("M8", f"{name} at most", peak[name], "")
            for name in ("table_pages", "empty_tables", "roots", "mapped_leaves")
        ),
        MeasuredFigure("M8", "table_pages at the end", last["table_pages"], ""),
        MeasuredFigure("M9", "accesses to memory that was gone", bad_accesses, ""),
        MeasuredFigure("M12", "RCU callbacks waiting at most", peak["rcu_backlog"], ""),
    ]
    return tuple(sorted(made, key=lambda figure: int(figure.number[1:])))


_TIMED = (
    ("M1", "mmu_lock_write_hold", "mmu_lock held for write"),
    ("M1", "walk_steps", "SPTEs visited without yielding"),
    ("M2", "walk_section", "RCU read section of a walk"),
    ("M3", "memslot", "memslot call"),
    ("M3", "memslot_srcu", "its SRCU waits"),
    ("M3", "memslot_flush_shadow", "its unmapping"),
    ("M3", "zap_invalidate", "invalidating roots and kicking vCPUs"),
    ("M3", "zap_exported", "the exported zap, flush included"),
    ("M3", "zap_invalidated_roots", "zapping invalidated roots"),
    ("M3", "memslot_commit", "its commit"),
    ("M4", "fault", "vCPU fault"),
    ("M4", "root_load", "root load by a vCPU"),
    ("M6", "io_fault_slots_lock", "slots_lock held by an IO page fault"),
    ("M6", "io_fault", "IO page fault"),
    ("M7", "importer_notify", "time in importer callbacks"),
    ("M7", "importer_switch", "an importer's switch of roots"),
    ("M9", "device_window", "window in which a device could reach a deleted slot"),
    ("M10", "range_start", "MMU notifier range start"),
    ("M12", "grace_period", "RCU grace period"),
)


def _times(latencies: Mapping[str, Latency]) -> Iterator[MeasuredFigure]:
    for number, operation, name in _TIMED:
        found = latencies.get(operation)
        if found is not None:
            unit, scale = ("", 1) if operation == "walk_steps" else ("us", 1000)
            yield MeasuredFigure(number, f"{name}, p99", found.p99 / scale, unit, timed=True)
            yield MeasuredFigure(number, f"{name}, longest", found.max / scale, unit, timed=True)


def _per_delete(counters: Mapping[str, int]) -> Iterator[MeasuredFigure]:
    deletes = counters["memslot_deletes"] + counters["memslot_moves"]
    if deletes:
        yield MeasuredFigure(
            "M5",
            "vcpu_faults_fixed, per delete or move",
            counters["vcpu_faults_fixed"] / deletes,
            "",
        )
        yield MeasuredFigure(
            "M5",
            "vcpu_faults_spurious, per delete or move",
            counters["vcpu_faults_spurious"] / deletes,
            "",
        )
        yield MeasuredFigure(
            "M5", "io_faults, per delete or move", counters["io_faults"] / deletes, ""
        )
        found = counters["device_walks"] - counters["io_faults"]
        yield MeasuredFigure(
            "M5",
            "device walks that found a mapping, per delete or move",
            max(0, found) / deletes,
            "",
        )
        yield MeasuredFigure(
            "M7", "remote_flushes, per delete or move", counters["remote_flushes"] / deletes, ""
        )


def _io_faults(counters: Mapping[str, int]) -> Iterator[MeasuredFigure]:
    if counters["io_faults"]:
        yield MeasuredFigure("M6", "io_faults_failed", counters["io_faults_failed"], "")
        yield MeasuredFigure(
            "M6",
            "attempts per IO page fault",
            1 + counters["io_faults_retried"] / counters["io_faults"],
            "",
        )


def _flushes(counters: Mapping[str, int]) -> Iterator[MeasuredFigure]:
    yield MeasuredFigure("M7", "remote_flushes", counters["remote_flushes"], "")
    yield MeasuredFigure("M7", "flushes_range", counters["flushes_range"], "")
    yield MeasuredFigure("M7", "importer_notifications", counters["importer_notifications"], "")
