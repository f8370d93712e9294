"""RCU and SRCU by epochs.

A reader announces the current epoch in a word of its own and clears it when it leaves; a grace
period advances the epoch and waits until every announced epoch is gone or newer. Entering and
leaving cost a few attribute operations and touch nothing that readers share. Source:
Documentation/RCU; the discipline is reference 2.1 and 2.6.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Final, Generic, TypeVar

from mmu import stack as stacks
from mmu.report import Report, section
from mmu.runtime import Cell, Runtime
from mmu.sync.lockdep import READ, Hold, LockClass, LockDep, describe_held
from mmu.sync.poison import RcuHead, poison
from mmu.sync.probe import SyncProbe
from mmu.task import Task, current, is_time_to_tidy

T = TypeVar("T")

IDLE = 0
LOOKS = 2
"""How often a barrier must miss a callback before it says so: one look may fall between the queue
and the batch."""
Snapshot = tuple[tuple["RcuReader", int, int], ...]
"""Readers inside a section, each with the section's number and the epoch that it announced."""


class RcuReader:
    """One thread's read-side state in one domain. Only `epoch` is read by others; `depth` and
    `sections` are its own. `site` is where a section was entered by `with rcu.read()`; the bare
    `read_lock` is too hot to note that."""

    __slots__ = ("depth", "epoch", "sections", "site", "task")

    def __init__(self, domain: EpochDomain) -> None:
        self.task = current.task
        self.depth = 0
        self.sections = 0
        self.site: stacks.Stack = ()
        self.epoch = domain.runtime.reader_word(f"{domain.name}.reader", IDLE)
        mine = self.task.locals
        if is_time_to_tidy(len(mine)):
            for gone in [other for other in mine if other() is None]:
                del mine[gone]
        mine[domain.ref] = self
        domain.enlist(self)


