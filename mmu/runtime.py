"""The seam between the model and an engine: where shared words, locks, waits, threads and the clock
come from.

Everything that two threads touch is made by a `Runtime`. The classes here are the thread runtime:
plain and fast, for real OS threads. Another engine subclasses them so that every operation becomes
a scheduling point; the choice is made when an object is made, so a hot path pays nothing for the
engine it does not run on.

Memory order. A word's plain load and store are single attribute or list operations, which CPython
makes atomic with and without the GIL; on a free-threaded build the store takes the object's lock,
which on every supported machine is a full barrier, so "store mine, then load yours" (Dekker, RCU
readers, the guest-mode handshake) is safe. Operations that read *and* write take a small lock of
the word; a word on which they are used is stored with `store`, never by assignment, so that no
store is lost inside somebody's read-modify-write.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from readerwriterlock import rwlock

from mmu.pulse import PULSE, Stopwatch
from mmu.task import Task, current

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

LATE_NS = 250_000_000
"""How often a wait that goes on is told that it is late."""

RWLOCKS: dict[str, type[rwlock.RWLockFair | rwlock.RWLockRead | rwlock.RWLockWrite]] = {
    "fair": rwlock.RWLockFair,
    "reader": rwlock.RWLockRead,
    "writer": rwlock.RWLockWrite,
}
"""`readerwriterlock`'s classes by preference; the D (downgradable) twins are left out: their
downgrade is not atomic."""


class Cell(Generic[T]):
    """One shared word. `cell.value` is READ_ONCE, assignment WRITE_ONCE; the methods are atomic
    read-modify-writes."""

    __slots__ = ("_lock", "name", "value")

    def __init__(self, name: str, value: T) -> None:
        self.name = name
        self.value = value
        self._lock = threading.Lock()

    def store(self, value: T) -> None:
        """Store with a full barrier (smp_store_mb), ordered against every read-modify-write of this
        word."""
        with self._lock:
            self.value = value

    def xchg(self, value: T) -> T:
        """Store `value`, return what was there."""
        with self._lock:
            old, self.value = self.value, value
        return old

    def cmpxchg(self, old: T, new: T) -> T:
        """Store `new` if the word equals `old`; return what was there, so success is `result ==
        old`."""
        with self._lock:
            seen = self.value
            if seen == old:
                self.value = new
        return seen


class Counter(Cell[int]):
    """A shared integer with the kernel's atomic_t operations."""

    __slots__ = ()

    def add(self, amount: int) -> None:
        """atomic_add(): nobody learns the value, so the order of two additions does not matter."""
        lock = self._lock
        lock.acquire()
        self.value += amount
        lock.release()

    def fetch_add(self, amount: int) -> int:
        """Add, return the value before."""
        lock = self._lock
        lock.acquire()
        old = self.value
        self.value = old + amount
        lock.release()
        return old

    def fetch_or(self, bits: int) -> int:
        """Set bits, return the value before."""
        with self._lock:
            old = self.value
            self.value = old | bits
        return old

    def fetch_and(self, bits: int) -> int:
        """Keep only `bits`, return the value before."""
        with self._lock:
            old = self.value
            self.value = old & bits
        return old

    def inc_not_zero(self) -> bool:
        """refcount_inc_not_zero: add one unless the value is 0; whether it did."""
        with self._lock:
            old = self.value
            if old:
                self.value = old + 1
        return old != 0


class _Shard:
    """One thread's share of a per-thread counter."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Local(Protocol[T_co]):
    """A record that every task has of its own."""

    @property
    def mine(self) -> T_co:
        """The calling task's record, made when it first asks for it."""
        ...


class ThreadLocal(threading.local, Generic[T]):
    """Where a task is a thread, its records are the thread's. Looking one up is slow: on a hot path
    once does."""

    def __init__(self, make: Callable[[], T]) -> None:
        self.mine = make()


