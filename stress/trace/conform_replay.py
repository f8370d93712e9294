"""Drive the model through a recording, happening by happening, and note where the two part.

The recording dictates the order: whoever made its next line runs, until the model says what it
does. A model that says the same has matched; one that says something else has *parted* from the
kernel in this operation: the rest of it is collected on both sides and shown. Rules
(`conform_rules`) explain the few differences that are known and meant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from mmu.memory.requests import IN_GUEST_MODE, OUTSIDE_GUEST_MODE
from mmu.paging.geometry import PG_LEVEL_4K
from mmu.paging.table import RootPage
from mmu.variant import Variant
from stress.trace.conform_director import OperationDifference, OperationOutcome, ReplayTally, Stuck
from stress.trace.conform_lockstep import Worker
from stress.trace.conform_order import RecordedOrder
from stress.trace.conform_parts import REQUESTS
from stress.trace.conform_rules import RULES, Rule, Side
from stress.trace.conform_script import CREATE_VCPU, ENTER, ConformScript, Item, Operation
from stress.trace.conform_values import (
    BEGIN,
    JUDGED,
    OVER,
    PUBLISHED,
    ROOTED,
    SEQ_TAKEN,
    SYNC,
    Happening,
    fits,
)

IN_FLIGHT = frozenset({"put", "invalidated"})
"""What is recorded before it takes effect, and is seen by others a little later: a reference
dropped, an invalidation over (and a generation, which is never the last that a call does)."""
COUNTED = frozenset({"put", "zap_root"})
"""What shows a root's references, which others may change while the task has stopped there."""


def _recounted(happening: Happening) -> Happening:
    root, _, _, *rest = happening.values
    return happening._replace(values=(root, root.refcount.read(), root.invalid.value, *rest))


