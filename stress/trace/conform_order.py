"""When things happen: a recording shows some before they take effect, some after, and some only by
their consequences.

An event is not the write itself. A reference is dropped after `put_root` is recorded; a generation
is stored after `memslots_updated`; an SPTE is written before `kvm_tdp_mmu_spte_changed`; a task can
be stopped for long between its look at something and the line that shows what it saw. Within these
limits the recording's later lines decide in which order the model does things. Nothing here changes
*what* the model does, only when a task that could run does run.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from mmu.memory.memslots import GEN_UPDATE_IN_PROGRESS
from mmu.paging.geometry import PG_LEVEL_4K
from mmu.paging.table import RootPage
from mmu.variant import Variant
from stress.trace.conform_director import Director
from stress.trace.conform_lockstep import Worker
from stress.trace.conform_script import ConformScript, Item, Operation
from stress.trace.conform_values import (
    FAST,
    FAULTED_IN,
    FROZEN,
    JUDGED,
    PUBLISHED,
    SLOT_FOUND,
    SYNC,
    WRITING,
    EntryValue,
    Happening,
)
from stress.trace.layouts import span


class RecordedOrder(Director):
    """Reads off a recording who must have gone first."""

    def __init__(self, script: ConformScript, variants: Iterable[Variant] = ()) -> None:
        super().__init__(script, variants)
        self._postponed: set[int] = set()
        """Faults that have not looked for their slot yet."""
        self._judged: set[int] = set()
        """Faults that have looked whether an MMIO SPTE holds."""
        self._races = {id(_first_of(winner)): (loser, winner) for loser, winner in script.races}
        self._races |= {
            id(done): race for race in script.races for done in race[0].did if done.kind == "mapped"
        }

    def _prepare(self, worker: Worker, operation: Operation, happening: Happening) -> None:
        """Before the model is asked for the recording's next happening: let happen what it
        presupposes."""
        kind = happening.kind
        # the scheduler may have wanted the CPU in the middle of a walk, which flushes before it
        # yields
        worker.resched = kind == "flush"
        if kind == "mmio_check" or (kind == "spte" and happening.values[4].kind == "mmio"):
            self._store_generation(operation, happening)
        elif kind in ("put", "zap_root"):
            self._settle_references(worker, happening)
        if id(happening) in self._races:
            self._race(*self._races[id(happening)])
        if kind == "spte" and happening.values[3].kind == "leaf" and not worker.emitted:
            self._prepare_leaf(worker, operation, happening)
        elif kind == "mmio_check":
            self._write_mmio_first(worker, operation, happening)
        elif kind == "spte" and happening.values[3].kind == "mmio":
            self._judge_before(worker, happening)
        elif kind == "mapped" and happening.values[0] == "SPURIOUS":
            self._map_first(worker, operation)
        elif kind == "fault_done" and operation.given.get("retried_early"):
            self._begin_invalidations()
            self._end_invalidations()
        elif kind == "stale" and happening.values[2] != self.machine.vm.kvm.invalidation.seq.value:
            self._end_invalidations()

    # Leaves.

    def _prepare_leaf(self, worker: Worker, operation: Operation, happening: Happening) -> None:
        """A leaf changes: somebody else may have written it whose line comes later, and the CPU may
        have set its A and D bits."""
        root = self._root_of(operation, happening)
        if root is None:
            return
        if operation.kind == "fault":
            self._write_first(worker, root, happening)
        self.tally.hardware += self.machine.hardware_sets(root, *happening.values[1:4])

    def _root_of(self, operation: Operation, happening: Happening) -> RootPage | None:
        """The model's root whose entry the kernel changes here."""
        if operation.kind == "fault":
            return self.machine.vcpu(operation.vcpu).root
        root = self._pointers.root(self.tally.outcomes[id(operation)].root)
        if root is None:
            as_id = happening.values[0]
            valid = [
                root
                for root in self.machine.vm.roots.snapshot()
                if root.role.as_id == as_id and not root.invalid.value
            ]
            root = valid[0] if len(valid) == 1 else None
        return root if isinstance(root, RootPage) else None

    def _write_first(self, worker: Worker, root: RootPage, happening: Happening) -> None:
        """The entry holds what another fault is about to write, whose line comes later: an event
        follows its write."""
        _, gfn, level, old, _ = happening.values
        self._write_entry_first(worker, root, (gfn, level), old)

    def _write_mmio_first(self, worker: Worker, operation: Operation, happening: Happening) -> None:
        """The same for the MMIO SPTE that a fault judges."""
        root = self.machine.vcpu(operation.vcpu).root
        gfn, generation = happening.values[:2]
        if root is not None:
            seen = EntryValue("mmio", gfn, f"{generation:#x}")
            self._write_entry_first(worker, root, (gfn, PG_LEVEL_4K), seen)

    def _write_entry_first(
        self, worker: Worker, root: RootPage, where: tuple[int, int], old: EntryValue
    ) -> None:
        if self.machine.looks(root, *where) == old:
            return
        for other, outcome in self._busy("fault"):
            following = outcome.following()
            if other is not worker and following is not None and _writes(following, *where, old):
                self._next(other)

    def _map_first(self, worker: Worker, operation: Operation) -> None:
        """A fault has found a leaf that another fault has written, whose line may come later."""
        gfn = operation.given["gfn"]
        for other, outcome in self._busy("fault"):
            following = outcome.following()
            if (
                other is not worker
                and following is not None
                and following.kind == "spte"
                and following.values[4].kind == "leaf"
                and following.values[1] == gfn & -span(following.values[2])
            ):
                self._next(other)

    def _judge_before(self, worker: Worker, happening: Happening) -> None:
        """An MMIO SPTE is replaced. Faults that judge it, as a later line shows, have read it."""
        _, gfn, _, old, _ = happening.values
        for other, outcome in self._busy("fault"):
            following = outcome.following()
            if (
                other is not worker
                and following is not None
                and following.kind == "mmio_check"
                and (following.values[0], f"{following.values[1]:#x}") == (gfn, old.rights)
            ):
                self._next(other)

    def _race(self, loser: Operation, winner: Item) -> None:
        """Two faults go for one entry: both have read it, then the winner replaces it, then the
        loser tries to."""
        assert isinstance(winner.what, Happening)
        gfn, level = winner.what.values[1:3]
        losing, winning = self._workers.get(loser.pid), self._workers.get(winner.pid)
        if (
            losing is None
            or winning is None
            or self._current(losing) is not loser
            or self._current(winning) is not winner.operation
        ):
            return  # the other one has not begun, or is over
        self._races.pop(id(_first_of(winner)), None)
        self._reach(losing, WRITING, where=(gfn, level))
        while not winning.idle and all(each.kind == SYNC for each in winning.emitted):
            if winning.ready is not None and not winning.ready():
                return
            self._lockstep.resume(winning)

    # References, requests, invalidations.

    def _settle_references(self, worker: Worker, happening: Happening) -> None:
        """A count of references that another task is just changing: a put counts down after the
        recording shows it, a walk counts up before."""
        address, count = happening.values[:2]
        root = self._pointers.root(address)
        if not isinstance(root, RootPage) or count is None:
            return
        for other in self._workers.values():
            current = self._current(other)
            if (
                other is worker
                or current is None
                or other.emitted
                or (other.ready is not None and not other.ready())
            ):
                continue
            outcome = self.tally.outcomes[id(current)]
            surplus = root.refcount.read() - count
            dropped = outcome.last is not None and (outcome.last.kind, outcome.last.values[:1]) == (
                "put",
                (address,),
            )
            walks = outcome.walks_to() == address
            if (surplus > 0 and dropped) or (surplus < 0 and walks):
                self._reach(other)

    def _let_request(self, operation: Operation) -> None:
        """A request is served that another task is just making: its bit was set before the
        recording shows that it is. Where an older request is pending it may have been served for
        that one only, but then it is served again later."""
        state = self.machine.vcpu(operation.vcpu).state
        for other in self._workers.values():
            if (
                other.requesting
                and not other.emitted
                and not (
                    state.requests.value & other.requesting and operation.given["served_again"]
                )
                and other.ready is None
            ):
                self._lockstep.resume(other)

    def _begin_invalidations(self) -> None:
        """A fault is retried although nothing was against it: an invalidation has begun that shows
        only a little later."""
        for worker, outcome in self._busy("range-start"):
            if not outcome.compared:
                self._reach(worker)

    def _end_invalidations(self) -> None:
        """An invalidation's end has taken effect by now, although its call has not returned."""
        for worker, outcome in self._busy("range-end"):
            if outcome.following() is None:
                self._reach(worker)

    def _fault_in(self, worker: Worker, operation: Operation) -> None:
        """A fault that goes on to mmu_lock has found nothing against that before it: if there is
        nothing now, this is the moment."""
        following = self.tally.outcomes[id(operation)].following()
        if (
            operation.kind == "fault"
            and following is not None
            and following.kind == "stale"
            and not self.machine.looks_stale(operation)
        ):
            self._reach(worker, FAULTED_IN)

    # Memslots.

    def _store_generation(self, operation: Operation, happening: Happening) -> None:
        """Memslots have a new generation by now, although the call that gives it to them has not
        returned."""
        seen = (
            happening.values[2]
            if happening.kind == "mmio_check"
            else int(happening.values[4].rights, 16)
        )
        slots = self.machine.vm.memslots.peek(self.machine.vcpu(operation.vcpu).role.as_id)
        if slots.generation.value == seen:
            return
        for worker, outcome in self._busy("set-region"):
            if (
                outcome.last is not None
                and outcome.last.kind == "generation"
                and outcome.last.values[0] == seen
            ):
                self._reach(worker)

    def _judge_earlier(self) -> None:
        """Memslots are about to be in flux, or to have a new generation. Faults that judge an MMIO
        SPTE by the generation now have done so."""
        for worker, outcome in self._busy("fault"):
            following = outcome.following()
            if following is None or following.kind != "mmio_check":
                continue
            slots = self.machine.vm.memslots.peek(
                self.machine.vcpu(outcome.operation.vcpu).role.as_id
            )
            if slots.generation.value & self.machine.generation_mask == following.values[2]:
                self._write_mmio_first(worker, outcome.operation, following)
                self._next(worker)

    def _read_generation(self, operation: Operation) -> None:
        """Memslots get a new generation now. Faults that are about to note the one before have read
        it already."""
        last = self.tally.outcomes[id(operation)].last
        if last is None or last.kind != "generation":
            return
        self._judge_earlier()
        for worker, outcome in self._busy("fault"):
            following = outcome.following()
            if following is None or following.kind != "spte" or following.values[4].kind != "mmio":
                continue
            if int(following.values[4].rights, 16) != last.values[0]:
                self._reach(worker, WRITING, where=following.values[1:3])

    def _look(self, worker: Worker, operation: Operation, *, waits: bool = True) -> None:
        """A fault judges its MMIO SPTE and looks for its slot about now; unless what shows later
        cannot be seen yet, and it `waits`: a task can be stopped for long before it looks."""
        self._postponed.discard(id(operation))
        if not (
            self._judge(worker, operation, waits) and self._find_slot(worker, operation, waits)
        ):
            self._postponed.add(id(operation))

    def _judge(self, worker: Worker, operation: Operation, waits: bool) -> bool:
        """An MMIO SPTE never holds while memslots are in flux. When nothing says how it was judged
        they were, so whoever is publishing a slot set has done so by now."""
        if id(operation) in self._judged:
            return True
        if operation.given["reserved"]:
            slots = self.machine.vm.memslots.peek(self.machine.vcpu(operation.vcpu).role.as_id)
            if (
                not slots.generation.value & GEN_UPDATE_IN_PROGRESS
                and not self._publish()
                and waits
            ):
                return False
        self._reach(worker, JUDGED)
        self._judged.add(id(operation))
        return True

    def _find_slot(self, worker: Worker, operation: Operation, waits: bool) -> bool:
        """If a slot set is just being published, what the fault finds shows whether it was visible
        by then."""
        sees = operation.given["sees"]
        if sees and sees != self._slot_now(operation) and not self._publish() and waits:
            return False
        self._reach(worker, FAST, SLOT_FOUND)
        return True

    def _publish(self) -> bool:
        """Make a slot set visible that is just being swapped in; whether there was one."""
        publisher = self._publisher()
        if publisher is not None:
            self._reach_publication(publisher)
        return publisher is not None

    def _reach_publication(self, worker: Worker) -> None:
        """A swap has made its slot set visible. It waits for all invalidations first: so those
        that have nothing more to show are over."""
        self._judge_earlier()
        self._reach(worker, PUBLISHED)
        if worker.ready is not None and not worker.ready():
            self._end_invalidations()
            self._reach(worker, PUBLISHED)

    def _publisher(self) -> Worker | None:
        """Who is between the begin of a swap and its publication."""
        for worker, outcome in self._busy("set-region"):
            if outcome.last is not None and outcome.last.kind == "swap":
                return worker
        return None

    def _slot_now(self, operation: Operation) -> str:
        slot = self.machine.vm.memslots.peek(self.machine.vcpu(operation.vcpu).role.as_id).at(
            operation.given["gfn"]
        )
        return "none" if slot is None else "invalid" if slot.invalid else "valid"


def _first_of(winner: Item) -> Happening:
    """The first line of the change of an entry: kernels from 7.x on tell of the table that it has
    removed first."""
    assert isinstance(winner.what, Happening)
    assert winner.operation is not None
    first = winner.what
    before = takewhile(lambda done: done is not winner.what, winner.operation.did)
    for done in reversed([each for each in before if each.kind != SYNC]):
        if done.kind != "zap_page" and not (done.kind == "spte" and done.values[4] == FROZEN):
            break
        first = done
    return first if winner.what.values[3].kind == "table" else winner.what


def _writes(happening: Happening, gfn: int, level: int, new: EntryValue) -> bool:
    """Whether a happening is the write of this value to this entry."""
    return (
        happening.kind == "spte"
        and happening.values[1:3] == (gfn, level)
        and happening.values[4] == new
    )