class PerThreadCounter:
    """A statistic that is written often and read rarely (percpu_counter): each thread adds to a
    share of its own.

    The sum is exact whenever the writers are quiet. `local.mine.n += 1` is the hot path's way to
    add.
    """

    __slots__ = ("_lock", "_shards", "local", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._shards: list[_Shard] = []
        self.local: Local[_Shard] = ThreadLocal(self.new_shard)

    def new_shard(self) -> _Shard:
        """The calling thread counts here for the first time."""
        shard = _Shard()
        with self._lock:
            self._shards.append(shard)
        return shard

    def add(self, amount: int) -> None:
        """Add to the calling thread's share."""
        self.local.mine.n += amount

    @property
    def value(self) -> int:
        """The sum."""
        return sum(shard.n for shard in self._shards)


class Table(list[int]):
    """`size` shared words, such as a page-table page. `table[i]` is READ_ONCE; writes go through
    the methods."""

    __slots__ = ("_lock", "name", "note")

    note: Any
    """Set when the table is freed: what a use-after-free report says about it."""

    def __init__(self, size: int, name: str) -> None:
        super().__init__([0] * size)
        self.name = name
        self._lock = threading.Lock()

    def end(self) -> None:
        """The memory is being freed: whoever touches the words from now on, or without an order
        before, is wrong."""

    def store(self, index: int, value: int) -> None:
        """WRITE_ONCE, ordered against the read-modify-writes of this table."""
        lock = self._lock
        lock.acquire()
        self[index] = value
        lock.release()

    def xchg(self, index: int, value: int) -> int:
        """Store `value`, return what was there."""
        lock = self._lock
        lock.acquire()
        old = self[index]
        self[index] = value
        lock.release()
        return old

    def cmpxchg(self, index: int, old: int, new: int) -> int:
        """Store `new` if the word equals `old`; return what was there."""
        lock = self._lock
        lock.acquire()
        seen = self[index]
        if seen == old:
            self[index] = new
        lock.release()
        return seen

    def fetch_and(self, index: int, bits: int) -> int:
        """Keep only `bits`, return what was there (atomic64_fetch_and)."""
        with self._lock:
            old = self[index]
            self[index] = old & bits
        return old


class Queue(Generic[T]):
    """An unbounded queue between threads: many producers, any consumers."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: deque[T] = deque()

    def put(self, item: T) -> None:
        """Add at the end."""
        self._items.append(item)

    def take(self) -> T | None:
        """Remove the oldest item; None when there is none."""
        try:
            return self._items.popleft()
        except IndexError:
            return None

    def drain(self) -> list[T]:
        """Remove and return everything that is there now, oldest first."""
        items: list[T] = []
        for _ in range(len(self._items)):
            item = self.take()
            if item is not None:
                items.append(item)
        return items

    def __len__(self) -> int:
        return len(self._items)


class RawLock(Protocol):
    """What a runtime gives as a mutual-exclusion lock, and what a read or write handle looks
    like."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it; false only when not blocking or timed out."""
        ...

    def release(self) -> None:
        """Give it back."""
        ...


class RawRwLock(Protocol):
    """A reader-writer lock that hands out one handle a thread, as `readerwriterlock` does."""

    def gen_rlock(self) -> RawLock:
        """A handle for shared holding; one thread's own, never taken twice."""
        ...

    def gen_wlock(self) -> RawLock:
        """A handle for exclusive holding."""
        ...


class Runtime:
    """The thread runtime: real OS threads, real locks, the machine's clock."""

    def __init__(self) -> None:
        self._exit_checks: list[Callable[[Task], None]] = []
        self._tasks: list[Task] = []
        self._tasks_lock = threading.Lock()
        self.on_task_error: Callable[[Task, BaseException], None] | None = None

    def cell(self, name: str, value: T) -> Cell[T]:
        """A shared word that holds anything immutable."""
        return Cell(name, value)

    def counter(self, name: str, value: int = 0) -> Counter:
        """A shared integer."""
        return Counter(name, value)

    def local(self, make: Callable[[], T]) -> Local[T]:
        """A record of each task's own, made by `make` in the task that first asks for its own."""
        return ThreadLocal(make)

    def per_thread_counter(self, name: str) -> PerThreadCounter:
        """A statistic that every thread writes."""
        return PerThreadCounter(name)

    def per_thread_counters(self, names: Iterable[str]) -> Mapping[str, PerThreadCounter]:
        """A statistic for each of `names`. A mapping that has not all of them yet makes what is
        asked for; what was never asked for is 0."""
        return {name: self.per_thread_counter(name) for name in names}

    def table(self, size: int, name: str = "words") -> Table:
        """`size` shared integers, all 0."""
        return Table(size, name)

    def reader_word(self, name: str, idle: int) -> Cell[int]:
        """The word in which an RCU reader announces itself, by anything but `idle`. RCU finds its
        readers by quiescent states and needs no barrier there, so an engine that buffers stores
        shows an announcement at once; there each is an object of its own."""
        return self.cell(name, idle)

    def mb(self, name: str) -> None:
        """smp_mb(), for engines that buffer stores; here every operation is ordered as it is."""

    def queue(self, name: str = "queue") -> Queue[Any]:  # noqa: ARG002 - for engines that show what is waited for
        """A queue between threads."""
        return Queue()

    def lock(self, name: str = "lock") -> RawLock:  # noqa: ARG002 - for engines that show who waits for what
        """A mutual-exclusion lock without rules; `mmu.sync` puts the rules on top."""
        return threading.Lock()

    def rwlock(self, preference: str, name: str = "rwlock") -> RawRwLock:  # noqa: ARG002 - as for `lock`
        """A `readerwriterlock` of the given preference: fair, reader or writer."""
        return RWLOCKS[preference](lock_factory=threading.Lock, time_source=time.monotonic)

    def contention_of(self, lock: RawRwLock) -> Callable[[], bool] | None:  # noqa: ARG002 - for engines that know
        """What tells whether a task waits for `lock`; None when only the tasks' own records do."""
        return None

    def ending(self, *pointers: Cell[Any]) -> None:
        """An object is about to be freed that could once be found through `pointers`: whoever has
        read one of them before its last store, and has not been waited for, may still use the
        object. For engines that check that."""

    def now(self) -> int:
        """Nanoseconds on a clock that never goes back."""
        return time.perf_counter_ns()

    def served(self) -> int:
        """Nanoseconds in which the process got its turns: what a bound on anything's duration is
        measured by, see `mmu.pulse`."""
        return PULSE.served()

    def sleep(self, seconds: float) -> None:
        """Let time pass. Never used to order threads."""
        time.sleep(seconds)

    def relax(self) -> None:
        """cpu_relax(): one step of a spin. What the caller has read since the last one, or some of
        it, has to change before the next step can end otherwise."""
        time.sleep(0)

    def resched(self) -> None:
        """cond_resched(): let others run; the caller goes on whatever they do."""
        time.sleep(0)

    def wait_until(
        self,
        what: str,
        predicate: Callable[[], bool],
        *,
        on_late: Callable[[float], None] | None = None,
        patience: float = 2e-4,
    ) -> None:
        """Wait for a predicate over shared words (cpu_relax loop, rcuwait). `what` is shown by the
        watchdog.

        `on_late(seconds)` is called four times a second while the wait goes on, for stall warnings,
        with how long it has lasted, time aside in which the process was not served; `patience` is
        the longest pause between two looks, in seconds.
        """
        if predicate():
            return
        task = current.task
        before, task.waiting_for = task.waiting_for, what
        warned = self.now()
        watch = Stopwatch(self) if on_late is not None else None
        pause = 0.0
        try:
            while not predicate():
                self.sleep(pause)
                pause = min(pause + 2e-6 + pause / 8, patience)
                if on_late is not None and watch is not None and self.now() - warned >= LATE_NS:
                    warned = self.now()
                    on_late(watch.seconds())
        finally:
            task.waiting_for = before

    def wait_for_all(self, what: str, *flags: Cell[Any]) -> None:
        """Wait until each of `flags` is set; they are set once and never cleared
        (wait_for_completion())."""
        self.wait_until(what, lambda: all(flag.value for flag in flags))

    def at_task_exit(self, check: Callable[[Task], None]) -> None:
        """Run `check` in every spawned thread as its last act, such as lockdep's held-locks
        check."""
        self._exit_checks.append(check)

    def spawn(self, name: str, body: Callable[[], None]) -> Task:
        """Start a thread. What it raises is kept in `task.error` and passed to `on_task_error`."""
        started = threading.Event()
        box: list[Task] = []

        def run() -> None:
            task = current.task
            task.name = name
            box.append(task)
            with self._tasks_lock:
                self._tasks.append(task)
            started.set()
            try:
                body()
            except BaseException as error:
                task.error = error
                if self.on_task_error is not None:
                    self.on_task_error(task, error)
            finally:
                for check in self._exit_checks:
                    check(task)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        started.wait()
        return box[0]

    def join(self, task: Task, timeout: float | None = None) -> bool:
        """Wait for a spawned thread to end; whether it did."""
        task.thread.join(timeout)
        return not task.thread.is_alive()

    def tasks(self) -> list[Task]:
        """Every task spawned so far, ended ones included."""
        with self._tasks_lock:
            return list(self._tasks)