class Replay(RecordedOrder):
    """One replay of one script."""

    def __init__(self, script: ConformScript, variants: Iterable[Variant] = ()) -> None:
        super().__init__(script, variants)
        self._reports = 0
        self._position = 0
        self._parted: set[int] = set()
        self._coasting: list[Worker] = []
        """Workers whose operation has nothing more to show: they end it as soon as they can."""
        self._served = {
            done.values[0]
            for operation in script.operations
            for done in operation.did
            if done.kind == "served"
        }
        """The requests whose service the recording shows."""

    def run(self) -> ReplayTally:
        """All of it, or as far as it goes."""
        try:
            for position, item in enumerate(self.script.items):
                self._position = position
                self._item(item)
                if self._coasting:
                    self._coast()
            # what was under way when the recording became useless has no end to compare
            if not self.script.damage:
                for worker in list(self._workers.values()):
                    self._finish(worker)
                self._count_freed()
        except Stuck as stuck:
            self.tally.stuck = str(stuck)
        finally:
            self._lockstep.stop()
        return self.tally

    def _count_freed(self) -> None:
        """When the VM is gone both have freed as many page-table pages, all of them through RCU."""
        ends = [operation for operation in self.script.operations if operation.kind == "destroy"]
        if not ends or not self.script.freed:
            return
        freed = self.machine.freed_pages()
        if freed >= self.script.freed:
            # what is missing may have been freed by a task, or at a time, that was not recorded
            self.tally.compared["freed"] += self.script.freed
            self.tally.unfreed = freed - self.script.freed
        else:
            note = (
                f"the kernel has freed {self.script.freed} page-table pages in all, the model "
                f"{freed}"
            )
            self._part(ends[-1], ends[-1].line, [], [], note)

    # Items.

    def _item(self, item: Item) -> None:
        if item.operation is not None:
            worker = self._worker(item.pid)
            if item.what == BEGIN:
                self._begin(worker, item.operation)
            else:
                assert isinstance(item.what, Happening)
                self._expect(worker, item.operation, item.what)
        elif item.what == CREATE_VCPU:
            self.machine.create_vcpus(item.vcpu + 1)
        elif item.what == ENTER:
            self._enter(item)
        else:
            state = self.machine.vcpu(item.vcpu).state
            state.exits.value += 1
            state.mode.store(OUTSIDE_GUEST_MODE)

    def _begin(self, worker: Worker, operation: Operation) -> None:
        self.tally.outcomes[id(operation)] = OperationOutcome(operation)
        current = self._current(worker)
        if current is not None and operation in current.nested:
            self._operations[worker].append(operation)
            if id(current) not in self._parted:
                self._expect(worker, operation, Happening(BEGIN, (operation,), operation.line))
            return
        self._finish(worker)
        self._operations[worker] = deque([operation])
        if operation.kind in ("free-obsolete", "flush-tlb"):
            self._let_request(operation)
        worker.start(lambda: self.machine.run(operation))
        self._expect(worker, operation, Happening(BEGIN, (operation,), operation.line))
        if operation.kind != "fault":
            return
        if operation.given["looks_early"]:
            self._look(worker, operation)
        elif self.machine.is_mmio_cached(operation):
            self._reach(worker, JUDGED)

    def _enter(self, item: Item) -> None:
        """A vCPU enters the guest: it may have nothing left to serve."""
        worker = self._worker(item.pid)
        last = self._current(worker)
        self._finish(worker)
        state = self.machine.vcpu(item.vcpu).state
        pending = [
            name
            for bit, name in REQUESTS.items()
            if state.requests.value & bit and name in self._served
        ]
        self.tally.entries += 1
        if pending:
            operation = last or Operation("enter", item.pid, item.line, "", item.vcpu, running=True)
            self._part(
                operation,
                item.line,
                [],
                [],
                f"vcpu{item.vcpu} enters the guest with {', '.join(pending)} pending in the model",
            )
            state.requests.fetch_and(0)
        state.mode.store(IN_GUEST_MODE)

    # Comparing.

    def _expect(self, worker: Worker, operation: Operation, happening: Happening) -> None:
        """The recording's next happening: the model has to be about to do the same."""
        if happening.kind == SYNC:
            self._synchronise(worker, operation, happening.values[0])
            return
        outer = self._current(worker)
        last = happening.kind == "put" and happening.values[1] == 1
        self._prepare(worker, operation, happening)
        if id(operation) in self._parted or (outer is not None and id(outer) in self._parted):
            self._collect(worker, operation, happening)
        else:
            if happening.kind in COUNTED and self._is_read_late(happening):
                happening = happening._replace(
                    values=(happening.values[0], None, *happening.values[2:])
                )
            while not self._compare(worker, operation, happening):
                pass
        if operation.kind == "fault" and id(operation) in self._parted:
            self._adopt(operation, happening)
        # the last one: the root's addresses are free for another
        if last:
            self._physical.forget_root(self._pointers.forget(happening.values[0]))

    def _compare(self, worker: Worker, operation: Operation, happening: Happening) -> bool:
        """Hold the model's next happening against the recording's; whether the recording's is dealt
        with."""
        mine = self._next(worker)
        if mine is not None and mine.kind in COUNTED and len(worker.emitted) == 1:
            mine = worker.emitted[0] = _recounted(mine)
        if mine is not None and fits(happening, mine, self._pointers, self._physical):
            worker.emitted.popleft()
            self._matched(worker, operation, happening)
            return True
        rule = self._explained(operation, happening, mine)
        if mine is not None and (rule is None or rule.side is not Side.KERNEL):
            worker.emitted.popleft()
        if rule is None:
            self._part(operation, happening.line, [happening], [mine] if mine is not None else [])
            return True
        self._note(operation, rule)
        return rule.side is not Side.MODEL

    def _is_read_late(self, happening: Happening) -> bool:
        """A probe reads a count of references only after its line has got its place in the
        recording: others may have changed it until the task's next line, as later lines show."""
        address, count = happening.values[:2]
        root = self._pointers.root(address)
        if not isinstance(root, RootPage) or count is None:
            return False
        mine, pid = root.refcount.read(), self.script.items[self._position].pid
        if mine == count:
            return False
        for item in islice(self.script.items, self._position + 1, None):
            if item.pid == pid:
                break
            if isinstance(item.what, Happening) and item.what.values[:1] == (address,):
                mine += {"put": -1, "walk": 1}.get(item.what.kind, 0)
            if mine == count:
                return True
        return False

    def _synchronise(self, worker: Worker, operation: Operation, point: str) -> None:
        """The recording tells that a task is at a point, or has just passed it."""
        if point == SEQ_TAKEN:
            if id(operation) in self._postponed:
                self._look(worker, operation, waits=False)
            if operation.given.get("seq") not in (None, self.machine.vm.kvm.invalidation.seq.value):
                self._end_invalidations()
        elif point == OVER:
            self._read_generation(operation)
        if point == PUBLISHED:
            self._reach_publication(worker)
        else:
            self._reach(worker, point)
        if point == SEQ_TAKEN:
            self._fault_in(worker, operation)
        if point in (PUBLISHED, OVER):
            self._coasting.append(worker)  # it may wait for readers from now on

    def _note(self, operation: Operation, rule: Rule) -> None:
        self.tally.explained[rule.name] += 1
        self.tally.outcomes[id(operation)].explained.append(rule.name)

    def _explained(
        self, operation: Operation, kernel: Happening | None, model: Happening | None
    ) -> Rule | None:
        return next(
            (rule for rule in RULES if rule.applies(operation, kernel, model, self.script)), None
        )

    def _matched(self, worker: Worker, operation: Operation, happening: Happening) -> None:
        if happening.kind == BEGIN:
            return
        outcome = self.tally.outcomes[id(operation)]
        outcome.compared += 1
        outcome.last = happening
        if happening.kind in ROOTED:
            outcome.root = happening.values[0] or 0
        self.tally.compared[happening.kind] += 1
        if (happening.kind, happening.values[1:2]) == ("fast", ("none",)) or (
            happening.kind == "mmio_check" and not happening.values[3]
        ):
            self._find_slot(worker, operation, False)
        if happening.kind == "swap" and not self.script.recorded[PUBLISHED]:
            self._reach_publication(worker)
        over = operation.did[-1] is happening and self._operations[worker][0] is operation
        if over and happening.kind not in IN_FLIGHT:
            self._coasting.append(worker)

    def _collect(self, worker: Worker, operation: Operation, happening: Happening) -> None:
        """The operation has parted already: keep pace, and note what each side does."""
        outcome = self.tally.outcomes[id(operation)]
        if happening.kind != BEGIN:
            mine = self._next(worker)
            if mine is not None:
                worker.emitted.popleft()
            self._part(
                outcome.operation, happening.line, [happening], [mine] if mine is not None else []
            )

    def _part(
        self,
        operation: Operation,
        line: int,
        kernel: list[Happening],
        model: list[Happening],
        note: str = "",
    ) -> None:
        outcome = self.tally.outcomes.setdefault(id(operation), OperationOutcome(operation))
        if outcome.difference is None:
            outcome.difference = OperationDifference(operation, line, note=note)
        outcome.difference.kernel += [f"line {each.line}: {each}" for each in kernel]
        outcome.difference.model += [str(each) for each in model]
        self._parted.add(id(operation))

    def part(self, worker: Worker, note: str) -> None:
        """The worker's operation does something else than the kernel's."""
        current = self._current(worker)
        assert current is not None
        self._part(current, current.line, [], [], note)

    # Ending.

    def _coast(self) -> None:
        """Let go on who has nothing more to show, until it waits or says something after all."""
        for worker in list(self._coasting):
            self._reach(worker)
            if worker.idle or worker.emitted:
                self._coasting.remove(worker)

    def _finish(self, worker: Worker) -> None:
        """The recording has nothing more of this operation: let the model end it, and see what it
        still does."""
        doing = self._operations.get(worker)
        if doing is None:
            return
        outer = doing[0]
        worker.resched = False
        while (mine := self._next(worker)) is not None:
            worker.emitted.popleft()
            if mine.kind in (BEGIN, SYNC):
                continue
            rule = None if id(outer) in self._parted else self._explained(outer, None, mine)
            if rule is not None and rule.side is Side.MODEL:
                self._note(outer, rule)
            else:
                self._part(outer, outer.line, [], [mine])
        del self._operations[worker]
        self._check(worker, outer)

    def _adopt(self, operation: Operation, happening: Happening) -> None:
        """They have parted: go on from what the kernel has, so that what comes after is judged by
        itself."""
        if happening.kind == "spte" and happening.values[2] == PG_LEVEL_4K:
            root = self._root_of(operation, happening)
            if root is not None:
                self.machine.adopt(root, happening.values[1], happening.values[4])

    def _check(self, worker: Worker, operation: Operation) -> None:
        """What went wrong in the model itself: an exception, or a broken rule that it reports."""
        if worker.error is not None:
            self._part(operation, operation.line, [], [], f"the model failed: {worker.error!r}")
            worker.error = None
        reports = self._reporter.reports
        for report in reports[self._reports :]:
            self._part(
                operation,
                operation.line,
                [],
                [],
                f"the model reports {report.rule} {report.code}: {report.headline}",
            )
        self._reports = len(reports)
