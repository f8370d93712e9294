"""What checking costs, each figure a ratio of two things timed in turn in this process.

    python bench/costs.py [--quick] [--json]

Machines are shared and noisy, so the two sides alternate many times and the figure is the median of
the pairwise ratios, with the spread of its middle half beside it. An absolute time is only shown as
an aid.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
from attrs import frozen
from readerwriterlock import rwlock
from unchecked import BareSync

from mmu.kvm import VmConfig
from mmu.machine.vcpu import Vcpu
from mmu.machine.vm import VirtualMachine
from mmu.memory.memslots import MemoryRegion
from mmu.probe import Probe
from mmu.report import Reporter
from mmu.runtime import Runtime
from stress.engines.carrier import Signal, pinned
from stress.engines.carrier_choice import AUTO, THREADS, carrier_for
from stress.engines.scenario_program import ScenarioProgram
from stress.observe.close_calls import THREADS_US, CloseCalls
from stress.observe.counts import Counts
from stress.observe.coverage import SpteCoverage
from stress.observe.histograms import Histograms
from stress.observe.oracles import attach_all
from stress.observe.points import Points
from stress.observe.recorder import Recorder
from stress.observe.timeline import Timeline
from stress.results.environment import gil_enabled
from stress.scenario.load import structure
from stress.scenario.types import Limits
from stress.search.exploration import Exploration, SearchBudget
from stress.search.random_walk import RandomWalk

PAGES = 8192
LEAF_COUNTS = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18)
SCHEDULES = 24
HAND_OFFS = 2_000
SMALL: Final[dict[str, Any]] = {
    "vm": {"vcpus": 1, "levels": 2, "entries": 4, "frames": 64},
    "memory": {
        "fixed_pages": 1,
        "churn_slots": 1,
        "churn_pages": 1,
        "smm_pages": 0,
        "smm_churn_pages": 0,
    },
    "script": {
        "setup": ["create 0", "vcpu0: write 0x4"],
        "vcpu0": ["write 0x4", "read 0x4"],
        "memslot-worker": ["delete 0"],
    },
}
"""A vCPU's faults against the deletion of its slot."""


@frozen
class CostRatio:
    """One measurement: the ratio `name`, its target (an upper bound, or None), and what was divided
    by what."""

    name: str
    ratio: float
    low: float
    high: float
    target: float | None
    numerator: str
    denominator: str
    numerator_ns: float
    denominator_ns: float


class _Sweep:
    """A guest that writes one page after the other."""

    def __init__(self) -> None:
        self._gfns = itertools.count()

    def next_access(self) -> int:
        """A write to the next gfn."""
        return next(self._gfns) << 1 | 1


class BenchVm:
    """A VM with one fully populated slot and vCPUs that fault in it; everything a run attaches is
    attached if `full`."""

    def __init__(self, pages: int, *, full: bool, vcpus: int = 1, timeline: bool = True) -> None:
        self.pages = pages
        probe = Probe()
        runtime, reporter = Runtime(), Reporter()
        self.vm = VirtualMachine(
            VmConfig(frames=pages + 64),
            runtime=runtime,
            reporter=reporter,
            probe=probe,
            sync=None if full else BareSync(runtime, reporter, probe),
        )
        if full:
            attach_all(self.vm, Limits())
            counts = Counts(runtime)
            calls = CloseCalls(runtime, self.vm, counts, THREADS_US * 1000)
            layout = self.vm.kvm.layout
            probe.attach(
                counts,
                calls,
                Points(),
                Histograms(runtime),
                Recorder(runtime, layout),
                SpteCoverage(runtime, layout),
            )
            if timeline:
                probe.attach(Timeline(runtime))
        region = self.vm.host.mmap(pages)
        self.vm.host.assign(region, 0)
        self.vm.set_user_memory_region(MemoryRegion(0, 0, pages, region))
        for index in range(pages):
            self.vm.host.fault_in(region, index)
        self.vcpus = [self.vm.create_vcpu() for _ in range(vcpus)]
        for vcpu in self.vcpus:
            vcpu.load_root()

    def fault(self, vcpu: Vcpu, first: int, last: int) -> None:
        """Fault every page of [first, last) for write, through the vCPU's whole fault path."""
        srcu = self.vm.kvm.srcu
        token = srcu.read_lock()
        vcpu.vcpu_load()
        page_fault = vcpu.page_fault
        for gfn in range(first, last):
            page_fault(gfn, True)
        srcu.read_unlock(token)
        vcpu.vcpu_put()

    def run(self, vcpu: Vcpu) -> None:
        """Let a guest write every page, through KVM_RUN."""
        vcpu.run(_Sweep(), self.pages)

    def zap(self) -> None:
        """Zap and flush all leaves, as the exported zap does."""
        root = self.vcpus[0].root
        assert root is not None
        self.vm.kvm.mmu_lock.write_lock()
        self.vm.zapper.zap_exported_root(root)
        self.vm.kvm.mmu_lock.write_unlock()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Measure the checked paths as ratios within one process."
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--quick", action="store_true", help="fewer repetitions: a first impression"
    )
    asked = parser.parse_args()
    print(measured(quick=asked.quick, as_json=asked.json), end="")


