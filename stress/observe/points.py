"""How often each preemption point (reference 2.16) was reached, whatever engine ran."""

from __future__ import annotations

from typing import Final, get_args

from mmu.runtime import Runtime
from stress.scenario.types import PreemptionPoint

POINTS: Final[tuple[str, ...]] = get_args(PreemptionPoint)
"""Every point that the model has, in order."""


class Points:
    """A probe observer with one counter a point, a share of which belongs to each thread."""

    def __init__(self, runtime: Runtime) -> None:
        self._counters = {name: runtime.per_thread_counter(name) for name in POINTS}

    def point(self, name: str) -> None:
        """One arrival; a point that a user's variant has made up is not counted."""
        counter = self._counters.get(name)
        if counter is not None:
            counter.local.shard.n += 1

    def values(self) -> dict[str, int]:
        """The sums now."""
        return {name: counter.value for name, counter in self._counters.items()}
