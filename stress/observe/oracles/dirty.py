"""O8: the dirty log against the ground truth that memory itself keeps."""

from __future__ import annotations

from attrs import define, field

from mmu.machine.vm import VirtualMachine
from mmu.memory.host import tag_of
from mmu.memory.memslots import Memslot
from mmu.probe import override
from stress.observe.oracles.base import Oracle
from stress.scenario.types import Limits


@define
class _Round:
    """One slot's logging: the epoch since the last read, and pages that were written before it and
    not yet reported."""

    since: int
    owed: set[int] = field(factory=set)


class DirtyOracle(Oracle):
    """Between two reads a new epoch begins, with which every write marks what it writes. A page
    written after one read has returned and before the next must be in that one or, where it was
    still on its way, in the one after (reference 2.11).

    One thread at a time reads logs; slots_lock is held in every hook.
    """

    rules = ("O8",)
    title = "every page written between two reads of the dirty log is in one of the next two"

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._rounds: dict[tuple[int, int], _Round] = {}

    @override
    def dirty_log_started(self, slot: Memslot) -> None:
        # Writes from here on must be logged.
        self._rounds[slot.as_id, slot.id] = _Round(self._next_epoch())

    @override
    def memslot_gone(self, slot: Memslot) -> None:
        # What was owed of a slot goes with it; one that was moved takes its log along.
        if self.vm.memslots.peek(slot.as_id).by_id(slot.id) is None:
            self._rounds.pop((slot.as_id, slot.id), None)

    @override
    def dirty_log_read(self, slot: Memslot, pages: set[int]) -> None:
        state = self._rounds.get((slot.as_id, slot.id))
        if state is None:
            return
        self.judged["O8"].add(1)
        missing = state.owed - pages
        on_the_way = self._on_the_way(slot) if missing else set()
        lost = missing - on_the_way
        base = tag_of(slot.as_id, slot.base_gfn)
        written = {
            tag - base
            for tag in self.vm.host.written_since(slot.region, state.since)
            if base <= tag < base + slot.npages
        }
        state.owed = (written - pages) | (missing & on_the_way)
        state.since = self._next_epoch()
        if lost:
            self._report(slot, lost)

    def _on_the_way(self, slot: Memslot) -> set[int]:
        """Pages that a vCPU is about to log, or has logged since the log was read: it marks the
        bitmap before it forgets."""
        gfns = {gfn for vcpu in self.vm.vcpus() for gfn in vcpu.unlogged()}
        bitmap = slot.dirty_bitmap
        marked = (
            {page for page, dirty in enumerate(bitmap) if dirty} if bitmap is not None else set()
        )
        return marked | {gfn - slot.base_gfn for gfn in gfns}

    def _next_epoch(self) -> int:
        epoch = self.vm.host.epoch
        epoch.value += 1
        return epoch.value

    def _report(self, slot: Memslot, lost: set[int]) -> None:
        gfn = slot.base_gfn + min(lost)
        pages, were = (
            ("pages", "were written and are") if len(lost) > 1 else ("page", "was written and is")
        )
        self.kvm.warn(
            "O8",
            "dirty-page-lost",
            f"BUG: {len(lost)} {pages} of {slot.describe()} {were} in neither of the next two "
            "dirty logs",
            "when the log is read, every page written since the previous read is in it or still "
            "flagged, so that the next reports it",
            "KVM_GET_DIRTY_LOG; reference 2.11, invariant I15; R19 device writes, B15, B61, B62",
            subject="dirty log",
            extra=(
                (
                    "pages lost (gfns)",
                    [", ".join(f"{slot.base_gfn + page:#x}" for page in sorted(lost)[:24])],
                ),
            ),
            gfn=gfn,
        )
