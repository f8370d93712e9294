"""Injected stalls: something lasts for `share` times the limit, on a clock that moves only while it
is waited for. The process is `served` for part of that time: less than all of it on a machine that
has other things to do."""

from __future__ import annotations

from mmu.kvm import VmConfig
from mmu.machine.vm import VirtualMachine
from mmu.report import Report, Reporter
from mmu.sync import Lock, RWLockFair
from stress.engines.watchdog import Watchdog
from stress.observe.oracles.liveness import LivenessOracle
from stress.scenario.types import Count, Limits, Seconds
from stress.selftest.detectors.clock import ClockRuntime
from stress.selftest.detectors.rig import DetectorRig, Meeting, elsewhere

LIMIT_S = 10.0
STEPS = 1000
Found = tuple[Report, ...]


def rcu_reader(share: float, served: float = 1.0) -> Found:
    """A grace period waits for a reader."""
    clock = ClockRuntime(served)
    bench = DetectorRig(clock, stall_seconds=LIMIT_S)

    def slow_reader(here: Meeting) -> None:
        with bench.sync.rcu.read():
            here.stay()

    with elsewhere(clock, slow_reader) as leave:
        clock.after(share * LIMIT_S, leave)
        bench.sync.rcu.synchronize()
    return bench.reports


def srcu_reader(share: float, served: float = 1.0) -> Found:
    """The same in a domain whose readers may sleep."""
    clock = ClockRuntime(served)
    bench = DetectorRig(clock, stall_seconds=LIMIT_S)
    srcu = bench.sync.srcu("kvm->srcu")

    def slow_reader(here: Meeting) -> None:
        with srcu.read():
            here.stay()

    with elsewhere(clock, slow_reader) as leave:
        clock.after(share * LIMIT_S, leave)
        srcu.synchronize()
    return bench.reports


def lock_holder(share: float, served: float = 1.0) -> Found:
    """A thread waits for a lock of `mmu.sync`."""
    clock = ClockRuntime(served)
    bench = DetectorRig(clock, hung_seconds=LIMIT_S)
    lock = Lock("config", sync=bench.sync)

    def slow_holder(here: Meeting) -> None:
        with lock:
            here.stay()

    with elsewhere(clock, slow_holder) as leave:
        clock.after(share * LIMIT_S, leave)
        with lock:
            pass
    return bench.reports


def rwlock_holder(share: float, served: float = 1.0) -> Found:
    """A reader waits for a writer of `readerwriterlock`, whose inner locks and time are the
    clock's."""
    clock = ClockRuntime(served)
    bench = DetectorRig(clock, hung_seconds=LIMIT_S)
    lock = RWLockFair(time_source=lambda: clock.now() / 1e9, name="table_lock", sync=bench.sync)

    def slow_writer(here: Meeting) -> None:
        with lock.write():
            here.stay()

    with elsewhere(clock, slow_writer) as leave:
        clock.after(share * LIMIT_S, leave)
        with lock.read():
            pass
    return bench.reports


def write_section(share: float, served: float = 1.0) -> Found:
    """mmu_lock is held for write."""
    clock = ClockRuntime(served)
    vm, reporter = _machine(clock)
    vm.kvm.mmu_lock.write_lock()
    clock.advance(share * LIMIT_S)
    vm.kvm.mmu_lock.write_unlock()
    return reporter.reports


def walk(share: float) -> Found:
    """A zap that cannot yield visits many SPTEs."""
    vm, reporter = _machine(ClockRuntime())
    section = vm.kvm.probe.walk_section
    assert section is not None
    section(int(share * STEPS), 0, False)
    return reporter.reports


def _machine(clock: ClockRuntime) -> tuple[VirtualMachine, Reporter]:
    reporter = Reporter(sink=None)
    vm = VirtualMachine(VmConfig(frames=64), runtime=clock, reporter=reporter)
    vm.kvm.probe.attach(
        LivenessOracle(vm, Limits(write_hold_s=Seconds(LIMIT_S), walk_steps=Count(STEPS)))
    )
    return vm, reporter


class _Actor:
    """What the watchdog looks at, of somebody who gets nowhere until `share` of the limit is
    over."""

    parks = True

    def __init__(self, clock: ClockRuntime, name: str) -> None:
        self.name = name
        self.done = clock.cell("done", False)
        self.steps = 0

    def moved(self) -> int:
        return self.steps


def actor(share: float, served: float = 1.0) -> Found:
    """An actor stands still under a lock, and the watchdog looks at it twice a second."""
    clock = ClockRuntime(served)
    vm, reporter = _machine(clock)
    watchdog = Watchdog(vm.kvm, LIMIT_S)
    still = _Actor(clock, "stuck_actor")

    def stuck_actor(here: Meeting) -> None:
        with vm.kvm.slots_lock:
            here.stay()

    def look() -> None:
        clock.advance(Watchdog.SERVED_S)
        for report in watchdog.tick([still]):
            reporter.emit(report)

    with elsewhere(clock, stuck_actor):
        look()
        for _ in range(int(share * LIMIT_S / Watchdog.SERVED_S)):
            look()
        still.steps += 1
        look()
    return reporter.reports
