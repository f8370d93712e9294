"""The memslot worker: creates, moves and deletes memslots, and releases the memory behind a deleted one at once."""

from __future__ import annotations

from collections.abc import Iterator

from stress.actors.base import Actor, Stage
from stress.actors.slots import SlotUpdates
from stress.scenario.script import Op
from stress.scenario.scripts import WORKER

OPERATIONS = ("delete", "move", "flags")
"""What may be done to a slot that is there."""


class MemslotWorker(Actor):
    """One user-space thread that reconfigures guest memory while everybody uses it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, WORKER)
        self._dice = stage.dice(self.name)
        config = stage.scenario.actors.memslot_worker
        self._pause = config.pause_s
        self._weights: list[float] = [config.delete_weight, config.move_weight, config.flags_weight]
        self.verbs |= SlotUpdates(stage).verbs

    def choose(self) -> Iterator[Op]:
        """One operation on one slot: create it if it is absent, else delete, move or change it."""
        churn = self.stage.layout.churn
        number = self._dice.randrange(len(churn))
        absent = churn[number].region.value is None
        yield Op("create" if absent else self._dice.choices(OPERATIONS, self._weights)[0], (number,))

    def rest(self) -> None:
        """A random pause."""
        if self._pause:
            self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._pause)
