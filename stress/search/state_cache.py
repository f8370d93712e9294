"""State caching: a schedule that comes to a state in which an earlier one has been is given up.

A state is named by the class of what has led to it (the happens-before order stands for the state,
as in CHESS: Musuvathi and Qadeer, PLDI 2007). Everything that tasks share is made by the runtime,
and what a task keeps for itself follows from what it has seen, so two beginnings that order
everything that does not commute alike have led to one state - of the model, and of whoever watches
it, for what observers read counts, too. It is the notion of sameness that DPOR rests on, with what
DPOR takes for granted: no finding hangs on virtual time, or on the order in which an observer hears
of events that commute. Nothing is compared that could be compared wrongly: values, objects and the
books of oracles have no names of their own here.

Coarser states, of equal values however they came about, would lose findings: which order of events
has brought a value about is what the happens-before check judges. Of the first 1,384 classes that
DPOR runs in `two-deletes`, eight in nine end with every task having seen and every word holding the
same as in another; with the order that the check goes by taken into account, none.

With DPOR nothing is gained at all: where sleep sets are kept, no two beginnings that are run are of
one class (none of 41,765 in `detach-vs-delete`). What is left are the searches that repeat
themselves. In `exhaustive/delete-vs-dma`, in thousand steps, without and with: delay:1 37 and 16,
preemption:1 415 and 124, delay:2 1,054 and 370, in about half the time; the higher the bound, the
more. DPOR, where it comes to an end, is still by far the cheaper: it needs 14 thousand for every
order of events there is.
"""

from __future__ import annotations

from typing import Final

MOST_STATES: Final = 1_000_000
"""So many states are remembered where nothing else is said; they take some 80 MB."""


class StateCache:
    """The states that a search has been in, `most` of them at most: later ones are not remembered,
    so that schedules are repeated, but none is lost."""

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