class EpochDomain:
    """What RCU and SRCU share: readers, epochs and the wait for a grace period."""

    def __init__(
        self,
        runtime: Runtime,
        lockdep: LockDep,
        name: str,
        stall_seconds: float,
        probe: SyncProbe | None = None,
    ) -> None:
        self.probe = probe or SyncProbe()
        self.runtime = runtime
        self.name = name
        self.stall_seconds = stall_seconds
        self.lockdep = lockdep
        self.reporter = lockdep.reporter
        self.gp_seq = runtime.counter(f"{name}.gp_seq", 1)
        self.ref: weakref.ref[object] = weakref.ref(self)
        self._readers: Cell[tuple[RcuReader, ...]] = runtime.cell(f"{name}.readers", ())
        self.local = runtime.local(functools.partial(RcuReader, self))

    def enlist(self, reader: RcuReader) -> None:
        """A thread uses the domain for the first time; readers of threads that have ended, outside,
        are forgotten whenever there are twice as many."""
        while True:
            kept = seen = self._readers.value
            if is_time_to_tidy(len(seen)):
                kept = tuple(
                    other
                    for other in seen
                    if other.task.thread.is_alive() or other.epoch.value != IDLE
                )
            if self._readers.cmpxchg(seen, (*kept, reader)) == seen:
                return

    def check_exit(self, task: Task) -> None:
        """A thread ends: it may not be inside a read section, which would never be closed."""
        if self._depth_of(task):
            self.report(
                "exit-in-section",
                f"WARNING: {task} ends inside a {self.name} read section",
                "a read section must be left before its thread ends: no grace period can end "
                "before that",
                "exit_rcu(); kernel/rcu/tree_plugin.h",
                task.name.rstrip("0123456789"),
            )

    def _depth_of(self, task: Task) -> int:
        """How many sections the task is inside; one that has never entered any is not made known
        for being asked."""
        reader: RcuReader | None = task.locals.get(self.ref)
        return reader.depth if reader is not None else 0

    def read_held(self) -> bool:
        """Whether the calling thread is inside a read section."""
        return self.local.mine.depth > 0

    def depth(self) -> int:
        """How many read sections the calling thread is inside."""
        return self.local.mine.depth

    def inside(self) -> Snapshot:
        """The readers inside a section now, each with the section's number and epoch.

        The number is read before the epoch: a section that is only about to be announced is not
        "inside", and a grace period need not wait for it.
        """
        numbered = [(reader, reader.sections) for reader in self._readers.value]
        return tuple(
            (reader, number, epoch)
            for reader, number in numbered
            if (epoch := reader.epoch.value) != IDLE
        )

    def wait_for_readers(self) -> None:
        """Wait until every section that was open when the call began is closed: the heart of a
        grace period."""
        target = self.gp_seq.fetch_add(1) + 1
        for reader in self._readers.value:
            epoch = reader.epoch
            if IDLE < epoch.value < target:
                self._wait_for(reader, target)

    def check_outlasted(self, snapshot: Snapshot, what: str) -> None:
        """Report any section of `snapshot` that is still open: the grace period was too short for
        it.

        The epoch is read before the number: the other way round, a section that begins in between
        would be taken for the old one. It has to be the very object that was announced then: where
        stores are buffered, the word may show a section that its reader has left, and for which the
        number is already that of the next one.
        """
        for reader, number, epoch in snapshot:
            if reader.epoch.value is epoch and reader.sections == number:
                self.report(
                    "grace-period-too-short",
                    f"WARNING: {self.name} grace period ended with a pre-existing reader inside",
                    f"{what} must wait for every reader that was inside when it was asked for; "
                    f"{reader.task} still is",
                    "Documentation/RCU/whatisRCU (grace-period guarantee); invariant I10",
                    str(reader.task),
                    (f"stack of reader {reader.task}", stacks.render(stacks.of_task(reader.task))),
                )

    def report(
        self,
        code: str,
        headline: str,
        sentence: str,
        source: str,
        subject: str,
        extra: tuple[str, list[str]] | None = None,
        rule: str = "O3",
    ) -> None:
        """Emit an RCU-rule report with the caller's stack and the locks it holds."""
        parts = [section("call trace", stacks.render(stacks.capture(2)))]
        if extra is not None:
            parts.append(section(*extra))
        parts.append(section(f"locks held by {current.task}", describe_held(current.task)))
        self.reporter.emit(
            Report(rule, code, headline, sentence, source, str(current.task), subject, tuple(parts))
        )

    def _wait_for(self, reader: RcuReader, target: int) -> None:
        epoch = reader.epoch
        self.runtime.wait_until(
            f"{self.name} grace period, reader {reader.task}",
            lambda: not IDLE < epoch.value < target,
            on_late=lambda seconds: self._late(reader, seconds),
        )
        if self.probe.grace_period_waited is not None:
            self.probe.grace_period_waited(self.name)

    def _late(self, reader: RcuReader, seconds: float) -> None:
        if seconds < self.stall_seconds:
            return
        self.report(
            "rcu-stall",
            f"INFO: {self.name} detected a stall: {reader.task} has been inside its read section "
            f"for {seconds:.1f} s",
            f"a read section must end within {self.stall_seconds:g} s",
            "kernel/rcu/tree_stall.h; reference O10",
            str(reader.task),
            (f"stack of reader {reader.task}", stacks.render(stacks.of_task(reader.task))),
            rule="O10",
        )

    def _unbalanced(self) -> None:
        self.report(
            "unlock-without-lock",
            f"WARNING: {self.name} read section left that was never entered",
            "every unlock needs its own lock",
            "rcu_read_unlock(); PROVE_RCU",
            stacks.innermost(stacks.capture(3, 1)),
        )


class Callback:
    """One `call_rcu`: what to run, whom to wait for, and who asked. `taken` by the callback task;
    `missed` by a barrier."""

    __slots__ = ("function", "missed", "snapshot", "stack", "taken", "task")

    def __init__(
        self, function: Callable[[], None], snapshot: Snapshot, stack: stacks.Stack
    ) -> None:
        self.function = function
        self.snapshot = snapshot
        self.stack = stack
        self.task = str(current.task)
        self.taken = False
        self.missed = 0


