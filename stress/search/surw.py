"""Selectively uniform random walk: all orders of the interesting operations are about equally
likely.

Zhao, Wolff, Mathur and Roychoudhury, "Selectively Uniform Concurrency Testing" (ASPLOS 2025). The
task that does the next interesting operation is drawn in proportion to how many each still has to
do, which makes every order of them as likely as any other; a task that is not yet spawned counts
with its parent. Until then the others walk at random, but stop before interesting operations of
their own. How many there are is known from earlier schedules.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from stress.engines.program import Run
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.steps import (
    ENDING,
    LOAD,
    MB,
    OWNER_SHIFT,
    READ_ACQUIRE,
    READ_RELEASE,
    RELAX,
    SPAWN,
    START,
    WAIT,
    YIELD,
    Event,
)
from stress.engines.tasks import ControlledTask

_NO_WRITES = frozenset(
    {LOAD, READ_ACQUIRE, READ_RELEASE, WAIT, RELAX, YIELD, SPAWN, START, ENDING, MB}
)
_LEARN_ALWAYS = 16
"""So many schedules are learnt from one by one; of the later ones, every so manieth is."""
_DOUBT = 0.5
"""What a task weighs that is at an interesting operation although it should have none left."""
_STAY = 0.875
"""How likely the running task goes on where every contended word is interesting: the order of all
else hardly matters, and switches cost more than anything."""

Counts = dict[int, float]
"""Operations by task."""


class Profile:
    """What earlier schedules did: which words are contended, and how often each task comes to each
    of them."""

    def __init__(self) -> None:
        self.contended: list[int] = []
        """Words that two tasks have touched and one has written."""
        self.total: Counts = {}
        """Operations on contended words."""
        self.parents: dict[int, int] = {}
        """Of the tasks that are spawned while the schedule runs."""
        self._counts: dict[int, Counts] = defaultdict(dict)
        self._written: set[int] = set()
        self._learnt = 0

    def on(self, word: int) -> Counts:
        """Operations on one word."""
        return self._counts[word]

    def learn(self, trace: Sequence[Event]) -> None:
        """Move the averages towards what happened in `trace`."""
        self._learnt += 1
        share = 1 / min(self._learnt, _LEARN_ALWAYS)
        seen = Counter((word, index) for index, _, word in trace)
        self._written.update({word for _, kind, word in trace if kind not in _NO_WRITES})
        self.parents.update(
            {word >> OWNER_SHIFT: index for index, kind, word in trace if kind == SPAWN}
        )
        for word, counts in self._counts.items():
            for index, mean in counts.items():
                counts[index] = mean + (seen.pop((word, index), 0) - mean) * share
        for (word, index), count in seen.items():
            self._counts[word][index] = float(count)
        self._choose()

    def _choose(self) -> None:
        self.contended = [
            word
            for word, counts in self._counts.items()
            if len(counts) > 1 and word in self._written
        ]
        total: Counts = defaultdict(float)
        for word in self.contended:
            for index, mean in self._counts[word].items():
                total[index] += mean
        self.total = dict(total)


class Intention:
    """Who does the next interesting operation, and how many are left to each task."""

    def __init__(
        self,
        draw: Callable[[], float],
        words: frozenset[int],
        counts: Mapping[int, float],
        parents: Mapping[int, int],
    ) -> None:
        self.left: Counts = defaultdict(float, counts)
        self._draw = draw
        self._words = words
        self._parents = parents
        for child in sorted(parents, reverse=True):  # a child has a higher number than its parent
            self.left[parents[child]] += self.left[child]

    def adopt(self, child: ControlledTask, intended: ControlledTask) -> ControlledTask:
        """`child` no longer counts with its parent; whoever was intended, or the child in its
        stead."""
        parent = self._parents.get(child.index)
        if parent is None:
            return intended
        self.left[parent] -= self.left[child.index]
        return self.sample([intended, child]) if parent == intended.index else intended

    def sample(self, tasks: Sequence[ControlledTask]) -> ControlledTask:
        """One of `tasks` that is not done, by what is left to each; any, where nothing is left."""
        left, words = self.left, self._words
        bounds: list[float] = []
        total = 0.0
        for task in tasks:
            if not task.done:
                weight = left[task.index]
                total += weight if weight > 0 else _DOUBT if task.word in words else 0.0
            bounds.append(total)
        mark = self._draw() * total
        for task, bound in zip(tasks, bounds, strict=True):
            if mark < bound:
                return task
        return tasks[int(self._draw() * len(tasks))]


class Surw:
    """SURW. What is interesting is drawn for each schedule: every contended word, or just one of
    them; the first schedule knows none and is a plain random walk."""

    name = "surw"
    exhausted = False

    def __init__(self, seed: int) -> None:
        self.profile = Profile()
        self._dice = random.Random(seed)
        self._schedules = 0

    def begin(self, scheduler: Scheduler) -> Picker:
        """Choose what is interesting, then draw afresh."""
        draw = self._dice.random
        words, counts = self._interesting()
        intention = Intention(draw, words, counts, self.profile.parents)
        left, sample = intention.left, intention.sample
        runnable, tasks = scheduler.runnable, scheduler.tasks
        stay = _STAY if len(words) > 1 else 0.0
        known = len(tasks)
        intended = sample(tasks)

        def pick() -> ControlledTask:
            task = scheduler.running
            if draw() >= stay or not task.enabled:
                task = runnable[int(draw() * len(runnable))]
            return select(task) if task.word in words else task

        def select(task: ControlledTask) -> ControlledTask:
            nonlocal intended, known
            while known < len(tasks):
                intended = intention.adopt(tasks[known], intended)
                known += 1
            if task is not intended:
                others = [
                    other for other in runnable if other is intended or other.word not in words
                ]
                # Nobody may go on: the intended task is blocked, or done with fewer operations than
                # expected.
                task = others[int(draw() * len(others))] if others else sample(runnable)
            if task.word in words:
                left[task.index] -= 1
                intended = sample(tasks)
            return task

        return pick

    def end(self, run: Run) -> None:
        """Learn from the schedule, if it is its turn."""
        self._schedules += 1
        if self._schedules <= _LEARN_ALWAYS or self._schedules % _LEARN_ALWAYS == 0:
            self.profile.learn(run.trace)

    def _interesting(self) -> tuple[frozenset[int], Counts]:
        """The interesting words and how many operations on them each task does. The fewer, the
        likelier each order of them."""
        profile = self.profile
        contended = profile.contended
        if len(contended) > 1 and self._dice.random() < 0.5:
            word = self._dice.choice(contended)
            return frozenset((word,)), profile.on(word)
        return frozenset(contended), profile.total
