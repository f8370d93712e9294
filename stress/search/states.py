"""State caching: a schedule that comes to a state in which an earlier one has been is given up.

A state is named by the class of what has led to it (Musuvathi and Qadeer, "Partial-Order Reduction for Context-Bounded State
Exploration", MSR-TR-2007-12): everything that tasks share is made by the runtime, and what a task keeps for itself follows
from what it has seen, so two beginnings that order everything that does not commute alike have led to one state - of the model,
and of whoever watches it, for what observers read counts, too. It is the notion of sameness that DPOR rests on, and nothing is
compared that could be compared wrongly: values, objects and the books of oracles have no names of their own here.

Coarser states, of equal values however they came about, would lose findings: which order of events has brought a value about is
what the happens-before check judges. And with DPOR nothing is gained: where sleep sets are kept, no two beginnings that are run
are of one class.
"""

from __future__ import annotations

from typing import Final

MOST_STATES: Final = 1_000_000
"""So many states are remembered where nothing else is said; they take about 100 MB."""


class States:
    """The states that a search has been in, `most` of them at most: later ones are not remembered, so that schedules are
    repeated, but none is lost."""

    def __init__(self, most: int = MOST_STATES) -> None:
        self.most = most
        self._known: set[int] = set()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def full(self) -> bool:
        """Whether there is no room for another."""
        return len(self._known) >= self.most

    def met(self, state: int) -> bool:
        """Whether it was here before; if not, it is now."""
        if state in self._known:
            return True
        if not self.full:
            self._known.add(state)
        return False
