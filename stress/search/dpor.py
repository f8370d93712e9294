"""Dynamic partial-order reduction: explores every class of schedules, most of them once.

Source sets with sleep sets (Abdulla, Aronis, Jonsson, Sagonas, "Optimal dynamic partial order
reduction", POPL 2014): after each execution every race in it - two conflicting events of different
tasks with nothing ordered in between - asks for an execution in which the second comes first,
unless one that is equivalent has been or will be explored. A lock that is held and a wait that is
false are races with whatever closed them, not with what opens them. What has opened a wait is known
where it had looked in vain before (`Dpor._find_sooner`), and of a latched wait, which is no race at
all.
"""

from __future__ import annotations

from typing import NamedTuple

from stress.engines.program import Run
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.steps import (
    ACQUIRE,
    READ_ACQUIRE,
    READ_RELEASE,
    RELAX,
    RELEASE,
    START,
    WAIT,
    Access,
    Look,
    looked_at,
)
from stress.engines.tasks import ControlledTask
from stress.search.happens_before import (
    GROUP,
    LOADS,
    Clock,
    HappensBefore,
    accesses,
    conflict,
    order_of,
)

_RELEASES = frozenset({RELEASE, READ_RELEASE})
_GATED = frozenset({ACQUIRE, READ_ACQUIRE})
_WAITING = frozenset({WAIT, RELAX})


class _PathNode:
    """A state on the current path: who can run (`enabled`, a bit each), who was chosen, who has to
    be tried, who was."""

    __slots__ = ("backtrack", "chosen", "done", "enabled", "sleep")

    def __init__(self, enabled: int, chosen: int, sleep: dict[int, list[Access]]) -> None:
        self.enabled = enabled
        self.chosen = chosen
        self.sleep = sleep
        self.backtrack = 1 << chosen
        self.done: dict[int, list[Access]] = {}

    def left(self) -> int:
        """The tasks, a bit each, that still have to be tried here."""
        left = self.backtrack & self.enabled & ~(1 << self.chosen)
        for task in (*self.done, *self.sleep):
            left &= ~(1 << task)
        return left


