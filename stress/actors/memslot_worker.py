"""The memslot worker: creates, moves and deletes memslots, and releases the memory behind a deleted
one at once."""

from __future__ import annotations

from collections.abc import Iterator

from stress.actors.base import Actor, Stage
from stress.actors.slots import SlotUpdates
from stress.scenario.operations import Op
from stress.scenario.scripts import WORKER

OPERATIONS = ("delete", "move", "flags", "get-log")
"""What may be done to a slot that is there."""
TICK_S = 0.001
PATIENCE = 100
"""So many ticks without any access, and the guests are not waited for."""


class MemslotWorker(Actor):
    """One user-space thread that reconfigures guest memory while everybody uses it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, WORKER)
        self._dice = stage.dice(self.name)
        config = stage.scenario.actors.memslot_worker
        self._pause = config.pause_s
        self._accesses = config.guest_accesses
        self._created = False
        self._weights: list[float] = [
            config.delete_weight,
            config.move_weight,
            config.flags_weight,
            config.log_weight,
        ]
        self.verbs |= SlotUpdates(stage).verbs

    def choose(self) -> Iterator[Op]:
        """One operation on one slot: create it if it is absent, else delete, move or change it."""
        churn = self.stage.layout.churn
        number = self._dice.randrange(len(churn))
        absent = churn[number].backing.value is None
        self._created = absent
        yield Op(
            "create" if absent else self._dice.choices(OPERATIONS, self._weights)[0], (number,)
        )

    def rest(self) -> None:
        """A random pause; with `guest_accesses`, a slot that was created stays until guests have
        made so many."""
        if self._pause:
            self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause)
        if self._accesses and self._created:
            self._wait_for_guests()

    def _wait_for_guests(self) -> None:
        """Until the guests have done enough, or nothing at all for some time, or everybody is to
        stand still."""
        runtime, flags = self.stage.vm.kvm.runtime, self.stage.run_flags
        made = self._guest_accesses()
        target, idle = made + self._accesses, 0
        while (
            made < target and idle < PATIENCE and not (flags.stopping.value or flags.pausing.value)
        ):
            runtime.sleep(TICK_S)
            before, made = made, self._guest_accesses()
            idle = 0 if made > before else idle + 1

    def _guest_accesses(self) -> int:
        return sum(actor.totals().get("vcpu_accesses", 0) for actor in self.stage.cast)