class Rcu(EpochDomain):
    """RCU: read sections nest and may not sleep; `call_rcu` callbacks run after a grace period in a
    task of their own."""

    STANDS_FOR: Final = "kernel/rcu/tree.c: call_rcu(), synchronize_rcu(), rcu_barrier()"

    def __init__(
        self,
        runtime: Runtime,
        lockdep: LockDep,
        probe: SyncProbe | None = None,
        stall_seconds: float = 10.0,
        name: str = "rcu",
    ) -> None:
        super().__init__(runtime, lockdep, name, stall_seconds, probe)
        self._queue = runtime.queue("rcu callbacks")
        self._queued = runtime.counter("rcu.queued")
        self._done = runtime.counter("rcu.done")
        self._stop = runtime.cell("rcu.stop", False)
        self._callback_task: Cell[Task | None] = runtime.cell("rcu.callback_task", None)
        self._outstanding: dict[Callback, None] = {}
        """What was queued and has not run; added and removed by single dict operations, read for
        reports only."""
        self._worker: Task | None = None
        self._has_worker: Cell[bool] = runtime.cell("rcu.has_worker", False)
        self.grace_periods = runtime.counter("rcu.grace_periods")

    def read_lock(self, reader: RcuReader | None = None) -> None:
        """rcu_read_lock(). `reader` is the calling thread's own record, `local.mine`, if the caller
        has it at hand."""
        if reader is None:
            reader = self.local.mine
        depth = reader.depth
        if not depth:
            reader.sections += 1
            reader.epoch.value = self.gp_seq.value
        reader.depth = depth + 1

    def read_unlock(self, reader: RcuReader | None = None) -> None:
        """rcu_read_unlock(); `reader` as in `read_lock`."""
        if reader is None:
            reader = self.local.mine
        depth = reader.depth
        if depth == 1:
            reader.depth = 0
            reader.epoch.value = IDLE
        elif depth:
            reader.depth = depth - 1
        else:
            self._unbalanced()

    def read(self) -> RcuSection:
        """A read section as a context: `with rcu.read():`."""
        return RcuSection(self)

    def assert_held(self, what: str) -> None:
        """rcu_dereference() outside a read section is a report ("suspicious RCU usage")."""
        if self.local.mine.depth:
            return
        self.report(
            "suspicious-rcu-usage",
            f"WARNING: suspicious RCU usage: {what} without rcu_read_lock()",
            f"{what} is protected by RCU and may be dereferenced only inside a read section, "
            "whatever locks are held",
            "rcu_dereference_check(); reference 2.4, B31, B32",
            f"{what} in {stacks.innermost(stacks.capture(2, 1))}",
        )

    def forbid_sleep(self, doing: str) -> None:
        """Report when the caller would sleep inside a read section."""
        if self._depth_of(current.task):
            site = self.local.mine.site
            self.report(
                "sleep-in-rcu",
                "WARNING: suspicious RCU usage: illegal context switch in RCU read-side critical "
                f"section ({doing})",
                f"{doing} may block or let others run, which is forbidden inside an RCU read "
                "section",
                "rcu_note_context_switch(); reference 2.1 rule 6",
                f"{doing} in {stacks.caller()}",
                ("section entered at", stacks.render(site)) if site else None,
            )

    def synchronize(self) -> None:
        """synchronize_rcu(): return after a full grace period."""
        self.lockdep.might_sleep("synchronize_rcu")
        self.forbid_sleep("synchronize_rcu")
        if self.local.mine.depth:
            return  # reported; the wait would be for the caller itself
        snapshot = self.inside()
        self.wait_for_readers()
        self.check_outlasted(snapshot, "synchronize_rcu")

    def call(self, callback: Callable[[], None]) -> None:
        """call_rcu(): run `callback` after a grace period. May be called anywhere, but not after
        `shutdown`."""
        if self._stop.value:
            self.report(
                "call-after-shutdown",
                "BUG: call_rcu() after the last callback was to have run",
                "nothing may be queued once the RCU domain is shut down: the callback would never "
                "run",
                "rcu_barrier() on module exit; Documentation/RCU/rcubarrier",
                stacks.caller(),
            )
            return
        self._queued.add(1)
        entry = Callback(callback, self.inside(), stacks.capture(2, 4))
        self._outstanding[entry] = None
        self._queue.put(entry)
        if not self._has_worker.value and not self._has_worker.xchg(True):
            self._worker = self.runtime.spawn("rcu_gp", self._work)

    def free(self, obj: RcuHead, what: str = "") -> None:
        """kfree_rcu(): `obj` was taken out of sight; after a grace period it is dead, and every
        touch of it a report."""
        obj.retire(what or f"a {type(obj).__name__}", self.reporter)
        self.call(lambda: poison(obj, self.reporter))

    def pointer(self, name: str, value: T) -> RcuPointer[T]:
        """A word that readers of this domain dereference."""
        return RcuPointer(self, name, value)

    def barrier(self) -> None:
        """rcu_barrier(): return when every callback queued so far has run."""
        self.lockdep.might_sleep("rcu_barrier")
        self.forbid_sleep("rcu_barrier")
        target = self._queued.value
        self.runtime.wait_until(
            "rcu_barrier", lambda: self._done.value >= target, on_late=self._barrier_late
        )

    def outstanding(self) -> list[tuple[str, list[str]]]:
        """The callbacks that were queued and have not run, oldest first: who queued each, and the
        stack."""
        return [
            (f"queued by {entry.task}", stacks.render(entry.stack))
            for entry in list(self._outstanding)
        ]

    def _barrier_late(self, seconds: float) -> None:
        """A barrier waits for long. Behind a reader that stays inside, the callbacks wait in the
        queue or in their batch, and the stall is that reader's; callbacks that are in neither, or
        have no task to run them, never will run."""
        if seconds < self.stall_seconds:
            return
        worker = self._worker
        ended = worker is not None and not worker.thread.is_alive()
        for entry in list(self._outstanding):
            if ended or (not entry.taken and not len(self._queue)):
                entry.missed += 1
                if entry.missed == LOOKS:
                    self._report_lost(entry, seconds)

    def _report_lost(self, entry: Callback, seconds: float) -> None:
        lines = stacks.render(entry.stack)
        self.report(
            "callback-lost",
            f"WARNING: a callback given to call_rcu() by {entry.task} was lost; rcu_barrier() has "
            f"waited {seconds:.1f} s for it",
            "every callback runs, once, after a grace period",
            "rcutorture, rcu_barrier(); Documentation/RCU/rcubarrier",
            lines[0].split(" (")[0],
            (f"queued by {entry.task}", lines),
        )

    def in_callback(self) -> bool:
        """Whether the calling task is running `call_rcu` callbacks, a grace period after they were
        queued."""
        return current.task is self._callback_task.value

    def pending(self) -> int:
        """Callbacks queued and not yet run."""
        return self._queued.value - self._done.value

    def shutdown(self) -> None:
        """End the callback task once its queue is empty."""
        self._stop.store(True)

    def _work(self) -> None:
        """The task that waits for grace periods (rcu_gp_kthread and its callback offload in
        one)."""
        while True:
            self.runtime.wait_until(
                "rcu callbacks", lambda: len(self._queue) > 0 or self._stop.value, patience=2e-3
            )
            batch = self._queue.drain()
            if not batch and self._stop.value:
                return
            for entry in batch:
                entry.taken = True
            start = self.runtime.now()
            self.wait_for_readers()
            self._callback_task.value = current.task
            for entry in batch:
                self._run(entry)
            self._callback_task.value = None
            self.grace_periods.add(1)
            if self.probe.grace_period is not None:
                self.probe.grace_period(self.runtime.now() - start, len(batch))

    def _run(self, entry: Callback) -> None:
        """One callback; one that raises must not keep the others, and everybody who waits for them,
        for ever."""
        try:
            self.check_outlasted(entry.snapshot, "call_rcu")
            entry.function()
        except Exception as error:
            if self.runtime.on_task_error is None:
                raise
            self.runtime.on_task_error(current.task, error)
        finally:
            self._outstanding.pop(entry, None)
            self._done.add(1)


