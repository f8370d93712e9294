"""What things cost on hardware that a model cannot know: parameters with defaults, ranges and
sources.

A run counts what a policy does for one delete: entries visited, flushes, refaults. What each of
these takes on a machine is given here, so that the counts, which are measured, and the prices,
which are assumed, stay apart. A study shows how its answer moves when a price is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, fields, frozen

from stress.results.run_record import RunRecord


def _price(default: float, low: float, high: float, what: str, source: str) -> float:
    return field(
        default=default, metadata={"low": low, "high": high, "what": what, "source": source}
    )


@frozen
class Costs:
    """Prices in microseconds each."""

    spte_visit_us: float = _price(
        0.01,
        0.003,
        0.05,
        "one SPTE visited by a zap, or frozen in a removed table",
        "assumption: an atomic exchange, mostly in the cache",
    )
    table_free_us: float = _price(
        0.2,
        0.05,
        1.0,
        "one page-table page unlinked and freed through RCU",
        "assumption: call_rcu() and the allocator",
    )
    kick_us: float = _price(
        2.0,
        0.5,
        10.0,
        "one vCPU forced out of guest mode and let in again",
        "assumption: an IPI, an exit and an entry",
    )
    flush_us: float = _price(
        5.0,
        1.0,
        50.0,
        "one remote TLB flush, waiting for the vCPUs",
        "assumption: IPIs acknowledged; grows with the vCPUs",
    )
    importer_us: float = _price(
        10.0,
        2.0,
        200.0,
        "one importer invalidating its IOTLB and waiting for it",
        "assumption: a queued invalidation with its wait descriptor",
    )
    switch_us: float = _price(
        100.0,
        20.0,
        2000.0,
        "one importer switching to another root",
        "assumption: context entry, IOTLB and device TLB drain",
    )
    root_load_us: float = _price(
        3.0,
        1.0,
        100.0,
        "one vCPU loading a root",
        "reference M4: 3 ms at worst before 6.9, under 100 us after",
    )
    fault_us: float = _price(
        2.0,
        0.5,
        10.0,
        "one vCPU fault that installs a leaf",
        "assumption: exit, walk, entry, the page being there",
    )
    io_fault_us: float = _price(
        25.0,
        10.0,
        500.0,
        "one IO page fault",
        "reference M7 and 5.1: at least ten times a vCPU fault",
    )


PRICES = {each.name: each.metadata for each in fields(Costs)}
"""What each price is for, its range and its source, by name."""
CALL = ("spte_visit_us", "table_free_us", "kick_us", "flush_us", "importer_us", "switch_us")
"""What the memslot call itself pays; the rest is paid afterwards, by vCPUs and devices."""


def amounts_of(record: RunRecord) -> dict[str, float] | None:
    """How much of everything one delete took in a run, by the name of its price; None where nothing
    was deleted."""
    counters = record.counters
    deletes = counters.get("memslot_deletes", 0) + counters.get("memslot_moves", 0)
    if not deletes:
        return None
    visited = next(
        (latency for latency in record.latencies if latency.operation == "walk_steps"), None
    )
    steps = sum(middle * count for middle, count in visited.buckets) if visited else 0
    # every entry of a removed table is frozen
    steps += counters.get("tables_removed", 0) * int(record.scenario["vm"]["entries"])
    amounts = {
        "spte_visit_us": steps,
        "table_free_us": counters.get("tables_removed", 0),
        "kick_us": counters.get("vcpu_kicks", 0),
        "flush_us": counters.get("remote_flushes", 0),
        "importer_us": counters.get("importer_notifications", 0),
        "switch_us": counters.get("importer_switches", 0),
        "root_load_us": counters.get("vcpu_root_loads", 0),
        "fault_us": counters.get("vcpu_faults_fixed", 0),
        "io_fault_us": counters.get("io_faults", 0),
    }
    return {name: amount / deletes for name, amount in amounts.items()}


def total_us(amounts: Mapping[str, float], costs: Costs) -> float:
    """What one delete costs in all, afterwards included."""
    return float(sum(amount * getattr(costs, name) for name, amount in amounts.items()))


def call_us(amounts: Mapping[str, float], costs: Costs) -> float:
    """What the memslot call itself takes."""
    return float(sum(amounts[name] * getattr(costs, name) for name in CALL))
