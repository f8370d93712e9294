"""One run's world: the VM, its actors, everybody who watches - built from a scenario, independent
of the engine."""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Mapping, Sequence

from attrs import frozen

from mmu.export.policies import POLICIES
from mmu.kernels import SERIES
from mmu.kvm import VmConfig
from mmu.machine.vm import VirtualMachine
from mmu.paging.geometry import Geometry
from mmu.posted import PROFILES
from mmu.probe import Probe
from mmu.report import Report, Reporter
from mmu.runtime import Runtime
from mmu.sync.refcount import Refcount
from mmu.task import Task, current
from mmu.variant import Variant
from stress.actors import cast_of
from stress.actors.base import Actor, Stage
from stress.actors.layout import Layout
from stress.actors.run_flags import RunFlags
from stress.mutants import SHIPPED
from stress.observe.close_calls import THREADS_US, CloseCalls
from stress.observe.counts import Counts
from stress.observe.coverage import SpteCoverage
from stress.observe.disturb import Delays, Failures
from stress.observe.gauges import Gauges
from stress.observe.histograms import Histograms
from stress.observe.oracles import attach_all
from stress.observe.points import Points
from stress.observe.recorder import Recorder
from stress.observe.root_lives import Lives
from stress.observe.rules_judged import judged_by_model
from stress.observe.series import Series
from stress.observe.timeline import Timeline
from stress.scenario.counters import AT_THE_END
from stress.scenario.errors import VariantError
from stress.scenario.types import Scenario


@frozen
class Finding:
    """A broken rule as it was first seen, with the time into the run."""

    report: Report
    at_s: float