class Dpor:
    """Exhaustive search. `exhausted` once every class was explored; needs an executor that keeps
    extras."""

    name = "dpor"

    def __init__(self) -> None:
        self.exhausted = False
        self.executions = 0
        self.cut = 0
        """Executions that were given up because others had covered what they would have shown."""
        self._nodes: list[_PathNode] = []
        self._prefix = 0
        """How many events of the next execution are given: all but the last as before, the last one
        new."""

    def begin(self, scheduler: Scheduler) -> Picker:
        """Follow the path, then go on by default, avoiding what sleeps."""
        nodes = self._nodes
        given = self._prefix
        tasks = scheduler.tasks
        scheduler.keep_extras = True
        sleep: dict[int, list[Access]] = {}

        def pick() -> ControlledTask:
            nonlocal sleep
            depth = len(scheduler.trace)
            if depth < given:
                return tasks[nodes[depth].chosen - 1]
            if depth:
                sleep = _still_asleep(nodes[depth - 1], scheduler, depth - 1)
            enabled = 0
            chosen = None
            running = scheduler.running
            for task in scheduler.runnable:
                enabled |= 1 << task.index
                if task.index not in sleep and (
                    chosen is None
                    or task is running
                    or (chosen is not running and task.index < chosen.index)
                ):
                    chosen = task
            if chosen is None:
                scheduler.give_up()
            nodes.append(_PathNode(enabled, chosen.index, sleep))
            return chosen

        return pick

    def end(self, run: Run) -> None:
        """Find the races of the execution, then the deepest state in which somebody is left to
        try."""
        self.executions += 1
        self.cut += run.cut
        del self._nodes[len(run.trace) :]
        self._find_races(run)
        self._go_back(run)

    def estimate(self) -> float:
        """The share of the tree that is explored, as far as the tree is known: it only ever turns
        out larger."""
        share, weight = 0.0, 1.0
        for node in self._nodes:
            options = max(1, (node.backtrack & node.enabled).bit_count())
            weight /= options
            share += weight * len(node.done)
        return min(1.0, share)

    def _find_races(self, run: Run) -> None:
        order = order_of(run)
        first_new = max(0, self._prefix - 1)
        waits: list[_Wait] = []
        writes: dict[int, list[int]] = {}
        for position, (task, kind, _) in enumerate(run.trace):
            order.arrive(position)
            touched = order.touched(position)
            looks = run.looks.get(position)
            races: list[int] = []
            if looks:
                # a wait that has timed out touches more, but nothing that it could have come before
                seen = [*(touched if looks[-1][1] else ()), *looked_at(looks)]
                waits.append(_wait(order, position, looks, task, kind, seen))
            elif (
                looks is None and position >= first_new and kind != START
            ):  # nothing starts before it is spawned
                races = _races(order, task, kind, touched)
            order.advance(position, touched)
            _note_writes(writes, position, touched)
            for earlier in races:
                self._demand(
                    earlier, task, _initials(order, earlier, position, task, order.clocks[position])
                )
        # it, too, could have come first
        for task, kind, touched, looks in () if run.completed else run.blocked:
            waits.append(_wait(order, len(run.trace), looks, task, kind, touched))
        for wait in waits:
            self._find_sooner(wait, order, writes)

    def _find_sooner(self, wait: _Wait, order: HappensBefore, writes: dict[int, list[int]]) -> None:
        """What a wait reads, and so what it conflicts with, hangs on what it sees. Where it had
        looked before an event that it races with, it depends on those that write to what it saw
        then, wherever in the execution they come: without any it cannot come sooner, if it looked
        in vain; and each of them may lead to where it does. So every wait is judged anew in every
        execution, in which something else may follow."""
        for earlier in wait.races:
            look = wait.look_at(earlier)
            writers = wait.writers(look, earlier, order, writes) if look is not None else []
            if look is None or look[1] or writers:
                self._demand(
                    earlier,
                    wait.task,
                    _initials(order, earlier, wait.position, wait.task, wait.clock),
                )
            for writer in writers:
                who = order.trace[writer][0]
                self._demand(
                    earlier,
                    who,
                    _initials(order, earlier, writer, who, order.clocks[writer], past=True),
                )

    def _demand(self, earlier: int, task: int, initials: int) -> None:
        """Make sure that some execution from the state before `earlier` begins with one of
        `initials`, best with `task`."""
        if earlier >= len(self._nodes):
            return
        node = self._nodes[earlier]
        tried = node.backtrack
        for sleeper in node.done:
            tried |= 1 << sleeper
        if initials & tried:
            return
        wanted = initials & node.enabled
        if not wanted:
            node.backtrack |= node.enabled
        elif wanted >> task & 1:
            node.backtrack |= 1 << task
        else:
            node.backtrack |= wanted & -wanted

    def _go_back(self, run: Run) -> None:
        nodes = self._nodes
        while nodes:
            node = nodes[-1]
            left = node.left()
            position = len(nodes) - 1
            node.done[node.chosen] = accesses(run.trace[position], run.extras.get(position))
            if left:
                node.chosen = (left & -left).bit_length() - 1
                self._prefix = len(nodes)
                return
            nodes.pop()
        self.exhausted = True


class _Wait(NamedTuple):
    """A wait, or an operation that was never done because its task was blocked for ever, and the
    events that it races with."""

    position: int
    task: int
    looks: list[Look]
    races: list[int]
    clock: Clock
    """After everything that writes to what it has seen, in vain or not: who may begin is not to be
    taken for a task that could not, had the wait read something else."""

    def look_at(self, earlier: int) -> Look | None:
        """How it had looked in the state before event `earlier`; None if its task had not come to
        it."""
        return next((look for look in reversed(self.looks) if look[0] <= earlier and look[2]), None)

    def writers(
        self, look: Look, earlier: int, order: HappensBefore, writes: dict[int, list[int]]
    ) -> list[int]:
        """The events, not ordered after `earlier` nor after the wait, that write after `earlier` to
        what this look has read."""
        trace, numbers, clocks = order.trace, order.numbers, order.clocks
        after = [(trace[earlier][0], numbers[earlier])]
        if self.position < len(trace):
            after.append((self.task, numbers[self.position]))
        found = {at for _, word in look[2] for at in writes.get(word, ()) if at > earlier}
        return sorted(
            at for at in found if all(clocks[at][owner] < number for owner, number in after)
        )


