"""A scenario as a program for the scheduler: the same VM, actors and oracles as on real threads."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence

from mmu import invariants
from mmu.probe import Instrument
from mmu.report import Report
from mmu.variant import Variant
from stress.actors.base import Actor
from stress.engines.carrier_choice import AUTO
from stress.engines.controlled import STEP_NS, ControlledRuntime
from stress.engines.program import Instance, ProgramTask, QuietProbe
from stress.engines.session import World
from stress.engines.tasks import Abandoned
from stress.observe.close_calls import STEPS
from stress.scenario.types import Scenario

CLOSE_NS = STEPS * STEP_NS
"""How near is close, on the virtual clock."""


class ScenarioProgram:
    """A scenario, to be run once a schedule. `rounds` is how many steps every actor makes."""

    def __init__(
        self,
        name: str,
        scenario: Scenario,
        variants: Sequence[Variant] = (),
        *,
        record_ops: bool = False,
        observers: Sequence[Instrument] = (),
    ) -> None:
        """`record_ops` keeps what random actors do, for a script; `observers` attach to the probe
        of every schedule."""
        self.record_ops = record_ops
        self.observers = tuple(observers)
        self.name = name
        self.scenario = scenario
        self.variants = tuple(variants)
        self.limit: int = scenario.explore.max_steps
        self.granularity: str = scenario.explore.lock_granularity
        self.memory: str = scenario.explore.memory
        self.carrier = AUTO

    def build(self, runtime: ControlledRuntime, seed: int) -> Instance:
        """A fresh VM with its actors."""
        return ScenarioInstance(self, runtime, seed)


class ScenarioInstance:
    """One VM with its actors, for one schedule."""

    has_start = True

    def __init__(self, program: ScenarioProgram, runtime: ControlledRuntime, seed: int) -> None:
        scenario = program.scenario
        self._runtime = runtime
        probe = QuietProbe(runtime.scheduler, self._observer_failed)
        self.world = world = World(
            scenario,
            seed,
            runtime,
            program.variants,
            probe=probe,
            rounds=scenario.explore.rounds,
            window_ns=CLOSE_NS,
        )
        runtime.on_task_error = world.task_failed
        world.probe.attach(*program.observers)
        try:
            world.set_up()
        except Abandoned:
            world.fail("the scenario cannot be set up: that does not end")
        except Exception as error:
            world.fail("".join(traceback.format_exception(error)))
        if world.stage is not None:
            world.stage.record_ops = program.record_ops
        self.parts: Sequence[ProgramTask] = [
            ProgramTask(actor.name, self._body(actor)) for actor in world.actors
        ]

    def _body(self, actor: Actor) -> Callable[[], None]:
        kvm = self.world.vm.kvm

        def body() -> None:
            _ = kvm.rcu.local.mine, kvm.srcu.local.mine, kvm.mmu_lock.local.mine
            actor.body()

        return body

    def start(self) -> None:
        """Every actor is ready."""
        self.world.run_flags.started.store(True)

    def closing(self) -> Sequence[ProgramTask]:
        """Check the invariants, then destroy the VM."""
        world = self.world
        if world.errors():
            return ()
        if not world.vm.destroyed.value:
            invariants.check(world.vm, invariants.ENDED)
        world.counts["quiescent_checks"].add(1)
        return [ProgramTask("teardown", world.take_down)]

    def reports(self) -> Sequence[Report]:
        """The broken rules, first seen first."""
        return [finding.report for finding in self.world.findings()]

    def errors(self) -> Sequence[str]:
        """What went wrong with the harness; beside a finding that is a consequence."""
        return self.world.errors()

    def progress(self) -> int:
        """A number that changes as long as any actor gets anywhere."""
        return sum(actor.moved() for actor in self.world.actors)

    def totals(self) -> dict[str, int]:
        """The run's counters."""
        return self.world.totals()

    def judged(self, totals: Mapping[str, int]) -> dict[str, int]:
        """How often each rule had something to decide, with these counters."""
        return self.world.judged(totals)

    def points(self) -> tuple[str, ...]:
        """The preemption points that were reached."""
        return self.world.points.reached()

    def outcome(self) -> Hashable:
        """What the guests and devices have seen."""
        return tuple((actor.name, actor.progress) for actor in self.world.actors)

    def _observer_failed(self, hook: str, error: BaseException) -> None:
        self.world.observer_failed(hook, error)
