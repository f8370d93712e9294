"""One run's world: the VM, its actors, everybody who watches - built from a scenario, independent of the engine."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Sequence

from attrs import frozen

from mmu.export.policies import POLICIES
from mmu.kvm import VmConfig
from mmu.machine.vm import VirtualMachine
from mmu.paging.geometry import Geometry
from mmu.probe import Probe
from mmu.report import Report, Reporter
from mmu.runtime import Runtime
from mmu.task import current
from mmu.variant import Variant
from stress.actors.base import Actor, Stage
from stress.actors.consumer import Consumer, IopfWorker, SharedTdpFd
from stress.actors.layout import Layout
from stress.actors.memslot_worker import MemslotWorker
from stress.actors.vcpu import VcpuActor
from stress.engines.control import Control
from stress.mutants import MUTANTS
from stress.observe.counts import Counts
from stress.observe.disturb import Delays
from stress.observe.histograms import Histograms
from stress.observe.recorder import Recorder
from stress.oracles import attach_all
from stress.scenario.types import Scenario


@frozen
class Finding:
    """A broken rule as it was first seen, with the time into the run."""

    report: Report
    at_s: float


class Session:
    """Everything that one run consists of. `set_up` and `take_down` are run by tasks of the engine."""

    def __init__(self, scenario: Scenario, seed: int, runtime: Runtime, extra: Sequence[Variant] = ()) -> None:
        self.scenario = scenario
        self.seed = seed
        self.runtime = runtime
        self._began = runtime.now()
        self._lock = threading.Lock()
        self._findings: list[Finding] = []
        self._errors: list[str] = []
        self.reporter = Reporter(self._found)
        self.probe = Probe(self._observer_failed)
        self.vm = VirtualMachine(
            vm_config(scenario),
            [POLICIES[scenario.vm.policy], *(MUTANTS[name] for name in scenario.vm.variants), *extra],
            runtime=runtime,
            reporter=self.reporter,
            probe=self.probe,
        )
        self.control = Control(runtime)
        self.counts = Counts(runtime)
        self.histograms = Histograms(runtime)
        self.recorder = Recorder(runtime, self.vm.kvm.layout)
        self.reporter.enrich = self.recorder.enrich
        self.oracles = attach_all(self.vm, scenario.limits)
        delays = Delays(runtime, scenario.disturbances, seed, self.counts["delays"])
        self.probe.attach(self.counts, self.histograms, self.recorder, delays)
        self.actors: list[Actor] = []

    def set_up(self) -> None:
        """Create the fixed slots and the actors."""
        scenario = self.scenario
        layout = Layout(self.vm, scenario.vm, scenario.memory)
        layout.create_fixed()
        stage = Stage(self.vm, layout, scenario, self.seed, self.counts, self.control)
        actors: list[Actor] = [VcpuActor(stage, number) for number in range(scenario.vm.vcpus)]
        if scenario.actors.memslot_worker.enabled and layout.churn:
            actors.append(MemslotWorker(stage))
        if scenario.vm.have_exported_tdp:
            fds = SharedTdpFd(stage)
            for number in range(scenario.actors.consumer.devices):
                worker = IopfWorker(stage, f"iopf{number}")
                actors += [Consumer(stage, number, worker, fds), worker]
        self.actors = actors

    def take_down(self) -> None:
        """Close the VM fd: with every TDP FD closed before, this destroys the VM and checks that nothing is left."""
        self.vm.put()

    def interrupt_vcpus(self, interrupt: bool) -> None:
        """Make every KVM_RUN return soon, or stop doing so."""
        for vcpu in self.vm.vcpus():
            if interrupt:
                vcpu.interrupt()
            else:
                vcpu.immediate_exit.store(False)

    def findings(self) -> list[Finding]:
        """What was found so far, each with its current count, first seen first."""
        counts = {report.signature: report for report in self.reporter.reports}
        with self._lock:
            return [Finding(counts.get(item.report.signature, item.report), item.at_s) for item in self._findings]

    def errors(self) -> tuple[str, ...]:
        """What went wrong with the harness itself."""
        with self._lock:
            return tuple(self._errors)

    def fail(self, error: str) -> None:
        """Note a harness error."""
        with self._lock:
            if error not in self._errors:
                self._errors.append(error)

    def totals(self) -> dict[str, int]:
        """All counters now."""
        totals = self.counts.values()
        for actor in self.actors:
            for name, amount in actor.totals().items():
                totals[name] += amount
        return totals

    def elapsed(self) -> float:
        """Seconds since the session was made."""
        return (self.runtime.now() - self._began) / 1e9

    def _found(self, report: Report) -> None:
        if current.task.error is not None:
            return  # the thread has died of an exception, which is the harness error; what it still holds is no finding
        with self._lock:
            self._findings.append(Finding(report, round(self.elapsed(), 3)))

    def _observer_failed(self, hook: str, error: BaseException) -> None:
        where = "".join(traceback.format_exception(error))
        self.fail(f"an observer raised in {hook}: {error!r}\n{where}")


def vm_config(scenario: Scenario) -> VmConfig:
    """The model's own configuration for a scenario."""
    vm = scenario.vm
    return VmConfig(
        geometry=Geometry(vm.levels, vm.entries),
        frames=vm.frames,
        mmu_lock=vm.mmu_lock,
        have_exported_tdp=vm.have_exported_tdp,
        ad_bits=vm.ad_bits,
        rcu_stall_seconds=scenario.limits.rcu_stall_s,
    )
