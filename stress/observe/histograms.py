"""Latencies: integer buckets a thread while the run goes on, one distribution an operation when
somebody asks.

The buckets are log-linear, as HdrHistogram's are, so nothing is lost in converting them. The
conversion is left to reports: `hdrhistogram`'s C module turns the GIL back on when it is imported
on a free-threaded build.
"""

from __future__ import annotations

import threading

from attrs import frozen

from mmu.memory.memslots import Change
from mmu.probe import Instrument, override
from mmu.runtime import Runtime

SUB_BITS = 4
"""16 buckets an octave: a value is known within 6 %."""
_BUCKETS = (64 - SUB_BITS) << SUB_BITS

OPERATIONS = {
    "fault": "one EPT violation handled by KVM",
    "memslot": "one memslot call, from slots_lock on",
    "memslot_srcu": "its waits for SRCU readers",
    "memslot_flush_shadow": "its unmapping (zap_all_fast)",
    "zap_invalidate": "of a fast zap: making roots invalid and kicking vCPUs",
    "zap_exported": "of a fast zap: the exported roots' leaves, flush included",
    "zap_invalidated_roots": "of a memslot call: zapping invalidated roots under mmu_lock(read)",
    "memslot_commit": "its commit, dirty logging included",
    "device_window": (
        "from the start of a delete or move until no device could reach the slot any more (M9)"
    ),
    "flush": "one remote flush, importers included",
    "root_load": "one load of a root by a vCPU",
    "io_fault_slots_lock": "slots_lock held by one IO page fault",
    "io_fault": "one IO page fault, from queue to answer",
    "importer_notify": "telling one exported root's importers, usually under mmu_lock (M7, R21)",
    "importer_switch": "one importer's switch to a republished root",
    "range_start": "one invalidate_range_start of an MMU notifier (M10)",
    "nx_toggle": "one switch of the NX huge page mitigation",
    "walk_section": "a zap's, or another yielding walk's, time in one RCU section (M2)",
    "walk_steps": "SPTEs visited in such a section (M1, R13); a number, not a time",
    "grace_period": "one RCU grace period with its callbacks",
    "mmu_lock_write_hold": "mmu_lock held for write",
}
"""What is timed, in nanoseconds, but for those in `NUMBERS`."""
NUMBERS = frozenset({"walk_steps"})
"""What is counted instead."""


def bucket_of(value: int) -> int:
    """The bucket of a duration."""
    if value < 1 << SUB_BITS:
        return max(value, 0)
    shift = value.bit_length() - SUB_BITS - 1
    return min(((shift + 1) << SUB_BITS) + (value >> shift) - (1 << SUB_BITS), _BUCKETS - 1)


def middle_of(bucket: int) -> int:
    """A duration in the middle of a bucket."""
    if bucket < 1 << SUB_BITS:
        return bucket
    shift = (bucket >> SUB_BITS) - 1
    low = ((bucket & ((1 << SUB_BITS) - 1)) + (1 << SUB_BITS)) << shift
    return low + (1 << shift) // 2


@frozen
class Latency:
    """The distribution of one operation in nanoseconds; `buckets` are (middle of a bucket, count),
    smallest first."""

    operation: str
    count: int
    p50: int
    p90: int
    p99: int
    p999: int
    max: int
    buckets: tuple[tuple[int, int], ...]


class _TaskHistograms:
    """One task's figures, and when it began what it is in."""

    def __init__(self) -> None:
        self.buckets: dict[str, list[int]] = {name: [0] * _BUCKETS for name in OPERATIONS}
        self.highest: dict[str, int] = dict.fromkeys(OPERATIONS, 0)
        self.held_ns = [0]
        self.write_locked_at = 0
        self.call_began_at = 0
        self.importers_safe_at = 0
        self.toggled_at = 0
        self.zap_began_at = 0
        self.kicked_at = 0
        self.kicked_before_yield = 0
        self.unlocked_at = 0


