"""Where the memory of slots lies in the host's address space, told from the ranges of mmu_notifier
invalidations, where the recording does not have `userspace_addr`.

A range that takes a part of a slot shows the place for certain. One that takes all of it, and one
that takes nothing of it, leave out places; so do those of the same slot's other lives, for user
space makes its slots again as they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from attrs import define, field

from stress.trace.conform_script import DELETE, MOVE, PAGE, ConformScript, Operation

UNKNOWN_HVA: Final = 1 << 40
"""Where memory is put that no notifier has ever named, in pages; far from everything real."""
_ALIGNED: Final = 1 << 18
"""Pages of 1 GiB: guest and host addresses agree below that, so that huge pages are possible where
the host had them."""

Span = tuple[int, int]


@define(eq=False)
class Slot:
    """A slot while it lives. `places` are the page numbers at which its memory may begin, from the
    first to the last; None while no range has shown anything."""

    made_by: Operation
    base: int
    npages: int
    places: Span | None = None
    not_at: list[Span] = field(factory=list)
    """Ranges that took nothing of it."""

    @property
    def identity(self) -> tuple[int, int, int]:
        """What is the same when user space makes the slot again."""
        given = self.made_by.given
        return given.get("as_id", 0), given["slot"], self.npages

    def narrow(self, places: Span) -> None:
        """It begins at one of these places, too; what contradicts the ones known is of another
        memory, and is left out."""
        known = self.places or places
        both = max(known[0], places[0]), min(known[1], places[1])
        if both[0] <= both[1]:
            self.places = both

    def allows(self, place: int) -> bool:
        """Whether it can begin there."""
        if self.places is None or not self.places[0] <= place <= self.places[1]:
            return False
        return self._behind(place) == place

    def first(self) -> int | None:
        """The first place where it can begin."""
        if self.places is None:
            return None
        place = self._behind(self.places[0])
        return place if place <= self.places[1] else None

    def _behind(self, place: int) -> int:
        """The place itself, or the next behind the ranges that leave it out."""
        moved = True
        while moved:
            moved = False
            for start, end in self.not_at:
                if start < place + self.npages and place < end:
                    place, moved = end, True
        return place


@define
class Slots:
    """The slots as the recording goes on."""

    now: dict[tuple[int, int], Slot] = field(factory=dict)
    all: list[Slot] = field(factory=list)
    covered: set[Span] = field(factory=set)
    """Every range of gfns that a slot has ever had."""

    def change(self, operation: Operation) -> None:
        """kvm_set_memory_region() has returned."""
        given = operation.given
        key = given.get("as_id", 0), given["slot"]
        if given.get("rc", 0) < 0 or given.get("change") is None:
            return
        if given["change"] != DELETE:
            self.covered.add((given["gfn"], given["gfn"] + given["npages"]))
        if given["change"] == DELETE:
            self.now.pop(key, None)
        elif key in self.now:
            self.now[key].base = given["gfn"]
        elif given["change"] != MOVE:
            slot = self.now[key] = Slot(operation, given["gfn"], given["npages"])
            address = given.get("userspace_addr")
            if address is not None:
                slot.narrow((address >> PAGE, address >> PAGE))
            self.all.append(slot)

    def had(self, given: dict[str, Any]) -> bool:
        """Whether a slot with that number has ever been created."""
        return any(slot.made_by.given["slot"] == given["slot"] for slot in self.all)

    def learn(self, operation: Operation, *, quiet: bool) -> None:
        """An invalidation has taken parts of slots; `quiet` says that no slot changed meanwhile, so
        that it took nothing of all others."""
        start, end = operation.given["start"] >> PAGE, -(-operation.given["end"] >> PAGE)
        taken: set[int] = set()
        for done in operation.did:
            if done.kind == "unmap" and None not in done.values[:3]:
                first, last, number = done.values[:3]
                slot = self._slot_of(first, last, number, taken)
                if slot is not None:
                    taken.add(id(slot))
                    slot.narrow(_places(slot, (start, end), (first, last)))
        if quiet:
            for slot in self.now.values():
                if id(slot) not in taken:
                    slot.not_at.append((start, end))

    def _slot_of(self, first: int, last: int, number: int, taken: set[int]) -> Slot | None:
        """The slot of that number that has these gfns, and that the range has not met yet."""
        for (_, known), slot in self.now.items():
            inside = slot.base <= first and last <= slot.base + slot.npages
            if known == number and inside and id(slot) not in taken:
                return slot
        return None

    def place(self) -> None:
        """Decide where each slot's memory lies."""
        lives: dict[tuple[int, int, int], list[Slot]] = {}
        for slot in self.all:
            lives.setdefault(slot.identity, []).append(slot)
        for same in lives.values():
            _share(same)
        shifts = {
            slot.places[0] - slot.made_by.given["gfn"]
            for slot in self.all
            if slot.places is not None and slot.places[0] == slot.places[1]
        }
        for number, slot in enumerate(self.all):
            slot.made_by.given["hva"] = _hva(slot, number, shifts)


def _places(slot: Slot, taken: Span, gfns: Span) -> Span:
    """Where a slot's memory begins of which a range of host pages took these gfns."""
    if gfns[0] > slot.base:
        place = taken[0] - (gfns[0] - slot.base)
    elif gfns[1] < slot.base + slot.npages:
        place = taken[1] - (gfns[1] - slot.base)
    else:
        return taken[0], taken[1] - slot.npages
    return place, place


def _share(lives: list[Slot]) -> None:
    """What is known of one life of a slot is known of all, unless they contradict one another."""
    together = Slot(lives[0].made_by, lives[0].base, lives[0].npages)
    spans = [slot.places for slot in lives if slot.places is not None]
    for span in spans:
        together.narrow(span)
    if together.places is None or any(
        not (span[0] <= together.places[0] and together.places[1] <= span[1]) for span in spans
    ):
        return
    together.not_at = [span for slot in lives for span in slot.not_at]
    if together.first() is None:
        return
    for slot in lives:
        slot.places, slot.not_at = together.places, together.not_at


def _hva(slot: Slot, number: int, shifts: Iterable[int]) -> int:
    """A place that fits all that is known; of several, one where guest and host lie to each other
    as they do elsewhere."""
    gfn: int = slot.made_by.given["gfn"]
    if slot.places is None:
        return UNKNOWN_HVA + number * 64 * _ALIGNED + gfn % _ALIGNED
    alike = next((gfn + shift for shift in sorted(shifts) if slot.allows(gfn + shift)), None)
    return alike or slot.first() or slot.places[0]


def find_memory(script: ConformScript) -> Slots:
    """The slots of a recording, each placed (`given["hva"]`, in pages)."""
    slots = Slots()
    changes = [_lines(each) for each in script.operations if each.kind == "set-region"]
    for operation in script.operations:
        if operation.kind == "set-region":
            slots.change(operation)
        elif operation.kind == "range-start" and "end" in operation.given:
            begun, over = _lines(operation)
            quiet = not any(first <= over and begun <= last for first, last in changes)
            slots.learn(operation, quiet=quiet)
    slots.place()
    return slots


def _lines(operation: Operation) -> Span:
    """The first and the last line of an operation."""
    return operation.line, operation.did[-1].line if operation.did else operation.line