class World:
    """The VM of one run, its actors and its judges; nothing that only observes. `set_up` and
    `take_down` belong to the engine's order of things."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        runtime: Runtime,
        extra: Sequence[Variant] = (),
        *,
        probe: Probe | None = None,
        rounds: float = math.inf,
        window_ns: int = THREADS_US * 1000,
    ) -> None:
        self.scenario = scenario
        self.seed = seed
        self.runtime = runtime
        self._began = runtime.now()
        self._lock = threading.Lock()
        self._torn = False
        self._findings: list[Finding] = []
        self._errors: list[str] = []
        self.reporter = Reporter(self._found)
        self.probe = probe or Probe(self.observer_failed)
        self.variants = variants_of(scenario, extra)
        self.counts = counts = Counts(runtime)
        failures = Failures(
            runtime,
            scenario.disturbances,
            seed,
            counts["failures_asked"],
            counts["failures_injected"],
        )
        self.vm = self._build_vm(failures)
        self.run_flags = RunFlags(runtime, rounds)
        self.close_calls = CloseCalls(runtime, self.vm, counts, window_ns)
        self.points = Points()
        self.oracles = attach_all(self.vm, scenario.limits)
        self.probe.attach(counts, self.close_calls, self.points)
        self.stage: Stage | None = None
        self.actors: list[Actor] = []

    def _build_vm(self, failures: Failures) -> VirtualMachine:
        try:
            return VirtualMachine(
                vm_config(self.scenario),
                self.variants,
                runtime=self.runtime,
                reporter=self.reporter,
                probe=self.probe,
                fail_function=failures.fail_function,
            )
        except Exception as error:
            if not self.variants:
                raise
            names = ", ".join(variant.name for variant in self.variants)
            raise VariantError(f"the VM cannot be built with {names}: {error}") from error

    def set_up(self) -> None:
        """Create the fixed slots and the actors."""
        scenario = self.scenario
        layout = Layout(self.vm, scenario.vm, scenario.memory)
        layout.create_fixed()
        self.stage = Stage(self.vm, layout, scenario, self.seed, self.counts, self.run_flags)
        self.actors = cast_of(self.stage)

    def take_down(self) -> None:
        """Close the VM fd: with every TDP FD closed before, this destroys the VM and checks that
        nothing is left; a VM that is left is a finding."""
        assert self.stage is not None
        self.stage.close_vm()
        destroyed = self.vm.destroyed.value
        self.counts["teardowns"].add(destroyed)
        kvm = self.vm.kvm
        if not destroyed:
            self._left("vm", "the VM is not destroyed", "kvm_put_kvm()", kvm.users_count)
        elif kvm.mm_users.read() != (not kvm.mm_gone.value):
            self._left("mm", "the address space has users", "mmput()", kvm.mm_users)

    def _left(self, what: str, headline: str, source: str, users: Refcount) -> None:
        """Something is left of a VM whose file descriptors are all closed."""
        self.vm.kvm.warn(
            "O11",
            f"leak-{what}",
            f"WARNING: every file descriptor is closed and no task is inside KVM, but {headline}: "
            f"{users.read()} references",
            "the last file of a VM, its own fd or a TDP FD, drops the last reference and destroys "
            "it; whoever works on an address space gives it back",
            f"{source}; reference 1.3, 2.13",
            subject=what,
            extra=tuple(users.history()),
        )

    def findings(self) -> list[Finding]:
        """What was found so far, each with its current count, first seen first."""
        counts = {report.signature: report for report in self.reporter.reports}
        with self._lock:
            return [
                Finding(counts.get(item.report.signature, item.report), item.at_s)
                for item in self._findings
            ]

    def is_expected(self, finding: Finding) -> bool:
        """Whether this is what the scenario is about; without expectations any finding is."""
        expect = self.scenario.expect
        expected: set[str] = set(expect.codes) or set(expect.rules)
        return not expected or bool(finding.report.names() & expected)

    def owes(self) -> bool:
        """Whether something that the scenario asks for has not happened yet, and the end of the
        run will not bring it about: an obligation, or the first of the expected findings."""
        expect, findings = self.scenario.expect, self.findings()
        if expect.names and not expect.at_the_end:
            return not any(map(self.is_expected, findings))
        totals = self.totals()
        return not findings and any(
            totals[name] + AT_THE_END.get(name, 0) < needed
            for name, needed in self.scenario.obligations.items()
        )

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

    def judged(self, totals: Mapping[str, int]) -> dict[str, int]:
        """How often each rule had something to decide, so far; `totals` are the counters."""
        judged = judged_by_model(totals)
        for oracle in self.oracles:
            for rule, counter in oracle.judged.items():
                judged[rule] += counter.value
        return judged

    def elapsed(self) -> float:
        """Seconds since the session was made."""
        return (self.runtime.now() - self._began) / 1e9

    def _found(self, report: Report) -> None:
        if report.rule in self.scenario.oracles.off:
            return
        if self._torn or current.task.error is not None:
            return
        with self._lock:
            self._findings.append(Finding(report, round(self.elapsed(), 3)))

    def task_failed(self, task: Task, error: BaseException) -> None:
        """A task raised, which is a harness error. What was found before still weighs more; from
        now on nothing is a finding, as the task has left things half done."""
        self._torn = True
        trace = "".join(traceback.format_exception(error))
        self.fail(f"task {task} raised {error!r}\n{trace}")

    def observer_failed(self, hook: str, error: BaseException) -> None:
        """An observer raised: the harness has failed."""
        where = "".join(traceback.format_exception(error))
        self.fail(f"an observer raised in {hook}: {error!r}\n{where}")


class Session(World):
    """A world with everybody who watches it, for a run on real threads."""

    def __init__(
        self, scenario: Scenario, seed: int, runtime: Runtime, extra: Sequence[Variant] = ()
    ) -> None:
        super().__init__(scenario, seed, runtime, extra)
        self.histograms = Histograms(runtime)
        self.gauges = Gauges(self.vm)
        self.recorder = Recorder(runtime, self.vm.kvm.layout)
        self.reporter.enrich = self.recorder.enrich
        delays = Delays(
            runtime, scenario.disturbances, seed, self.counts["delays_asked"], self.counts["delays"]
        )
        self.coverage = SpteCoverage(runtime, self.vm.kvm.layout)
        self.lives = Lives(self.elapsed)
        self.series = Series(self.histograms.write_held_ns)
        self.timeline = Timeline(runtime, self._began)
        self.probe.attach(
            self.histograms, self.gauges, self.recorder, self.coverage, self.lives, delays
        )
        if scenario.observe.timeline:
            self.probe.attach(self.timeline)

    def interrupt_vcpus(self, interrupt: bool) -> None:
        """Make every KVM_RUN return soon, or stop doing so."""
        for vcpu in self.vm.vcpus():
            if interrupt:
                vcpu.interrupt()
            else:
                vcpu.immediate_exit.store(False)


def variants_of(scenario: Scenario, extra: Sequence[Variant] = ()) -> list[Variant]:
    """Everything that makes this VM differ from the mended design on 6.6 with the seed's policy,
    mildest first."""
    vm = scenario.vm
    return [
        *SERIES[vm.kernel],
        POLICIES[vm.policy],
        *PROFILES[vm.profile],
        *(SHIPPED[name] for name in vm.variants),
        *extra,
    ]


def suspects_of(report: Report, known: Sequence[Variant]) -> tuple[str, ...]:
    """The titles of the known defects that break the rule of this report."""
    return tuple(variant.title for variant in known if report.names() & set(variant.expects))


def vm_config(scenario: Scenario) -> VmConfig:
    """The model's own configuration for a scenario."""
    vm = scenario.vm
    return VmConfig(
        geometry=Geometry(vm.levels, vm.entries),
        frames=vm.frames,
        huge_2m=vm.huge_2m,
        huge_1g=vm.huge_1g,
        max_level=vm.max_level,
        mmu_lock=vm.mmu_lock,
        have_exported_tdp=vm.have_exported_tdp,
        ad_bits=vm.ad_bits,
        pml=vm.pml,
        mmio_gen_bits=vm.mmio_gen_bits,
        nx_huge_pages=vm.nx_huge_pages,
        nx_recovery_ratio=vm.nx_recovery_ratio,
        eager_page_split=vm.eager_page_split,
        manual_protect=vm.manual_protect,
        dirty_initially_set=vm.dirty_initially_set,
        iommu_hint=vm.iommu_hint,
        pcpus=vm.pcpus,
        rcu_stall_seconds=scenario.limits.rcu_stall_s,
    )