def measured(*, quick: bool, as_json: bool) -> str:
    """All figures as text or JSON."""
    rounds = 9 if quick else 41
    figures = list(_figures(rounds, LEAF_COUNTS[:3] if quick else LEAF_COUNTS))
    if as_json:
        return (
            json.dumps(
                {"gil": gil_enabled(), "figures": [attrs.asdict(figure) for figure in figures]},
                indent=1,
            )
            + "\n"
        )
    lines = [
        f"each figure: median of {rounds} ratios taken in turn (middle half); "
        f"{'GIL' if gil_enabled() else 'free-threaded'}",
        "",
    ]
    for figure in figures:
        target = (
            ""
            if figure.target is None
            else (
                f"   at most {figure.target:g}: "
                f"{'met' if figure.ratio <= figure.target else 'MISSED'}"
            )
        )
        lines.append(
            f"{figure.name:<44} {figure.ratio:6.2f}  ({figure.low:.2f}-{figure.high:.2f}){target}"
        )
        lines.append(
            f"    {figure.numerator} {figure.numerator_ns:,.0f} ns / {figure.denominator} "
            f"{figure.denominator_ns:,.0f} ns"
        )
    return "\n".join(lines) + "\n"


def _figures(rounds: int, leaf_counts: tuple[int, ...]) -> Iterator[CostRatio]:
    for threads in (1, 2, 4):
        yield _fault_against_lock(rounds, threads)
    yield _checks_on_against_off(rounds)
    yield _timeline_on_against_off(rounds)
    yield from _zap_scaling(leaf_counts, max(3, rounds // 8))
    with pinned():
        yield from _controlled_steps(rounds)


def _fault_against_lock(rounds: int, threads: int) -> CostRatio:
    """The fully checked fault path against a bare read acquire/release of readerwriterlock, same
    number of threads."""
    bed = BenchVm(PAGES, full=True, vcpus=threads)
    lock = rwlock.RWLockFair()
    share = PAGES // threads

    def bare(_: int) -> None:
        handle = lock.gen_rlock()
        acquire, release = handle.acquire, handle.release
        for _ in range(share):
            acquire()
            release()

    def faults(number: int) -> None:
        bed.fault(bed.vcpus[number], number * share, (number + 1) * share)

    pairs = _alternate(
        rounds,
        lambda: _in_threads(threads, faults),
        lambda: _in_threads(threads, bare),
        after=bed.zap,
    )
    what = "1 thread" if threads == 1 else f"{threads} threads"
    return _figure(
        f"fault path / rwlock read pair, {what}",
        pairs,
        PAGES,
        4.0 if threads == 1 else None,
        "fault",
        "acquire+release",
    )


def _checks_on_against_off(rounds: int) -> CostRatio:
    """The fault path with every rule, oracle and recorder against the same path with none of
    them."""
    on, off = BenchVm(PAGES, full=True), BenchVm(PAGES, full=False)

    def clear() -> None:
        on.zap()
        off.zap()

    pairs = _alternate(
        rounds,
        lambda: on.fault(on.vcpus[0], 0, PAGES),
        lambda: off.fault(off.vcpus[0], 0, PAGES),
        after=clear,
    )
    return _figure(
        "fault path, all checks on / off", pairs, PAGES, 1.8, "checked fault", "unchecked fault"
    )


def _timeline_on_against_off(rounds: int) -> CostRatio:
    """KVM_RUN with a fault an access, guest mode and all, with and without the timeline (scenario
    key observe.timeline)."""
    on, off = BenchVm(PAGES, full=True), BenchVm(PAGES, full=True, timeline=False)

    def clear() -> None:
        on.zap()
        off.zap()

    pairs = _alternate(
        rounds, lambda: on.run(on.vcpus[0]), lambda: off.run(off.vcpus[0]), after=clear
    )
    return _figure(
        "KVM_RUN with faults, timeline on / off", pairs, PAGES, None, "recorded", "not recorded"
    )


def _zap_scaling(leaf_counts: tuple[int, ...], rounds: int) -> Iterator[CostRatio]:
    """Cost per zapped leaf at each size against that at the smallest size."""
    small = BenchVm(leaf_counts[0], full=True)
    repeats = 8
    for count in leaf_counts[1:]:
        large = BenchVm(count, full=True)
        pairs = [
            (_zap_time(large, count, 1), _zap_time(small, leaf_counts[0], repeats))
            for _ in range(rounds)
        ]
        yield _figure(
            f"zap per leaf, {count:,} leaves / {leaf_counts[0]:,}", pairs, 1, 1.25, "leaf", "leaf"
        )


def _zap_time(bed: BenchVm, count: int, repeats: int) -> float:
    """Nanoseconds a leaf."""
    total = 0
    for _ in range(repeats):
        bed.fault(bed.vcpus[0], 0, count)
        gc.collect()
        start = time.perf_counter_ns()
        bed.zap()
        total += time.perf_counter_ns() - start
    return total / (count * repeats)


def _controlled_steps(rounds: int) -> Iterator[CostRatio]:
    """One step of a random walk over a small scenario, everything that a schedule costs included (a
    VM made and taken down, oracles, classes, races): against one bare hand-off between two threads,
    and on one carrier against the other."""
    carrier = carrier_for(AUTO, "atomic")
    step = _step_on(carrier)
    pairs = [
        (step(), _time(lambda: _hand_over(HAND_OFFS)) / (2 * HAND_OFFS)) for _ in range(rounds)
    ]
    yield _figure(
        f"controlled step, on {carrier} / bare hand-off", pairs, 1, None, "step", "hand-off"
    )
    if carrier_for(THREADS, "atomic") != carrier:
        on_threads = _step_on(THREADS)
        pairs = [(on_threads(), step()) for _ in range(rounds)]
        yield _figure(f"controlled step, on threads / on {carrier}", pairs, 1, None, "step", "step")


def _step_on(carrier: str) -> Callable[[], float]:
    """What makes some more schedules on a carrier and returns nanoseconds a step; some are made
    already."""
    scenario, problems = structure(SMALL, {}, "costs")
    assert scenario is not None, problems
    program = ScenarioProgram("bench", scenario)
    program.carrier = carrier
    exploration = Exploration(program, RandomWalk(1))
    budget = SearchBudget(schedules=SCHEDULES, stop_at_failure=False)

    def step() -> float:
        before = exploration.tally.steps
        spent = _time(lambda: exploration.run(budget))
        assert not exploration.tally.failures
        return spent / (exploration.tally.steps - before)

    step()
    return step


def _hand_over(times: int) -> None:
    """To another thread and back, so many times."""
    there, back = Signal(), Signal()

    def answer() -> None:
        for _ in range(times):
            there.wait()
            back.set()

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(times):
        there.set()
        back.wait()
    thread.join()


def _alternate(
    rounds: int, first: Callable[[], None], second: Callable[[], None], after: Callable[[], None]
) -> list[tuple[float, float]]:
    pairs = []
    for number in range(rounds + 2):
        one = _time(first)
        two = _time(second)
        after()
        if number >= 2:
            pairs.append((one, two))
    return pairs


def _time(body: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    body()
    return time.perf_counter_ns() - start


def _in_threads(count: int, body: Callable[[int], None]) -> None:
    if count == 1:
        body(0)
        return
    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _figure(
    name: str,
    pairs: list[tuple[float, float]],
    operations: int,
    target: float | None,
    numerator: str,
    denominator: str,
) -> CostRatio:
    ratios = sorted(one / two for one, two in pairs)
    quarter = len(ratios) // 4
    return CostRatio(
        name,
        round(statistics.median(ratios), 3),
        round(ratios[quarter], 3),
        round(ratios[-1 - quarter], 3),
        target,
        numerator,
        denominator,
        round(statistics.median(one for one, _ in pairs) / operations, 1),
        round(statistics.median(two for _, two in pairs) / operations, 1),
    )


if __name__ == "__main__":
    main()
