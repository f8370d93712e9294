"""The console summary of a stored run: plain lines that fit 60 columns where they can."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from stress.observe.histograms import NUMBERS
from stress.report import certificate_text
from stress.results.run_record import RunRecord
from stress.results.store import was_killed

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "vCPUs",
        (
            "vcpu_accesses",
            "vcpu_faults",
            "vcpu_faults_retried",
            "stale_faults",
            "vcpu_mmio_exits",
            "vcpu_root_loads",
            "vcpu_kicks",
        ),
    ),
    (
        "memslot worker",
        ("memslot_creates", "memslot_deletes", "memslot_moves", "memslot_flags", "fast_zaps"),
    ),
    (
        "exported root",
        (
            "exported_zaps",
            "exported_zaps_nonempty",
            "exported_leaves_zapped",
            "importer_notifications",
            "exports",
            "unexports",
        ),
    ),
    (
        "consumer",
        (
            "device_accesses",
            "device_devtlb_hits",
            "device_iotlb_hits",
            "device_aborts",
            "io_faults",
            "io_faults_failed",
        ),
    ),
    (
        "TDP MMU",
        (
            "roots_invalidated",
            "roots_zapped",
            "roots_freed",
            "tables_removed",
            "remote_flushes",
            "yields",
        ),
    ),
    (
        "huge pages",
        (
            "huge_leaves",
            "huge_splits",
            "host_splits",
            "host_collapses",
            "nx_toggles",
            "nx_pages_recovered",
        ),
    ),
    (
        "host",
        (
            "host_ranges",
            "host_pages_discarded",
            "host_pages_migrated",
            "pages_aged",
            "pages_found_young",
            "userfaults",
        ),
    ),
    (
        "dirty logging, MMIO",
        (
            "dirty_log_reads",
            "dirty_pages_logged",
            "vcpu_pml_logged",
            "fast_faults",
            "vcpu_mmio_cached",
            "mmio_wraps",
        ),
    ),
    (
        "TDP FDs",
        (
            "exports_refused",
            "attach_failures",
            "importer_switches",
            "importer_switches_failed",
            "process_exits",
        ),
    ),
    ("RCU, harness", ("rcu_grace_periods", "rcu_callbacks", "delays", "quiescent_checks")),
)
"""Which counters stand together."""


def summary(record: RunRecord, *, splats: bool = True) -> str:
    """The whole summary as text."""
    return "\n".join(_lines(record, splats)) + "\n"


def verdict_line(record: RunRecord) -> str:
    """The verdict in one line."""
    verdict = record.verdict
    if was_killed(record):
        verdict = f"{verdict} (killed)"
    expected = ""
    if record.expected_rules:
        seen = record.expected_seen
        expected = (
            f"; expected {' or '.join(record.expected_rules)}: "
            f"{'seen ' + ', '.join(seen) if seen else 'NOT seen'}"
        )
    return (
        f"{verdict}  {record.name}, seed {record.seed}, {record.run_s:.1f} s: "
        f"{'; '.join(record.reasons)}{expected}"
    )


def _lines(record: RunRecord, splats: bool) -> Iterator[str]:
    yield f"{record.name}: {record.scenario.get('title', '')}".rstrip(": ")
    vm, environment = record.scenario["vm"], record.environment
    variants = f", variants {', '.join(record.variants)}" if record.variants else ""
    yield f"policy {vm['policy']}, profile {vm['profile']}, kernel {vm['kernel']}{variants}"
    gil = "GIL" if environment.gil_enabled else "free-threaded"
    yield f"seed {record.seed}, Python {environment.python} ({gil}), {environment.cpus} CPUs"
    if was_killed(record):
        yield (
            f"the process (pid {record.pid}) was killed; this is what was known {record.run_s:.1f} "
            "s into the run"
        )
    yield ""
    for title, names in GROUPS:
        counts = [(name, record.counters.get(name, 0)) for name in names]
        if any(count for _, count in counts):
            text = ", ".join(f"{name} {count:,}" for name, count in counts if count)
            yield from textwrap.wrap(f"{title}: {text}", 76, subsequent_indent="    ")
    yield ""
    if record.latencies:
        yield f"{'latency in us':<22}{'count':>10}{'p50':>10}{'p99':>10}{'max':>10}"
        for row in record.latencies:
            scale = 1.0 if row.operation in NUMBERS else 1e3
            figures = "".join(f"{ns / scale:>10,.1f}" for ns in (row.p50, row.p99, row.max))
            yield f"{row.operation:<22}{row.count:>10,}{figures}"
        yield ""
    if record.figures:
        yield "measurements (reference 5.3; the timed ones are above, all are in the report)"
        for figure in record.figures:
            if not figure.timed:
                yield f"  {figure.number:<4}{figure.name:<52}{figure.value:>12,.1f}"
        yield ""
    yield from _memory(record)
    yield from _trouble(record, splats)
    yield verdict_line(record)
    yield from certificate_text.lines(record.certified)


def _trouble(record: RunRecord, splats: bool) -> Iterator[str]:
    for item in record.obligations if not record.findings else ():
        if not item.met:
            yield f"obligation not met: {item.counter} {item.reached:,}, needed {item.needed:,}"
    for error in record.harness_errors:
        yield f"harness error: {error}"
    for finding in record.findings if splats else ():
        yield finding.splat
        if finding.suspects:
            yield f"known defects of this build that break rule {finding.rule}:"
            yield from (f"  {title}" for title in finding.suspects)
        yield ""


def _memory(record: RunRecord) -> Iterator[str]:
    if not record.resources:
        return
    last = record.resources[-1]
    growth = (
        ""
        if record.memory_growth is None
        else f", {record.memory_growth / 2**20:+.1f} MiB from second to last quarter"
    )
    yield f"memory {last.rss / 2**20:.1f} MiB{growth}; CPU {last.cpu_s:.1f} s"
