"""The mechanics of a replay: workers, one for each task of the recording, of which the director
lets one run at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice

from attrs import define, field

from mmu.report import Reporter
from mmu.variant import Variant
from stress.trace.conform_actions import Machine
from stress.trace.conform_lockstep import Lockstep, Worker
from stress.trace.conform_parts import ReplayRuntime
from stress.trace.conform_rules import FILTERED
from stress.trace.conform_script import ConformScript, Operation
from stress.trace.conform_values import FROZEN, KINDS, NONE, SYNC, Bindings, Happening

PATIENCE = 10_000
"""Turns that other workers get while one waits for them."""


class Stuck(Exception):
    """The model waits for something that the kernel did not wait for: nothing can be compared from
    here on."""


@define
class OperationDifference:
    """Where an operation of the model and of the kernel part: what each did that the other did
    not."""

    operation: Operation
    line: int
    kernel: list[str] = field(factory=list)
    model: list[str] = field(factory=list)
    note: str = ""


@define
class OperationOutcome:
    """What came of one operation."""

    operation: Operation
    compared: int = 0
    last: Happening | None = None
    """What both did last."""
    root: int = 0
    """The address of the root that the kernel is busy with, as far as it was named."""
    explained: list[str] = field(factory=list)
    difference: OperationDifference | None = None

    @property
    def line(self) -> int:
        """Where the two sides parted, or where the operation began."""
        return self.operation.line if self.difference is None else self.difference.line

    def following(self) -> Happening | None:
        """What the kernel does next in it that is compared."""
        return next(self._rest(), None)

    def walks_to(self) -> int:
        """The root to which a walk is just going, whose reference it takes before it puts the one
        that it comes from; 0 if none."""
        rest = list(islice(self._rest(), 2))
        if rest and rest[0].kind == "put":
            rest.pop(0)
        return rest[0].values[0] or 0 if rest and rest[0].kind == "walk" else 0

    def _rest(self) -> Iterator[Happening]:
        """What the kernel still does in it."""
        done = self.operation.did
        index = next(
            (number + 1 for number in range(len(done) - 1, -1, -1) if done[number] is self.last), 0
        )
        return (each for each in islice(done, index, None) if each.kind != SYNC)


@define
class ReplayTally:
    """What came of the whole replay. `compared` counts happenings that were equal, by kind."""

    outcomes: dict[int, OperationOutcome] = field(factory=dict)
    compared: Counter[str] = field(factory=Counter)
    explained: Counter[str] = field(factory=Counter)
    unseen: Counter[str] = field(factory=Counter)
    """What the model did of a kind that the recording never has: either it was not recorded, or the
    kernel never did it."""
    entries: int = 0
    """Entries to the guest that were checked for requests that had to be served first."""
    hardware: int = 0
    """Leaves whose A or D bit the CPU had set in between, as the recording shows when they
    change."""
    ahead: int = 0
    """Happenings that the model did earlier than the recording says, because a lock had to be
    free."""
    unfreed: int = 0
    """Page-table pages that the model has freed and whose freeing the recording does not show."""
    stuck: str = ""


class Director:
    """Lets workers run: until they say something, to a point, or out of somebody's way."""

    def __init__(self, script: ConformScript, variants: Iterable[Variant] = ()) -> None:
        self.script = script
        self.tally = ReplayTally()
        self._lockstep = Lockstep()
        self._reporter = Reporter(None)
        self._wanted = frozenset(kind for kind in KINDS if script.recorded[kind])
        self.machine = Machine(
            script, ReplayRuntime(self._lockstep), self._reporter, variants, self._wants
        )
        self._pointers = Bindings()
        """Roots by the address of their struct kvm_mmu_page."""
        self._physical = Bindings()
        """Roots by their physical address."""
        self._workers: dict[int, Worker] = {}
        self._operations: dict[Worker, deque[Operation]] = {}

    def _wants(self, happening: Happening) -> bool:
        """Whether the recording can have it; what its set-up has filtered out is explained at
        once."""
        if (
            happening.kind == "spte"
            and happening.values[3:] == (NONE, FROZEN)
            and not self.script.freezes_recorded
        ):
            self.tally.explained[FILTERED[0]] += 1
            return False
        if happening.kind in self._wanted:
            return True
        self.tally.unseen[happening.kind] += happening.kind in KINDS
        return False

    # Who does what.

    def _worker(self, pid: int) -> Worker:
        if pid not in self._workers:
            self._workers[pid] = self._lockstep.worker(f"task-{pid}")
        return self._workers[pid]

    def _current(self, worker: Worker) -> Operation | None:
        """The outermost operation of a worker."""
        doing = self._operations.get(worker)
        return doing[0] if doing else None

    def _busy(self, kind: str) -> list[tuple[Worker, OperationOutcome]]:
        """The workers that do an operation of a kind, and have not said anything yet that is still
        to come."""
        found = []
        for worker, doing in self._operations.items():
            if doing and doing[0].kind == kind and not worker.emitted:
                found.append((worker, self.tally.outcomes[id(doing[0])]))
        return found

    # Running.

    def _next(self, worker: Worker) -> Happening | None:
        """What the worker is about to do, looked at but not taken; None when its operation is
        over."""
        while True:
            self._drive(worker)
            if not worker.emitted or worker.emitted[0].kind != SYNC:
                return worker.emitted[0] if worker.emitted else None
            worker.emitted.popleft()

    def _reach(self, worker: Worker, *points: str, where: tuple[int, ...] = ()) -> None:
        """Let the worker run to a point, if it gets there without doing anything that is compared,
        and without waiting."""
        while not worker.idle:
            while worker.emitted and worker.emitted[0].kind == SYNC:
                point, *place = worker.emitted.popleft().values
                if point in points and tuple(place) == where:
                    return
            if worker.emitted or (worker.ready is not None and not worker.ready()):
                return
            self._lockstep.resume(worker)

    def _drive(self, worker: Worker) -> None:
        """Let the worker run until it says something, or is done."""
        turns = 0
        while not worker.emitted and not worker.idle:
            if worker.ready is not None and not worker.ready():
                turns += 1
                if turns > PATIENCE or not (self._unblock(worker) or self._acknowledge(worker)):
                    raise Stuck(
                        f"{worker.name} waits for {worker.waiting}: the kernel did not wait there"
                    )
            else:
                self._lockstep.resume(worker)

    def _unblock(self, worker: Worker) -> bool:
        """Let run whoever can make true what the worker waits for; whether anybody could move."""
        owners = (
            [owner for owner in worker.blocker.owners if owner is not None]
            if worker.blocker is not None
            else []
        )
        background = [
            other for other in self._lockstep.workers if other.background and not other.idle
        ]
        others = owners or [
            *background,
            *(other for other in self._workers.values() if other is not worker and not other.idle),
        ]
        moved = False
        for other in others:
            if worker.ready is not None and not worker.ready():
                moved |= self._nudge(other, worker)
        return moved

    def _acknowledge(self, worker: Worker) -> bool:
        """Who waits for vCPUs to leave the guest is let go on: the recording goes on, so they have
        acknowledged. That the model still waits is a difference of the operation."""
        if not worker.requesting:
            return False
        for vcpu in self.machine.vm.vcpus():
            vcpu.state.exits.value += 1
        self.part(worker, f"the model waits for {worker.waiting}: the kernel did not")
        return True

    def part(self, worker: Worker, note: str) -> None:
        """The worker's operation does something else than the kernel's."""
        raise NotImplementedError

    def _nudge(self, other: Worker, worker: Worker) -> bool:
        """One turn for `other`; what it says is kept for later. False when it waits itself, and
        cannot be helped."""
        if other.ready is not None and not other.ready():
            return (
                other.blocker is not None
                and other.blocker is not worker.blocker
                and self._unblock(other)
            )
        before = len(other.emitted)
        other.resched = worker.blocker is not None
        self._lockstep.resume(other)
        self.tally.ahead += len(other.emitted) - before
        return True
