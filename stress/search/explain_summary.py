"""An explanation in a few sentences: whose step fell between which two steps of another task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from attrs import frozen

from stress.search.explain_data import ExplainedFinding, Inevitable, StepRow, Switch

_TELLING = (
    re.compile(
        r".*(SPTE\(|role\.invalid|INVALID|zapped|mmu_invalidate_seq|which belongs to|^frees)"
    ),
    re.compile(
        r".*(->mode|->requests|memslots|host PTE|frame|frees|refcount|read "
        r"section|call_rcu|exported|nx_huge|generation)"
    ),
    re.compile(r""),
)
_SAYS_NOTHING = re.compile(r"(\w+_)?(un)?lock\(|.*: 0 -> FROZEN$")
_OBJECT = re.compile(r"\b(?:0x[0-9a-f]{5,}|\w+\[\d+\])")
"""A page-table page, or a numbered object, in a headline."""
MOST_TELLING: Final = 2 * len(_TELLING) - 1
"""What two steps say together of which at least one is about an SPTE, or the like, and the other
about something near it."""
LEAST_TELLING: Final = 4
"""Two steps that say less together, such as the locks or counters of each other, are no story."""


@frozen
class _Point:
    """What the finding is about: the step that it came of, if it was found as it happened, and the
    objects that it names."""

    cause: StepRow | None
    names: frozenset[str]

    def telling(self, row: StepRow) -> int:
        """How much a step says by itself: an SPTE more than a flag, a lock nothing, what the
        finding names more."""
        if _SAYS_NOTHING.match(row.what):
            return 0
        own = next(
            len(_TELLING) - place
            for place, pattern in enumerate(_TELLING)
            if pattern.match(row.what)
        )
        return own + any(name in row.what for name in self.names)

    def of_pair(self, pair: tuple[StepRow, StepRow]) -> tuple[int, int]:
        """How much a conflict says, most if it is what the finding came of, and how late it is."""
        return self.telling(pair[0]) + self.telling(pair[1]) + 3 * (self.cause in pair), pair[
            0
        ].step + pair[1].step


def _said(row: StepRow) -> str:
    """A step in a sentence."""
    return f"step {row.step}, {row.what or 'the last one'}" + (
        f" (in {row.function})" if row.function else ""
    )


def _who(row: StepRow) -> str:
    return f"{row.task} ({row.operation})" if row.operation else row.task


def summary(
    found: ExplainedFinding,
    steps: int,
    rows: Sequence[StepRow],
    switches: Sequence[Switch],
    inevitable: Inevitable | None,
) -> tuple[str, ...]:
    """Who did what between which two steps of whom, and what that broke."""
    decisive = [switch for switch in switches if switch.decisive]
    cause = rows[-1] if rows and found.step < steps else None
    point = _Point(cause, frozenset(_OBJECT.findall(found.headline)))
    stories = [told for switch in decisive if (told := _story(rows, switch, point)) is not None]
    if inevitable is not None and inevitable.step < 0 and not stories and cause is not None:
        alone: tuple[str, ...] = (
            f"{_who(cause)} does {_said(cause)}; what others do before it does not matter.",
        )
    elif (
        inevitable is not None
        and inevitable.step < 0
        and not stories
        and found.task
        and found.step >= steps
    ):
        alone = (
            f"It shows in {found.task}, when everybody else is done, in whatever order they went.",
        )
    else:
        alone = _without_switch(rows, point)
    story = tuple(f"{line}." for line in found.waits) or (max(stories)[1] if stories else alone)
    broken = (
        f"That broke rule {found.title}, which was noticed {found.when(steps)}: "
        f"{found.sentence.rstrip('.')}."
    )
    return (*story, broken, _matters(switches, decisive, inevitable))


def _story(
    rows: Sequence[StepRow], switch: Switch, point: _Point
) -> tuple[tuple[int, int], tuple[str, ...]] | None:
    """What others did while a task was kept from going on, as far as it matters to that task, with
    how telling it is; None if none of it does."""
    mine = [row for row in rows if row.task == switch.away_from]
    before = [row for row in mine if row.step < switch.step]
    after = [row for row in mine if row.step >= switch.step]
    resumed = after[0].step if after else rows[-1].step + 1
    meant = [
        row for row in rows if switch.step <= row.step < resumed and row.task != switch.away_from
    ]
    pairs = [(row, other) for row in meant for other in mine if other.step in row.partners]
    theirs, ours = max(pairs, key=point.of_pair, default=(None, None))
    if theirs is None or ours is None or point.of_pair((theirs, ours))[0] < LEAST_TELLING:
        return None
    start = (
        f"{_who(before[-1])} has done {_said(before[-1])}, and is interrupted."
        if before
        else f"{switch.away_from} has hardly begun."
    )
    reply = f"{_who(theirs)} does {_said(theirs)}."
    if ours.step < switch.step:
        meets = "changes what it has seen in" if " -> " in ours.what else "meets its"
        end = [f"Before it goes on, {reply}", f"That {meets} {_said(ours)}."]
    else:
        meets = "" if ours is rows[-1] else ", which meets that"
        end = [f"Before it goes on, {reply}", f"Then {_who(ours)} does {_said(ours)}{meets}."]
    story = (start, *end)
    return point.of_pair((theirs, ours)), story


def _without_switch(rows: Sequence[StepRow], point: _Point) -> tuple[str, ...]:
    """The two steps of different tasks whose conflict says most, where no single switch decides."""
    steps = {row.step: row for row in rows}
    pairs = [
        (steps[first], row)
        for row in rows
        for first in row.partners
        if first in steps and first < row.step
    ]
    if not pairs and rows:
        return (f"{_who(rows[-1])} does {_said(rows[-1])}; nobody gets in its way.",)
    if not pairs:
        return ("No step of one task gets in the way of another task's.",)
    first, second = max(pairs, key=point.of_pair)
    if point.cause is None and point.of_pair((first, second))[0] < MOST_TELLING:
        return ("No two steps say it by themselves: see what became of the page tables.",)
    return (
        f"{_who(first)} does {_said(first)}.",
        f"After it {_who(second)} does {_said(second)}, which meets that.",
    )


def _matters(
    switches: Sequence[Switch], decisive: Sequence[Switch], inevitable: Inevitable | None
) -> str:
    if not switches:
        which = "No task was interrupted while it could have gone on"
    elif not decisive and len(switches) == 1:
        which = "The one switch is not needed"
    elif not decisive:
        which = f"None of the {len(switches)} switches is needed by itself"
    elif len(switches) == 1:
        which = "The one switch matters: without it nothing fails"
    elif len(decisive) == 1:
        which = (
            f"Of {len(switches)} switches only number {decisive[0].number} matters: without it "
            "nothing fails"
        )
    else:
        names = ", ".join(str(switch.number) for switch in decisive)
        which = (
            f"Of {len(switches)} switches numbers {names} matter: take any one of them away and "
            "nothing fails"
        )
    if inevitable is None:
        return f"{which}."
    if inevitable.step < 0:
        return f"{which}; every order that was tried fails, from the first step on."
    return (
        f"{which}; from step {inevitable.step} on the failure is inevitable, as far as was tried."
    )
