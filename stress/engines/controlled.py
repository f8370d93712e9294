"""The controlled runtime: the same words, tables, locks and waits as the thread runtime's, but
every operation is a scheduling point of a `Scheduler`.

Nothing here locks: exactly one task runs. Time is virtual, a microsecond a step; a sleep is a
scheduling point and orders nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from mmu.runtime import (
    RWLOCKS,
    Cell,
    Counter,
    Local,
    PerThreadCounter,
    Queue,
    RawLock,
    RawRwLock,
    Runtime,
    Table,
)
from mmu.sync.poison import FreedWords
from mmu.task import Task
from stress.engines.locks import ControlledLock, ControlledRwLock
from stress.engines.scheduler import Scheduler
from stress.engines.steps import ADD, ENDING, FREE, LOAD, OWNER_SHIFT, RMW, STORE, YIELD
from stress.engines.tasks import ControlledTask

T = TypeVar("T")
Word = TypeVar("Word", bound="ControlledCell[Any]")
STEP_NS = 1000
EPOCHS = (".gp_seq", ".reader", ".readers")
"""The ends of names of the words that RCU's read sections are made of."""


class ControlledCell(Cell[T]):
    """One shared word under control."""

    __slots__ = ("_scheduler", "_value", "_word")

    def __init__(self, scheduler: Scheduler, name: str, value: T) -> None:
        self.name = name
        self._scheduler = scheduler
        self._value = value
        self._word = scheduler.number(1, self)

    def peek(self, index: int = 0) -> T:  # noqa: ARG002 - a table has more than one
        """The value, without a step."""
        return self._value

    @property
    def value(self) -> T:
        """READ_ONCE."""
        self._scheduler.step(LOAD, self._word)
        return self._value

    @value.setter
    def value(self, value: T) -> None:
        """WRITE_ONCE."""
        scheduler = self._scheduler
        scheduler.step(STORE, self._word)
        self._value = value
        if self._word in scheduler.watched:
            scheduler.wrote(self._word)

    def store(self, value: T) -> None:
        """smp_store_mb."""
        self.value = value

    def xchg(self, value: T) -> T:
        """Store `value`, return what was there."""
        scheduler = self._scheduler
        scheduler.step(RMW, self._word)
        old, self._value = self._value, value
        if self._word in scheduler.watched:
            scheduler.wrote(self._word)
        return old

    def cmpxchg(self, old: T, new: T) -> T:
        """Store `new` if the word equals `old`; one that fails is a load."""
        scheduler = self._scheduler
        scheduler.step(RMW, self._word)
        seen = self._value
        if seen != old:
            scheduler.was_load()
            return seen
        self._value = new
        if self._word in scheduler.watched:
            scheduler.wrote(self._word)
        return seen


class ControlledCounter(ControlledCell[int], Counter):
    """A shared integer under control."""

    __slots__ = ()

    def add(self, amount: int) -> None:
        """atomic_add(): commutes with other additions."""
        scheduler = self._scheduler
        scheduler.step(ADD, self._word)
        self._value += amount
        if self._word in scheduler.watched:
            scheduler.wrote(self._word)

    def fetch_add(self, amount: int) -> int:
        """Add, return the value before."""
        return self._modify(lambda old: old + amount)

    def fetch_or(self, bits: int) -> int:
        """Set bits, return the value before."""
        return self._modify(lambda old: old | bits)

    def fetch_and(self, bits: int) -> int:
        """Keep only `bits`, return the value before."""
        return self._modify(lambda old: old & bits)

    def inc_not_zero(self) -> bool:
        """refcount_inc_not_zero."""
        return self._modify(lambda old: old + 1 if old else 0) != 0

    def _modify(self, change: Callable[[int], int]) -> int:
        scheduler = self._scheduler
        scheduler.step(RMW, self._word)
        old = self._value
        self._value = change(old)
        if self._word in scheduler.watched:
            scheduler.wrote(self._word)
        return old


