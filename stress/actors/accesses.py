"""What a guest or a device accesses when chance decides: bursts of accesses within a window of
pages.

An access is gfn << 1 | is_write, with `FETCH` added for an instruction.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator

from attrs import frozen

from mmu.machine.vcpu import FETCH
from stress.actors.base import Stage
from stress.actors.layout import FrameRange, Layout

BURST = 48
"""Accesses that a guest or device makes in one window before it goes elsewhere."""
PATTERN = 4096
"""Length of a prepared list of accesses."""


@frozen
class Habits:
    """The shares of writes, of fetches, of churning and of unmapped gfns, and the pages of a
    window."""

    write: float
    churn: float
    unmapped: float
    window: int
    fetch: float = 0.0


class Bursts:
    """Draws accesses. They come in bursts within a window of pages, as programs make them, so that
    translations get reused."""

    def __init__(self, layout: Layout, dice: random.Random, as_id: int, habits: Habits) -> None:
        self._layout = layout
        self._dice = dice
        self._habits = habits
        self._fixed = [place for place in layout.fixed if place.as_id == as_id]
        self._moving = [home for slot in layout.churn for home in slot.homes if home.as_id == as_id]

    def burst(self) -> Iterator[int]:
        """A burst at another place."""
        dice = self._dice
        place = self._place()
        if place is None:
            gfn = self._layout.somewhere_unmapped(dice)
            yield from [gfn << 1] * BURST
            return
        first = dice.randrange(place.pages)
        for _ in range(BURST):
            yield self._access(place, first)

    def _place(self) -> FrameRange | None:
        dice, fixed, moving = self._dice, self._fixed, self._moving
        if not moving and not fixed:
            return None
        return dice.choice(
            moving if moving and (dice.random() < self._habits.churn or not fixed) else fixed
        )

    def _access(self, place: FrameRange, first: int) -> int:
        dice, habits = self._dice, self._habits
        gfn = place.gfn + (first + dice.randrange(habits.window)) % place.pages
        if dice.random() < habits.unmapped:
            gfn = self._layout.somewhere_unmapped(dice)
        if habits.fetch and dice.random() < habits.fetch:
            return gfn << 1 | FETCH
        return gfn << 1 | (dice.random() < habits.write)


class AccessProgram(ABC):
    """An endless list of accesses, gone through in order."""

    @abstractmethod
    def ahead(self, count: int) -> tuple[int, ...]:
        """The next accesses; they stay the next ones until `advance`."""

    @abstractmethod
    def advance(self, count: int) -> None:
        """So many of them were made."""

    @abstractmethod
    def jump(self) -> None:
        """Go on elsewhere."""


class PreparedAccesses(AccessProgram):
    """Drawn before the run starts, so that the run pays nothing for it."""

    def __init__(self, bursts: Bursts, dice: random.Random) -> None:
        self._dice = dice
        accesses: list[int] = []
        while len(accesses) < PATTERN:
            accesses += bursts.burst()
        self._accesses = tuple(accesses)
        self._position = 0

    def ahead(self, count: int) -> tuple[int, ...]:
        """The next accesses, round and round."""
        first = self._position
        found = self._accesses[first : first + count]
        while len(found) < count:
            found += self._accesses[: count - len(found)]
        return found

    def advance(self, count: int) -> None:
        """So many of them were made."""
        self._position = (self._position + count) % len(self._accesses)

    def jump(self) -> None:
        """Go on at a random place of the list."""
        self._position = self._dice.randrange(len(self._accesses))


class DrawnAccesses(AccessProgram):
    """Drawn when they are needed: for runs so short that most of a prepared list would never be
    used."""

    def __init__(self, bursts: Bursts, dice: random.Random) -> None:
        self._dice = dice
        self._bursts = bursts
        self._burst: Iterator[int] = iter(())
        self._ahead: list[int] = []

    def ahead(self, count: int) -> tuple[int, ...]:
        """The next accesses."""
        while len(self._ahead) < count:
            access = next(self._burst, None)
            if access is None:
                self._burst = self._bursts.burst()
            else:
                self._ahead.append(access)
        return tuple(self._ahead[:count])

    def advance(self, count: int) -> None:
        """So many of them were made."""
        del self._ahead[:count]

    def jump(self) -> None:
        """Go on in the middle of another burst."""
        self._ahead.clear()
        self._burst = self._bursts.burst()
        skipped = self._dice.randrange(BURST)
        for _ in range(skipped):
            next(self._burst)


def program(stage: Stage, dice: random.Random, as_id: int, habits: Habits) -> AccessProgram:
    """A program for an actor of this stage, as long as its run may need it."""
    bursts = Bursts(stage.layout, dice, as_id, habits)
    return (
        PreparedAccesses(bursts, dice)
        if stage.run_flags.rounds == math.inf
        else DrawnAccesses(bursts, dice)
    )