class Srcu(EpochDomain):
    """SRCU: a domain whose readers may sleep. To lockdep, a read section is a recursive read lock
    of the domain and `synchronize` a write lock taken and released, so a cycle through both is
    found like any other."""

    STANDS_FOR: Final = "kernel/rcu/srcutree.c: srcu_read_lock(), synchronize_srcu()"

    def __init__(
        self, runtime: Runtime, lockdep: LockDep, name: str, rcu: Rcu, stall_seconds: float = 30.0
    ) -> None:
        super().__init__(runtime, lockdep, name, stall_seconds, rcu.probe)
        self.lock_class: LockClass = lockdep.register(name, sleeping=True, recursive_read=True)
        self._key = self.lock_class.key(READ)
        self._rcu = rcu

    def read_lock(self) -> Hold:
        """srcu_read_lock(): returns the token that the unlock needs."""
        hold = Hold(self.lock_class)
        hold.mode = READ
        task = hold.task
        known = self.lockdep.chain_of(task).children.get(self._key)
        task.chain = known or self.lockdep.extend(task, self.lock_class, READ)
        task.held.append(hold)
        reader = self.local.mine
        reader.depth += 1
        if reader.depth == 1:
            reader.sections += 1
            reader.epoch.value = self.gp_seq.value
        return hold

    def read_unlock(self, hold: Hold) -> None:
        """srcu_read_unlock() with the token of the matching lock."""
        reader = self.local.mine
        mine = hold.task is reader.task and hold.lock_class is self.lock_class
        if reader.depth == 0 or not hold.mode or not mine:
            self._unbalanced()
            return
        hold.mode = 0
        self.lockdep.leave(hold)
        reader.depth -= 1
        if reader.depth == 0:
            reader.epoch.value = IDLE

    def read(self) -> SrcuSection:
        """A read section as a context: `with srcu.read():`."""
        return SrcuSection(self)

    def synchronize(self) -> None:
        """synchronize_srcu(): return when every section that was open is closed. May not be called
        inside one."""
        self.lockdep.might_sleep(f"synchronize_srcu({self.name})")
        self._rcu.forbid_sleep(f"synchronize_srcu({self.name})")
        if self.local.mine.depth:
            self.report(
                "synchronize-in-reader",
                f"WARNING: synchronize_srcu({self.name}) inside a read section of {self.name}",
                "the wait would be for the caller itself",
                "srcu_lock_sync(); Documentation/RCU/checklist",
                self.name,
            )
            return
        self.lockdep.sync(self.lock_class)
        snapshot = self.inside()
        self.wait_for_readers()
        self.check_outlasted(snapshot, f"synchronize_srcu({self.name})")


