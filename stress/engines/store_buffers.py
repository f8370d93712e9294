"""Store buffers: a scheduler whose tasks have the memory order of x86 (x86-TSO).

A plain store goes into its task's first-in-first-out buffer; the task's own loads see it at once,
everybody else sees it when it is drained. To drain the oldest store of a buffer is a step of a task
of its own, which the buffer is to strategies and schedules (Abdulla, Aronis, Atig, Jonsson,
Leonardsson, Sagonas, "Stateless model checking for TSO and PSO", TACAS 2015). What empties a buffer
- a read-modify-write, the acquisition of a lock, a barrier, the making or the end of a task -
cannot be done before the buffer is empty. A wait empties nothing: the task may have been spinning.

Putting a store into a buffer is no step, since no other task can tell when it happens. Whether a
step empties the buffer depends on what it is, never on whether anything is in the buffer:
schedules in which a store is drained sooner or later stay comparable.

Sewell, Sarkar, Owens, Zappa Nardelli, Myreen, "x86-TSO: a rigorous and usable programmer's model
for x86 multiprocessors", CACM 53(7), 2010.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from mmu.task import Task
from stress.engines.carrier import POOL
from stress.engines.scheduler import Picker, Scheduler
from stress.engines.steps import (
    ADD,
    BUFFER_SHIFT,
    FREE,
    LOAD,
    MB,
    NO_WORD,
    RELAX,
    RMW,
    SPAWN,
    STORE,
    YIELD,
)
from stress.engines.tasks import Carries, ControlledTask, Gate, nothing

EMPTYING: Final = frozenset({RMW, ADD, SPAWN, FREE, MB})
"""The kinds of steps that wait until the buffer of their task is empty; acquisitions do, too."""
STORES_A_STEP: Final = 64
"""After so many plain stores without a barrier a task takes a step: a loop that does nothing but
store has to be interruptible."""


def carrier_number(index: int) -> int:
    """The number of the carrier of task `index`: every other task is a buffer, which needs none."""
    return (index + 1) // 2


class Destination(Protocol):
    """What a store in a buffer is to."""

    def reach(self, store: BufferedStore) -> None:
        """The store comes out of its buffer: do it."""
        ...


class BufferedStore:
    """A store that is in a buffer: `value` to `word`, at `index` of `place`; made after the event
    number `after`."""

    __slots__ = ("after", "index", "kind", "place", "value", "word")

    def __init__(
        self, kind: int, word: int, place: Destination, index: int, value: Any, after: int
    ) -> None:
        self.kind = kind
        self.word = word
        self.place = place
        self.index = index
        self.value = value
        self.after = after


class StoreBuffer(ControlledTask):
    """The store buffer of `owner`, and the task whose steps drain it: runnable while there is
    something in it."""

    __slots__ = ("blocks", "drained", "newest", "owner", "since", "stores")

    def __init__(self, index: int, owner: ControlledTask) -> None:
        super().__init__(index, f"{owner.name}'s buffer", POOL.main, nothing, daemon=True)
        self.owner = owner
        self.stores: deque[BufferedStore] = deque()
        self.newest: dict[int, BufferedStore] = {}
        """What a load of its owner sees, by word."""
        self.since = 0
        """How many stores its owner has made since it last waited for the buffer to be empty."""
        self.blocks = False
        """Whether its owner waits for the buffer to be empty, and for nothing else."""
        self.drained = -1
        """The event that drained the last of the stores since then; -1 for none."""
        self.enabled = False
        self.done = True

    def next_up(self) -> None:
        """Announce the next store, if there is one."""
        self.done = not self.stores
        if self.stores:
            self.kind, self.word = self.stores[0].kind, self.stores[0].word

    def private(self, word: int) -> int:
        """What stands for a word in this buffer."""
        return self.owner.index << BUFFER_SHIFT | word


class StoreBuffers(Scheduler):
    """A scheduler with a store buffer for every task."""

    def __init__(self, limit: int, fair_steps: int) -> None:
        self._strategy: Picker = self.first
        self._viewer: ControlledTask | None = None
        """Whose predicate is looked at, by another task."""
        self.on_store: Callable[[StoreBuffer], None] | None = None
        """Called for every store that goes into a buffer."""
        super().__init__(limit, fair_steps)
        self._outside.buffer = StoreBuffer(0, self._outside)

    @property
    def pick(self) -> Picker:
        """Choose who goes on, after the buffers that were chosen before that have been drained."""
        return self._pick_task

    @pick.setter
    def pick(self, strategy: Picker) -> None:
        """Let a strategy choose from now on."""
        self._strategy = strategy

    def spawn(
        self, name: str, body: Callable[[], None], daemon: bool, identity: Task
    ) -> ControlledTask:
        """A new task, and its buffer, which has the next number."""
        task = super().spawn(name, body, daemon, identity)
        task.buffer = StoreBuffer(len(self.tasks) + 1, task)
        self.tasks.append(task.buffer)
        self.buffers[task.buffer.index] = task.index
        return task

    def run(self, pick: Picker | None = None) -> None:
        """Run a phase; every buffer is empty at its beginning."""
        for task in self.tasks:
            if isinstance(task, StoreBuffer):
                task.drained = -1
        super().run(pick)

    def abandon(self) -> None:
        """Give the schedule up; what is still in a buffer never leaves it."""
        for task in (self._outside, *self.tasks):
            if task.buffer is not None:
                self._clear(task.buffer)
        super().abandon()

    def dispose(self) -> None:
        """Let go of everything."""
        for task in self.tasks:
            task.buffer = None
            if isinstance(task, StoreBuffer):
                task.owner = self._outside
                self._clear(task)
        self.on_store = None
        super().dispose()

    # What running tasks call.

    def step(self, kind: int, word: int) -> None:
        """Announce an operation; one that empties the buffer waits for that."""
        if self.quiet or kind not in EMPTYING:
            super().step(kind, word)
            return
        buffer: StoreBuffer = self.running.buffer
        if buffer.stores:
            self._await_empty(buffer, kind, word)
        else:
            super().step(kind, word)
        self._emptied(buffer)

    def pass_gate(self, kind: int, word: int, gate: Gate, what: str) -> None:
        """Wait at a gate, which is not open to a task with anything in its buffer."""
        super().pass_gate(kind, word, gate, what)
        if not self.quiet:
            self._emptied(self.running.buffer)

    def mb(self) -> None:
        """A full barrier; no step where nothing has been stored since the last one."""
        if not self.quiet and self.running.buffer.since:
            self.step(MB, NO_WORD)

    def load(self, word: int) -> BufferedStore | None:
        """Announce a load; returns the store to read instead of memory, if the task has one in its
        buffer."""
        self.step(LOAD, word)
        buffer: StoreBuffer = (self._viewer or self.running).buffer
        found = buffer.newest.get(word)
        if found is not None:
            self._forwarded(buffer, word)
        return found

    def has_stored(self, word: int) -> int:
        """How many stores to a word are in the running task's buffer."""
        return sum(store.word == word for store in self.running.buffer.stores)

    def take_back(self, kind: int, word: int) -> BufferedStore | None:
        """Announce a store that is seen at once; returns the task's newest store to the word, if
        that is in its buffer and can still be changed instead."""
        self.step(kind, word)
        buffer: StoreBuffer = self.running.buffer
        found = buffer.newest.get(word)
        if found is not None:
            self.trace[-1] = (self.running.index, kind, buffer.private(word))
        return found

    def put_off(self, kind: int, word: int, place: Destination, index: int, value: Any) -> None:
        """A plain store of the running task: into its buffer."""
        task = self.running
        buffer: StoreBuffer = task.buffer
        if buffer.since and not buffer.since % STORES_A_STEP:
            self.step(YIELD, NO_WORD)
        buffer.since += 1
        store = BufferedStore(kind, word, place, index, value, len(self.trace) - 1)
        buffer.newest[word] = store
        buffer.stores.append(store)
        if len(buffer.stores) == 1:
            buffer.next_up()
            self._set_enabled(buffer, True)
        if self.on_store is not None:
            self.on_store(buffer)

    # Inside.

    def _pick_task(self) -> ControlledTask:
        """Do what the strategy says, until it picks somebody else than a buffer."""
        chosen = self._strategy()
        while isinstance(chosen, StoreBuffer):
            self._drain(chosen)
            if len(self.trace) >= self.limit:
                self._over()
            if not self.runnable and not self._revive():
                self.stuck = self.unfinished > 0
                return self._outside
            chosen = self._strategy()
        return chosen

    def _drain(self, buffer: StoreBuffer) -> None:
        """The oldest store of a buffer reaches memory: a step."""
        store = buffer.stores.popleft()
        word = store.word
        if buffer.newest[word] is store:
            del buffer.newest[word]
        position = buffer.drained = len(self.trace)
        private = buffer.private(word)
        self.trace.append((buffer.index, store.kind, word))
        self.extras[position] = [(STORE, private)]
        self.follows[position] = store.after
        owner = buffer.owner
        spinning = owner.kind == RELAX and not owner.enabled
        running, self.running = self.running, owner if spinning else buffer
        store.place.reach(store)
        if private in self.watched:
            self._left(owner, word, private)
        self.running = running
        buffer.next_up()
        if buffer.done:
            self._disable(buffer)
            self._unblock(buffer)

    def _left(self, owner: ControlledTask, word: int, private: int) -> None:
        """What a task waits on has left its buffer: from now on it is memory that counts. It has
        not changed for the task, so that one that spins need not look again."""
        if self.running is owner:
            owner.reads.append((LOAD, word))
            self._watch(owner)
        else:
            self.wrote(private)

    def _unblock(self, buffer: StoreBuffer) -> None:
        """Nothing is left in the buffer: its owner may be able to go on."""
        owner = buffer.owner
        if buffer.blocks:
            self._set_enabled(owner, True)
        elif owner.gate is not None:
            self._set_enabled(owner, owner.gate.open_to(owner))

    def _await_empty(self, buffer: StoreBuffer, kind: int, word: int) -> None:
        task = self.running
        task.kind, task.word = kind, word
        buffer.blocks = True
        self._disable(task)
        self._hand_over(task)
        buffer.blocks = False
        self.trace.append((task.index, kind, word))
        if len(self.trace) >= self.limit:
            self._over()

    def _emptied(self, buffer: StoreBuffer) -> None:
        """The step just done comes after everything that was drained before it."""
        if buffer.drained >= 0:
            self.follows[len(self.trace) - 1] = buffer.drained
        buffer.drained = -1
        buffer.since = 0

    def _forwarded(self, buffer: StoreBuffer, word: int) -> None:
        """The load just done has read from the buffer, not from memory."""
        private = buffer.private(word)
        if not self.quiet:
            self.trace[-1] = (self.running.index, LOAD, private)
        elif self._noting is not None:
            self._noting[-1] = (LOAD, private)
        else:
            noted = self.extras.get(len(self.trace) - 1)
            if noted and noted[-1] == (LOAD, word):
                noted[-1] = (LOAD, private)

    def _look(self, task: ControlledTask) -> bool:
        """Evaluate the predicate with the task's own stores in sight."""
        viewer, self._viewer = self._viewer, task
        try:
            return super()._look(task)
        finally:
            self._viewer = viewer

    def _note_end(self, task: ControlledTask) -> None:
        """A task ends when all its stores have reached memory."""
        self.mb()
        super()._note_end(task)

    def _carrier(self, index: int) -> Carries:
        return super()._carrier(carrier_number(index))

    def _clear(self, buffer: StoreBuffer) -> None:
        buffer.stores.clear()
        buffer.newest.clear()
        buffer.done = True
        self._disable(buffer)