class Histograms(Instrument):
    """An instrument that times operations."""

    def __init__(self, runtime: Runtime) -> None:
        self._now = runtime.now
        self._lock = threading.Lock()
        self._parts: list[tuple[dict[str, list[int]], dict[str, int]]] = []
        self._held_ns: list[list[int]] = []
        self._local = runtime.local(self._enlist)

    def _enlist(self) -> _TaskHistograms:
        """A task records for the first time."""
        mine = _TaskHistograms()
        with self._lock:
            self._parts.append((mine.buckets, mine.highest))
            self._held_ns.append(mine.held_ns)
        return mine

    def write_held_ns(self) -> int:
        """For how long mmu_lock has been held for write so far, by all threads together."""
        with self._lock:
            return sum(held_ns[0] for held_ns in self._held_ns)

    def record(self, operation: str, ns: int) -> None:
        """Add one duration."""
        mine = self._local.mine
        mine.buckets[operation][bucket_of(ns)] += 1
        mine.highest[operation] = max(mine.highest[operation], ns)

    @override
    def fault_done(self, vcpu: object, result: object, ns: int) -> None:
        self.record("fault", ns)

    @override
    def memslot_end(self, change: Change, slot: object, parts: dict[str, int]) -> None:
        self.record("memslot", parts["total"])
        for part in ("srcu", "flush_shadow", "commit"):
            if part in parts:
                self.record(f"memslot_{part}", parts[part])
        mine = self._local.mine
        if "flush_shadow" in parts and mine.zap_began_at > mine.call_began_at:
            self.record(
                "zap_invalidated_roots",
                max(0, parts["flush_shadow"] - (mine.unlocked_at - mine.zap_began_at)),
            )
        if change in (Change.DELETE, Change.MOVE) and mine.importers_safe_at > mine.call_began_at:
            self.record("device_window", mine.importers_safe_at - mine.call_began_at)

    @override
    def zap_all_fast(self, old_valid_gen: int) -> None:
        self._local.mine.zap_began_at = self._now()

    @override
    def roots_kicked(self, roots: object) -> None:
        mine = self._local.mine
        mine.kicked_at = self._now()
        self.record("zap_invalidate", mine.kicked_at - mine.zap_began_at)

    @override
    def exported_zapped(self, root: object, leaves: int) -> None:
        mine = self._local.mine
        if mine.kicked_at > mine.zap_began_at > 0:
            self.record("zap_exported", self._now() - mine.kicked_at)
            mine.kicked_at = 0

    @override
    def root_loaded(self, vcpu: object, ns: int) -> None:
        self.record("root_load", ns)

    @override
    def io_fault_held(self, ns: int) -> None:
        self.record("io_fault_slots_lock", ns)

    @override
    def memslot_begin(self, change: Change, slot: object) -> None:
        mine = self._local.mine
        mine.call_began_at = self._now()
        mine.kicked_at = 0

    @override
    def importers_notified(self, exported: object, gfn: int, pages: int, ns: int) -> None:
        self.record("importer_notify", ns)
        self._local.mine.importers_safe_at = self._now()

    @override
    def importer_switched(self, importer: object, acknowledged: bool, ns: int) -> None:
        self.record("importer_switch", ns)
        self._local.mine.importers_safe_at = self._now()

    @override
    def walk_section(self, steps: int, ns: int, can_yield: bool) -> None:
        self.record("walk_steps", steps)
        self.record("walk_section", ns)

    @override
    def range_started(self, region: object, first: int, last: int, ns: int) -> None:
        self.record("range_start", ns)

    @override
    def nx_toggle_begin(self, on: bool) -> None:
        self._local.mine.toggled_at = self._now()

    @override
    def nx_toggle_end(self, on: bool) -> None:
        self.record("nx_toggle", self._now() - self._local.mine.toggled_at)

    @override
    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        self.record("flush", ns)

    @override
    def io_fault_end(self, device: object, gfn: int, write: bool, ok: bool, ns: int) -> None:
        self.record("io_fault", ns)

    @override
    def grace_period(self, ns: int, callbacks: int) -> None:
        self.record("grace_period", ns)

    @override
    def mmu_write_locked(self) -> None:
        self._local.mine.write_locked_at = self._now()

    @override
    def mmu_write_unlocking(self) -> None:
        mine = self._local.mine
        mine.unlocked_at = self._now()
        mine.kicked_before_yield, mine.kicked_at = mine.kicked_at, 0
        held = mine.unlocked_at - mine.write_locked_at
        mine.held_ns[0] += held
        self.record("mmu_lock_write_hold", held)

    @override
    def zap_yielded(self, root: object, since: int, goal: int) -> None:
        # What is being timed goes on: the lock was released for the yield only.
        mine = self._local.mine
        mine.kicked_at = mine.kicked_before_yield

    def latencies(self) -> list[Latency]:
        """The distributions so far, those of operations that happened."""
        with self._lock:
            parts = list(self._parts)
        return [latency for name in OPERATIONS if (latency := _merge(name, parts)) is not None]


def _merge(name: str, parts: list[tuple[dict[str, list[int]], dict[str, int]]]) -> Latency | None:
    sums = [sum(counts) for counts in zip(*(part[0][name] for part in parts), strict=True)]
    buckets = tuple((middle_of(bucket), count) for bucket, count in enumerate(sums) if count)
    if not buckets:
        return None
    highest = max(part[1][name] for part in parts)
    p50, p90, p99, p999 = (
        min(_percentile(buckets, share), highest) for share in (0.5, 0.9, 0.99, 0.999)
    )
    return Latency(name, sum(sums), p50, p90, p99, p999, highest, buckets)


def _percentile(buckets: tuple[tuple[int, int], ...], share: float) -> int:
    """The value that `share` of all counts do not exceed."""
    wanted = share * sum(count for _, count in buckets)
    seen = 0
    for value, count in buckets:
        seen += count
        if seen >= wanted:
            return value
    return buckets[-1][0]