class ControlledTable(Table):
    """Shared words under control. When the table is freed its storage goes, so that an operation
    announced before and done after finds nothing and is repeated as what it is then: a touch of
    freed memory."""

    __slots__ = ("_first", "_scheduler", "_size")

    def __init__(self, scheduler: Scheduler, size: int, name: str) -> None:
        list.__init__(self, [0] * size)
        self.name = name
        self._scheduler = scheduler
        self._size = size
        self._first = scheduler.number(size, self)

    def peek(self, index: int = 0) -> int:
        """A value, without a step; 0 once the table is freed."""
        return list.__getitem__(self, index) if list.__len__(self) else 0

    def end(self) -> None:
        """A step that touches every word; then the words are gone."""
        first = self._first
        self._scheduler.end(
            FREE, first, [(FREE, word) for word in range(first + 1, first + self._size)]
        )
        list.clear(self)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(self._size))]
        self._scheduler.step(LOAD, self._first + index)
        try:
            return list.__getitem__(self, index)
        except IndexError:
            return self._again(index)[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self.store(index, value)

    def __iter__(self) -> Iterator[int]:
        for index in range(self._size):
            yield self[index]

    def store(self, index: int, value: int) -> None:
        """WRITE_ONCE."""
        scheduler = self._scheduler
        word = self._first + index
        scheduler.step(STORE, word)
        try:
            list.__setitem__(self, index, value)
        except IndexError:
            self._again(index).store(index, value)
            return
        if word in scheduler.watched:
            scheduler.wrote(word)

    def xchg(self, index: int, value: int) -> int:
        """Store `value`, return what was there."""
        return self._modify(index, lambda _: value)

    def fetch_and(self, index: int, bits: int) -> int:
        """Keep only `bits`, return what was there."""
        return self._modify(index, lambda old: old & bits)

    def cmpxchg(self, index: int, old: int, new: int) -> int:
        """Store `new` if the word equals `old`; one that fails is a load."""
        scheduler = self._scheduler
        word = self._first + index
        scheduler.step(RMW, word)
        try:
            seen: int = list.__getitem__(self, index)
        except IndexError:
            return self._again(index).cmpxchg(index, old, new)
        if seen != old:
            scheduler.was_load()
            return seen
        list.__setitem__(self, index, new)
        if word in scheduler.watched:
            scheduler.wrote(word)
        return seen

    def _modify(self, index: int, change: Callable[[int], int]) -> int:
        scheduler = self._scheduler
        word = self._first + index
        scheduler.step(RMW, word)
        try:
            old: int = list.__getitem__(self, index)
        except IndexError:
            return self._again(index).xchg(index, 0)
        list.__setitem__(self, index, change(old))
        if word in scheduler.watched:
            scheduler.wrote(word)
        return old

    def _again(self, index: int) -> Table:
        """The table as it is now: freed, unless the index is simply wrong."""
        if list.__len__(self) or not 0 <= index < self._size:
            raise IndexError(f"{self.name} has {self._size} words, there is no index {index}")
        if not isinstance(self, FreedWords):
            raise RuntimeError(f"{self.name} is used after its end")
        return self


class ControlledQueue(Queue[T]):
    """A queue under control; to the scheduler it is one word."""

    __slots__ = ("_scheduler", "_word", "name")

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        super().__init__()
        self.name = name
        self._scheduler = scheduler
        self._word = scheduler.number(1, self)

    def peek(self, index: int = 0) -> int:  # noqa: ARG002 - one word
        """How many items there are, without a step."""
        return len(self._items)

    def put(self, item: T) -> None:
        """Add at the end."""
        self._scheduler.step(RMW, self._word)
        self._items.append(item)
        self._wrote()

    def take(self) -> T | None:
        """Remove the oldest item."""
        self._scheduler.step(RMW, self._word)
        item = super().take()
        self._wrote()
        return item

    def drain(self) -> list[T]:
        """Remove and return everything, in one step."""
        self._scheduler.step(RMW, self._word)
        items = list(self._items)
        self._items.clear()
        self._wrote()
        return items

    def __len__(self) -> int:
        self._scheduler.step(LOAD, self._word)
        return len(self._items)

    def _wrote(self) -> None:
        if self._word in self._scheduler.watched:
            self._scheduler.wrote(self._word)


class _LibraryHandle:
    """`readerwriterlock`'s own handle, with the lock's count of who asks for it."""

    def __init__(self, lock: LibraryRwLock, inner: Any) -> None:
        self._lock = lock
        self._inner = inner

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it through the library's own steps."""
        self._lock.asking.add(1)
        try:
            return bool(self._inner.acquire(blocking, timeout))
        finally:
            self._lock.asking.add(-1)

    def release(self) -> None:
        """Give it back through the library's own steps."""
        self._inner.release()


class LibraryRwLock:
    """The real `readerwriterlock`, explored inside: its inner locks are controlled ones."""

    def __init__(self, runtime: ControlledRuntime, preference: str, name: str) -> None:
        self.name = name
        self.asking = runtime.counter(f"{name}.asking")
        numbers = iter(range(100))
        self._inner = RWLOCKS[preference](
            lock_factory=lambda: runtime.lock_class(
                runtime.scheduler, f"{name}.lock{next(numbers)}"
            ),
            time_source=runtime.seconds,
        )

    def gen_rlock(self) -> RawLock:
        """A reader's handle."""
        return _LibraryHandle(self, self._inner.gen_rlock())

    def gen_wlock(self) -> RawLock:
        """A writer's handle."""
        return _LibraryHandle(self, self._inner.gen_wlock())

    def is_contended(self) -> bool:
        """Whether somebody waits for it."""
        return self.asking.value > 0


class ControlledStatistic(PerThreadCounter):
    """A statistic under control: nobody counts at the same time, so one number does for every
    task."""

    __slots__ = ("n",)

    def __init__(self, name: str) -> None:
        self.name = name
        self.n = 0

    @property
    def local(self) -> ControlledStatistic:  # type: ignore[override]  # where each task has its share: here
        """Where the shares are."""
        return self

    @property
    def mine(self) -> ControlledStatistic:
        """The running task's share: the whole."""
        return self

    def add(self, amount: int) -> None:
        """Add."""
        self.n += amount

    @property
    def value(self) -> int:
        """The sum."""
        return self.n


class _Tallies(dict[str, PerThreadCounter]):
    """Statistics of certain names."""

    __slots__ = ("_names",)

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._names = names

    def __missing__(self, name: str) -> PerThreadCounter:
        if name not in self._names:
            raise KeyError(name)
        tally = self[name] = ControlledStatistic(name)
        return tally


class TaskLocal(Local[T]):
    """A record of each task's own: whose turn it is says whose is asked for, whatever thread the
    task is on."""

    __slots__ = ("_make", "_records", "_scheduler")

    def __init__(self, scheduler: Scheduler, make: Callable[[], T]) -> None:
        self._scheduler = scheduler
        self._make = make
        self._records: dict[int, T] = {}

    @property
    def mine(self) -> T:
        """The running task's record."""
        index = self._scheduler.running.index
        try:
            return self._records[index]
        except KeyError:
            pass
        record = self._records[index] = self._make()
        return record


class ControlledRuntime(Runtime):
    """Makes everything that tasks share for one schedule of one scheduler. `granularity` is
    `atomic` (an operation on a rwlock is a step) or `library` (the steps inside `readerwriterlock`
    are)."""

    cell_class: type[ControlledCell[Any]] = ControlledCell
    counter_class: type[ControlledCounter] = ControlledCounter
    table_class: type[ControlledTable] = ControlledTable
    lock_class: type[ControlledLock] = ControlledLock
    rwlock_class: type[ControlledRwLock] = ControlledRwLock

    def __init__(self, scheduler: Scheduler, granularity: str = "atomic") -> None:
        super().__init__()
        self.scheduler = scheduler
        self.granularity = granularity
        self._slept = 0
        scheduler.exit_checks = self._exit_checks
        scheduler.on_error = self._failed

    def cell(self, name: str, value: T) -> Cell[T]:
        """A shared word that holds anything immutable."""
        return self._unobserved(self.cell_class(self.scheduler, name, value))

    def counter(self, name: str, value: int = 0) -> Counter:
        """A shared integer."""
        return self._unobserved(self.counter_class(self.scheduler, name, value))

    def table(self, size: int, name: str = "words") -> Table:
        """`size` shared integers, all 0."""
        return self.table_class(self.scheduler, size, name)

    def queue(self, name: str = "queue") -> Queue[Any]:
        """A queue between tasks."""
        return ControlledQueue(self.scheduler, name)

    def lock(self, name: str = "lock") -> RawLock:
        """A mutual-exclusion lock."""
        return self.lock_class(self.scheduler, name)

    def rwlock(self, preference: str, name: str = "rwlock") -> RawRwLock:
        """A reader-writer lock, of one step an operation or of the library's own."""
        if self.granularity == "library":
            return LibraryRwLock(self, preference, name)
        return self.rwlock_class(self.scheduler, preference, name)

    def contention_of(self, lock: RawRwLock) -> Callable[[], bool] | None:
        """What tells whether a task waits for `lock`."""
        assert isinstance(lock, ControlledRwLock | LibraryRwLock)
        return lock.is_contended

    def ending(self, *pointers: Cell[Any]) -> None:
        """A step that the happens-before check judges."""
        words = [(ENDING, cell._word) for cell in pointers if isinstance(cell, ControlledCell)]
        self.scheduler.end(ENDING, 0, words)

    def local(self, make: Callable[[], T]) -> Local[T]:
        """A record of each task's own."""
        return TaskLocal(self.scheduler, make)

    def now(self) -> int:
        """Virtual nanoseconds: a microsecond a step, and what was slept."""
        scheduler = self.scheduler
        return (scheduler.steps_before + len(scheduler.trace)) * STEP_NS + self._slept

    def served(self) -> int:
        """All of it: time passes only while somebody is served."""
        return self.now()

    def seconds(self) -> float:
        """Virtual seconds."""
        return self.now() / 1e9

    def sleep(self, seconds: float) -> None:
        """A scheduling point; virtual time passes."""
        self._slept += int(seconds * 1e9)
        self.scheduler.step(YIELD, 0)

    def relax(self) -> None:
        """One step of a spin: the task can run again when something that it has read is written."""
        self.scheduler.relax()

    def resched(self) -> None:
        """A scheduling point."""
        self.scheduler.step(YIELD, 0)

    def wait_until(
        self,
        what: str,
        predicate: Callable[[], bool],
        *,
        on_late: Callable[[float], None] | None = None,  # noqa: ARG002 - a wait that never ends is a deadlock here
        patience: float = 2e-4,  # noqa: ARG002 - nobody polls
    ) -> None:
        """The task cannot run until the predicate is true."""
        self.scheduler.wait(what, predicate)

    def wait_for_all(self, what: str, *flags: Cell[Any]) -> None:
        """As `wait_until`; and it is known to be no race, for none of the flags could have been set
        later."""
        self.scheduler.wait(what, lambda: all(flag.value for flag in flags), latched=True)

    def spawn(self, name: str, body: Callable[[], None]) -> Task:
        """A task that the model makes for itself serves others: it is not waited for."""
        return self.start(name, body, daemon=True)

    def start(self, name: str, body: Callable[[], None], *, daemon: bool = False) -> Task:
        """A task of the schedule."""
        task = Task(name)
        self._tasks.append(task)
        self.scheduler.spawn(name, body, daemon, task)
        return task

    def join(self, task: Task, timeout: float | None = None) -> bool:  # noqa: ARG002 - time is virtual
        """Wait for a task to end."""
        controlled = self.scheduler.tasks[task.number - 1]
        word = controlled.index << OWNER_SHIFT

        def ended() -> bool:
            self.scheduler.step(LOAD, word)
            return controlled.done

        self.scheduler.wait(f"{task.name} to end", ended, latched=True)
        return controlled.done

    def per_thread_counter(self, name: str) -> PerThreadCounter:
        """A statistic: no task's course depends on it, so it is no scheduling point."""
        return ControlledStatistic(name)

    def per_thread_counters(self, names: Iterable[str]) -> Mapping[str, PerThreadCounter]:
        """Statistics, each made when it is first asked for: of a hundred, a schedule counts in some
        twenty."""
        return _Tallies(names)

    def _unobserved(self, cell: Word) -> Word:
        """The same cell. What observers read of the words of read sections does not count."""
        if cell.name.endswith(EPOCHS):
            self.scheduler.unobserved.add(cell._word)
        return cell

    def _failed(self, task: ControlledTask, error: BaseException) -> None:
        if self.on_task_error is not None and task.task is not None:
            self.on_task_error(task.task, error)
