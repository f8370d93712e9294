"""What an actor is: one thread with a part to play, made of steps; a step is made of operations."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterable

from mmu.errors import KvmError
from mmu.machine.vm import VirtualMachine
from mmu.memory.memslots import MemoryRegion
from mmu.runtime import Cell
from stress.actors.layout import Layout
from stress.actors.run_flags import RunFlags
from stress.observe.counts import Counts
from stress.scenario.operations import Op
from stress.scenario.scripts import script_of
from stress.scenario.types import Scenario


class Stage:
    """What actors share: the VM, where its memory lies, the scenario, the counters and the engine's
    flags.

    `record_ops`, set before the start, makes every actor keep what it does in `performed`. `cast`
    is everybody.
    """

    def __init__(
        self,
        vm: VirtualMachine,
        layout: Layout,
        scenario: Scenario,
        seed: int,
        counts: Counts,
        run_flags: RunFlags,
    ) -> None:
        self.vm = vm
        self.layout = layout
        self.scenario = scenario
        self.seed = seed
        self.counts = counts
        self.run_flags = run_flags
        self.script = script_of(scenario)
        self.prepared = vm.kvm.runtime.cell("script.prepared", 0)
        """How many lines of the setup are done, those of the memslots aside."""
        self.record_ops = False
        self.cast: list[Actor] = []
        self._vm_closed = vm.kvm.runtime.cell("vm_fd.closed", False)

    def close_vm(self) -> None:
        """Close the VM's fd, once."""
        if not self._vm_closed.cmpxchg(False, True):
            self.vm.put()

    def set_region(self, region: MemoryRegion) -> bool:
        """KVM_SET_USER_MEMORY_REGION; a refusal, as fault injection brings about, is counted:
        false."""
        try:
            self.vm.set_user_memory_region(region)
        except KvmError:
            self.counts["memslots_refused"].add(1)
            return False
        return True

    def dice(self, name: str) -> random.Random:
        """The random generator of an actor: its choices follow from the seed and its name alone."""
        return random.Random(f"{self.seed}/{name}")


class Actor:
    """One thread. `begin` runs before the common start, `step` again and again, `end` after the
    last step.

    What an actor does is a list of operations (`stress.scenario.operations`), which `verbs` carry
    out. Without a script each step draws its own (`choose`); with one, each step is its next
    operation.
    `progress` counts steps; the watchdog calls an actor stuck when it stands still.
    """

    parks = True
    """Whether the actor stands still during a pause; one that only serves others does not need
    to."""
    serves = False
    """Whether it only reacts to others: it has no script, and does not wait for the common
    start."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.name = name
        self.progress = 0
        self.verbs: dict[str, Callable[..., object]] = {}
        script = stage.script
        self.script: tuple[Op, ...] | None = script.part(name) if script is not None else None
        self.performed: list[Op] = []
        """What it has done since the start, if that is recorded."""
        self._position = 0
        runtime = stage.vm.kvm.runtime
        self.done: Cell[bool] = runtime.cell(f"{name}.done", False)
        """The last step is over."""
        self.gone: Cell[bool] = runtime.cell(f"{name}.gone", False)
        """And everything after it."""

    def body(self) -> None:
        """What the thread runs."""
        self.begin()
        self._prepare()
        flags = self.stage.run_flags
        if self.serves:
            flags.ready.fetch_add(1)
        else:
            flags.wait_for_start()
        try:
            while not self.finished():
                if self.parks and flags.pausing.value:
                    flags.checkpoint()
                    continue
                self.step()
                self.progress += 1
        finally:
            self.done.value = True
            try:
                self.end()
            finally:
                self.gone.value = True

    def _prepare(self) -> None:
        """This actor's share of the setup, each line in its turn; the memslots' was done before any
        actor was there."""
        stage = self.stage
        script = stage.script
        for turn, (name, op) in enumerate(script.turns() if script is not None else ()):
            if name == self.name:
                mine = functools.partial(self._may_prepare, turn)
                stage.vm.kvm.runtime.wait_until("its turn in the setup", mine)
                self.perform(op)
                stage.prepared.value = turn + 1

    def _may_prepare(self, turn: int) -> bool:
        return self.stage.prepared.value >= turn or self.stage.run_flags.stopping.value

    def finished(self) -> bool:
        """Whether the loop ends: the run is over, or this actor has done its share."""
        flags = self.stage.run_flags
        if flags.stopping.value:
            return True
        if self.script is None:
            return self.progress >= flags.rounds
        return not self.script or (flags.rounds < math.inf and self._position >= len(self.script))

    def begin(self) -> None:
        """Get ready."""

    def step(self) -> None:
        """Do one thing: the next operation of the script, round and round, or what chance brings,
        with a rest after it."""
        script = self.script
        if script is not None:
            op = script[self._position % len(script)]
            self._position += 1
            self.do(op)
            return
        for op in self.choose():
            self.do(op)
        self.rest()

    def choose(self) -> Iterable[Op]:
        """The operations of one random step. Each is drawn when the one before it is done."""
        return ()

    def rest(self) -> None:
        """The pause after a random step."""

    def do(self, op: Op) -> None:
        """Perform an operation, and note it if asked to."""
        if self.stage.record_ops:
            self.performed.append(op)
        self.perform(op)

    def perform(self, op: Op) -> None:
        """Carry out an operation."""
        self.verbs[op.name](*op.args)

    def end(self) -> None:
        """Clean up."""

    def stay(self) -> None:
        """What a script leaves open stays open until everybody's script is done."""
        others = [actor for actor in self.stage.cast if not actor.serves]
        self.stage.vm.kvm.runtime.wait_for_all(
            "the end of everybody's script", *(actor.done for actor in others)
        )

    def moved(self) -> int:
        """A number that changes while the actor gets anywhere; what the watchdog looks at."""
        return self.progress

    def figures(self) -> dict[str, int]:
        """This actor's own counters, for the report; may be read while it runs."""
        return {"steps": self.progress}

    def totals(self) -> dict[str, int]:
        """Its share of the run's counters, by the names of `stress.scenario.counters`."""
        return {}