def _wait(
    order: HappensBefore,
    position: int,
    looks: list[Look],
    task: int,
    kind: int,
    touched: list[Access],
) -> _Wait:
    return _Wait(
        position, task, looks, _races(order, task, kind, touched), order.clock_of(task, touched)
    )


def _note_writes(writes: dict[int, list[int]], position: int, touched: list[Access]) -> None:
    for kind, word in touched:
        if GROUP[kind] != LOADS:
            writes.setdefault(word, []).append(position)


def _still_asleep(node: _PathNode, scheduler: Scheduler, position: int) -> dict[int, list[Access]]:
    """Who sleeps after event `position`: those whose next operation commutes with it."""
    if not node.sleep and not node.done:
        return {}
    event = scheduler.trace[position]
    touched = accesses(event, scheduler.extras.get(position))
    asleep = {**node.sleep, **node.done}
    asleep.pop(event[0], None)
    return {task: mine for task, mine in asleep.items() if not conflict(mine, touched)}


def _races(order: HappensBefore, task: int, kind: int, touched: list[Access]) -> list[int]:
    """The earlier events that race with the operation that `task` does next: in conflict with it
    and not ordered before it.

    Of an operation that may have to wait every such event counts, not only the last: what was true
    or free between two of them cannot be told from the schedule at hand. A release is no race: what
    it opens was closed by an acquisition.
    """
    clock = order.current[task]
    trace, numbers = order.trace, order.numbers
    waiting = kind in _WAITING
    found: set[int] = set()
    for what, word in touched:
        record = order.words.get(word)
        if record is None:
            continue
        group = GROUP[what]
        gated = what in _GATED
        for earlier in reversed(record.history):
            other, other_kind, _ = trace[earlier]
            if group and _group_of(order, earlier, word) == group:
                continue
            if other == task or clock[other] >= numbers[earlier]:
                if not _group_of(order, earlier, word):
                    break
                continue
            if gated and other_kind in _RELEASES:
                continue
            found.add(earlier)
            if not (gated or waiting or _group_of(order, earlier, word)):
                break
    return list(found)


def _group_of(order: HappensBefore, position: int, word: int) -> int:
    """The group of an event's access to `word`; of several the strongest."""
    _, kind, where = order.trace[position]
    if where == word and position not in order.extras:
        return GROUP[kind]
    return min(GROUP[kind] for kind, where in order.touched(position) if where == word)


def _initials(
    order: HappensBefore, earlier: int, later: int, task: int, last: Clock, *, past: bool = False
) -> int:
    """Who can begin (a bit each) what follows the state before `earlier`, without `earlier` and
    what depends on it, up to the operation `later` of `task`, which has the clock `last`; with
    `past` only what comes before that by its clock."""
    trace, clocks, numbers = order.trace, order.clocks, order.numbers
    owner, number = trace[earlier][0], numbers[earlier]
    firsts: dict[int, int] = {}
    initials = 0
    for position in range(earlier + 1, later):
        clock = clocks[position]
        who = trace[position][0]
        if clock[owner] >= number or who in firsts or (past and last[who] < numbers[position]):
            continue
        if all(clock[other] < first for other, first in firsts.items()):
            initials |= 1 << who
        firsts[who] = numbers[position]
    if task not in firsts and all(last[other] < first for other, first in firsts.items()):
        initials |= 1 << task
    return initials