class RcuSection:
    """An RCU read section as a context."""

    __slots__ = ("_rcu",)

    def __init__(self, rcu: Rcu) -> None:
        self._rcu = rcu

    def __enter__(self) -> None:
        reader = self._rcu.local.mine
        if not reader.depth:
            reader.site = stacks.capture(2, 1)
        self._rcu.read_lock(reader)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        reader = self._rcu.local.mine
        if reader.depth == 1:
            reader.site = ()
        self._rcu.read_unlock(reader)


class SrcuSection:
    """An SRCU read section as a context; keeps the token."""

    __slots__ = ("_hold", "_srcu")

    def __init__(self, srcu: Srcu) -> None:
        self._srcu = srcu
        self._hold: Hold | None = None

    def __enter__(self) -> None:
        self._hold = self._srcu.read_lock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._hold is not None
        self._srcu.read_unlock(self._hold)


class RcuPointer(Generic[T]):
    """A published reference: readers follow it inside a read section, an updater, who has a lock of
    his own, replaces it."""

    __slots__ = ("_rcu", "_word", "name")

    def __init__(self, rcu: Rcu, name: str, value: T) -> None:
        self.name = name
        self._rcu = rcu
        self._word: Cell[T] = rcu.runtime.cell(name, value)

    def dereference(self) -> T:
        """rcu_dereference(): outside a read section a report."""
        self._rcu.assert_held(self.name)
        return self._word.value

    def peek(self) -> T:
        """rcu_dereference_protected(): for the updater, whose lock keeps it from changing."""
        return self._word.value

    def replace(self, value: T) -> T:
        """rcu_replace_pointer(): publish `value`; returns the old one, which readers may still use
        for a grace period."""
        return self._word.xchg(value)
