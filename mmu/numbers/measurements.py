"""M-numbers: what maintainers would want measured (reference 5.3)."""

from __future__ import annotations

from typing import Final

MEASUREMENTS: Final = {
    "M1": (
        "time mmu_lock is held for write per fast zap (max, p99), and SPTEs or tables visited "
        "without yielding"
    ),
    "M2": "longest RCU read section",
    "M3": (
        "latency of a memslot ioctl: total, SRCU wait, invalidate, exported zap, invalidated-root "
        "zap, importer notification"
    ),
    "M4": "vCPU stall: distribution of fault latency during the update, and root reload latency",
    "M5": (
        "refaults per memslot delete: CPU faults, IO faults, spurious ones; time to re-populate; "
        "IO faults avoided because a CPU touched the page first"
    ),
    "M6": (
        "IO fault latency and failures, retries per fault, and how long IO faults hold slots_lock"
    ),
    "M7": (
        "remote flushes: count, full or range, importer invalidations, time in `invalidate` under "
        "mmu_lock"
    ),
    "M8": "page-table memory: peak and steady tdp_mmu_pages, empty tables, overlap of two roots",
    "M9": (
        "window in which a device can still reach a deleted slot, from the ioctl's start; and "
        "accesses after it has returned, which must be 0"
    ),
    "M10": "fairness: time for range_start to complete under fault load",
    "M11": "jitter that unrelated tasks see",
    "M12": "grace-period latency and backlog of callbacks",
    "M13": (
        "correctness: violations per 10^6 operations with each mutant, and none on the correct "
        "model"
    ),
}
"""Every measurement by its number."""

ELSEWHERE: Final = {
    "M11": "not measured: a model in Python has no unrelated tasks whose jitter means anything",
    "M13": "the matrix of `stress selftest`: kills, and work and time to each",
}
"""Measurements that are no figure of a run, each with what stands for it."""
