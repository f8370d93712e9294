"""Which preemption points (reference 2.16) were reached, whatever engine ran."""

from __future__ import annotations

from typing import Final, get_args

from mmu.probe import Instrument, override
from stress.scenario.types import PreemptionPoint

POINTS: Final[tuple[str, ...]] = get_args(PreemptionPoint)
"""Every point that the model has, in order."""


class Points(Instrument):
    """An instrument. Every fault passes several points, so all it does at one that is known
    already is to look it up."""

    def __init__(self) -> None:
        self._reached: set[str] = set()

    @override
    def point(self, name: str) -> None:
        if name not in self._reached:
            self._reached.add(name)

    def reached(self) -> tuple[str, ...]:
        """Those reached so far, in order; one that a user's variant has made up does not count."""
        return tuple(name for name in POINTS if name in self._reached)
