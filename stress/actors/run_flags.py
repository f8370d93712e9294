"""How an engine tells actors to start, to stand still and to stop."""

from __future__ import annotations

import math

from mmu.runtime import Runtime


class RunFlags:
    """Shared flags. Actors look at them between steps, where they hold no lock and are outside the
    guest."""

    def __init__(self, runtime: Runtime, rounds: float = math.inf) -> None:
        self._runtime = runtime
        self.rounds = rounds
        """How many steps an actor makes at most."""
        self.started = runtime.cell("control.started", False)
        self.stopping = runtime.cell("control.stopping", False)
        self.pausing = runtime.cell("control.pausing", False)
        self.ready = runtime.counter("control.ready")
        self.parked = runtime.counter("control.parked")

    def wait_for_start(self) -> None:
        """An actor is set up; all begin together."""
        self.ready.fetch_add(1)
        self._runtime.wait_until(
            "the start of the run", lambda: self.started.value or self.stopping.value
        )

    def checkpoint(self) -> None:
        """Between two steps: stand still while a pause is on."""
        if self.pausing.value and not self.stopping.value:
            self.parked.fetch_add(1)
            self._runtime.wait_until(
                "the end of a pause", lambda: not self.pausing.value or self.stopping.value
            )
            self.parked.fetch_add(-1)
