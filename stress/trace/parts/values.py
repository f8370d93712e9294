"""What an SPTE change says by itself, and together with what its fault says: values, frames,
rights, generations."""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define

from stress.trace.events import Event, FastFault, MarkMmio, SetSpte, SpteChanged, SpteRequested
from stress.trace.facts import MARKED
from stress.trace.layouts import ADDRESS, PRESENT, WRITABLE, is_frozen, is_leaf, span
from stress.trace.parts.freezing import LEGAL
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.parts.placing import index_of
from stress.trace.parts.spte_rules import Illegal, why_illegal
from stress.trace.tree import EMPTY, normal
from stress.trace.world import TracedTask, TracedWorld, name_of

CHANGE: Final = frozenset({"kvm_tdp_mmu_spte_changed"})
FLAGS: Final = ~ADDRESS
"""All of an SPTE but the frame."""
RECENT: Final = 4096
"""Changes that may explain why an entry holds other rights than its fault has written."""


@define(eq=False)
class Disagreement:
    """A fault that finds other rights in its entry than it has written."""

    event: Event
    said: SetSpte
    change: tuple[int, int, int, int]


def _kind(old: int, new: int) -> tuple[int, int]:
    """A change without the frames that its leaves map."""
    return (old & FLAGS if old & PRESENT else old, new & FLAGS if new & PRESENT else new)


class ValuesPart(CheckPart):
    """Judges each change alone, and against what its own fault says."""

    def __init__(self, world: TracedWorld) -> None:
        super().__init__(world)
        self._recent: deque[tuple[int, int, int, int]] = deque(maxlen=RECENT)
        self._doubted: deque[Disagreement] = deque()
        self._usual: set[tuple[int, int]] = set()
        self._held = world.ledger.tallies["transitions"].held

    def handlers(self) -> dict[str, Handler]:
        """The changes, and the tracepoints of a fault."""
        return {
            "kvm_tdp_mmu_spte_changed": self.changed,
            "kvm_mmu_set_spte": self.set_spte,
            "kvm_mmu_spte_requested": self.requested,
            "map": self.mapping,
            "map()": self.mapping,
            "fast_page_fault": self.fast_fault,
            "mark_mmio_spte": self.mark_mmio,
        }

    def changed(self, event: Event, task: TracedTask, change: SpteChanged) -> None:
        """The rules that need nothing but the event."""
        old, new = change.old, change.new
        usual = change.level == 1 and not old & new & PRESENT and _kind(old, new) in self._usual
        if not usual:
            self._judge(event, task, change)
            return
        # most changes are of a kind that was judged before
        self._held[LEGAL] += 1
        if new & PRESENT:
            self._judge_fault(event, task, change)
        elif old & WRITABLE:
            self._recent.append((event.line, event.pid, change.gfn, 1))

    def _judge(self, event: Event, task: TracedTask, change: SpteChanged) -> None:
        world, old, new = self.world, change.old, change.new
        detector = world.detector
        trouble = detector.see(event.line, old) or detector.see(event.line, new)
        if old & PRESENT and (new ^ old) & (PRESENT | WRITABLE):
            self._recent.append((event.line, event.pid, change.gfn, change.level))
        if trouble and not world.forced_kernel:
            self._illegal(event, change, Illegal("foreign-value", trouble))
        elif is_frozen(old):
            world.broken(
                "frozen",
                "frozen-changed",
                f"gfn {change.gfn:#x} level {change.level}: a frozen entry was changed to {new:#x}",
                [(event.line, f"the entry was frozen ({old:#x}) and becomes {new:#x}")],
                task=name_of(event),
            )
        else:
            if is_frozen(new):
                world.held("frozen", "entries frozen that were not frozen before")
            why = why_illegal(world, change)
            if why is not None:
                self._illegal(event, change, why)
            else:
                self._held[LEGAL] += 1
                if change.level == 1 and not is_frozen(new) and world.vendor is not None:
                    self._learn(old, new)
                if new & PRESENT and is_leaf(new, change.level):
                    self._judge_fault(event, task, change)

    def _learn(self, old: int, new: int) -> None:
        """A change of a leaf that is legal whatever the gfn and the frame are."""
        empty = [value for value in (old, new) if not value & PRESENT]
        if all(normal(value) == EMPTY for value in empty) and len(self._usual) < RECENT:
            self._usual.add(_kind(old, new))

    def _illegal(self, event: Event, change: SpteChanged, why: Illegal) -> None:
        text = (
            f"gfn {change.gfn:#x} level {change.level}: {change.old:#x} -> {change.new:#x}: "
            f"{why.sentence}"
        )
        self.world.broken(
            "transitions",
            why.code,
            text,
            [(event.line, "this change")],
            task=name_of(event),
            before=why.before,
        )

    def _judge_fault(self, event: Event, task: TracedTask, change: SpteChanged) -> None:
        """A fault maps the frame that it has found, at the gfn that it is about, and writable only
        if the host allows that."""
        frame = task.frame("map")
        if frame is None:
            return
        gfn, pfn = frame.number("gfn", -1), frame.number("pfn")
        if gfn < 0 and task.requested is not None:
            gfn, pfn = task.requested
        if pfn < 0 or not change.gfn <= gfn < change.gfn + span(change.level):
            return
        if (change.new & ADDRESS) >> 12 != pfn - (gfn - change.gfn):
            text = (
                f"the fault has found pfn {pfn:#x} for gfn {gfn:#x}, which is not the frame of "
                "this leaf"
            )
            self._illegal(event, change, Illegal("other-frame", text))
            return
        self.world.held("transitions", "leaves with the frame the fault has found")
        allowed = frame.number("map_w", frame.number("map_writable"))
        if allowed >= 0:
            self._judge_rights(event, change, allowed)

    def _judge_rights(self, event: Event, change: SpteChanged, allowed: int) -> None:
        vendor = self.world.vendor
        may_write = change.new & WRITABLE or (vendor and change.new & vendor.host_writable)
        if may_write and not allowed:
            text = "the leaf is writable, although the host did not let the fault write"
            self._illegal(event, change, Illegal("writable-frame", text))
        else:
            self.world.held("transitions", "leaves with the rights the host has given")

    def requested(self, event: Event, task: TracedTask, said: SpteRequested) -> None:
        """kvm_mmu_spte_requested: a fault begins to map."""
        task.requested = (said.gfn, said.pfn)
        task.fault = event.line
        if said.access >= 0:
            self.world.detector.see_access(event.line)

    def mapping(self, event: Event, task: TracedTask, _said: object) -> None:
        """kvm_tdp_mmu_map() begins."""
        task.fault = event.line
        task.requested = None

    def fast_fault(self, event: Event, _task: TracedTask, fault: FastFault) -> None:
        """A lockless change of rights."""
        if fault.fixed:
            self._recent.append((event.line, event.pid, fault.address >> 12, 0))

    def set_spte(self, event: Event, task: TracedTask, said: SetSpte) -> None:
        """kvm_mmu_set_spte: the fault reads its entry again, so this must be what it has
        written."""
        last = task.last_leaf
        if last is None or last[:2] != (said.gfn, said.level) or not 0 < task.fault <= last[3]:
            return
        if not said.spte & PRESENT:
            return
        differs = (last[2] ^ said.spte) & ~self.world.volatile
        if differs & ~WRITABLE:
            headline = (
                f"gfn {said.gfn:#x} level {said.level}: the change says {last[2]:#x}, the fault "
                f"has left {said.spte:#x}"
            )
            self._other_value(event, headline, last[3])
        elif differs:
            self._doubted.append(Disagreement(event, said, last))
        else:
            self.world.held("transitions", "values that the fault confirms")

    def _other_value(self, event: Event, headline: str, change: int) -> None:
        lines = [(change, "the change"), (event.line, "what the fault has left")]
        self.world.broken(
            "transitions", "other-value", headline, lines, task=name_of(event), absent=CHANGE
        )

    def mark_mmio(self, event: Event, task: TracedTask, said: MarkMmio) -> None:
        """mark_mmio_spte: the entry must hold the generation that the event names; a fault that
        finds it there already marks without changing."""
        world, last = self.world, task.last_change
        if world.vendor is None or last is None or last[0] != said.gfn:
            return
        own = last[3] >= task.fault and not last[2] & PRESENT and not is_frozen(last[2])
        values = [last[2]] if own else []
        now = self._held_now(task, said.gfn)
        if any(self._generation_fits(value, said.gen) for value in (*values, *now)):
            world.held("transitions", "MMIO SPTEs of the generation that was named")
        elif not own:
            return  # it changed nothing, and what the entry held is not known for certain
        elif not task.fault:
            world.unknown("transitions", MARKED, event.line)
        else:
            headline = (
                f"gfn {said.gfn:#x}: the MMIO SPTE {last[2]:#x} has generation "
                f"{world.kernel.generation(last[2]):#x}, not {said.gen:#x}"
            )
            lines = [(last[3], "the change"), (event.line, "the generation that was meant")]
            world.broken(
                "transitions",
                "mmio-gen",
                headline,
                lines,
                task=name_of(event),
                rule="O13",
                absent=CHANGE,
            )

    def _generation_fits(self, value: int, generation: int) -> bool:
        kernel = self.world.kernel
        mask = (1 << sum(width for _, width in kernel.gen_fields)) - 1
        return kernel.generation(value) == generation & mask

    def _held_now(self, task: TracedTask, gfn: int) -> list[int]:
        """What the entries for this gfn hold that are MMIO SPTEs."""
        tree, vendor = self.world.vm(task).tree, self.world.vendor
        values = (
            table.get(index_of(1, gfn))[0]
            for as_id in (0, 1)
            for table in tree.tables_at(as_id, 1, gfn)
        )
        return [value for value in values if vendor is not None and vendor.is_mmio(value)]

    def tick(self, line: int) -> None:
        """Rights that no event explained in time are judged."""
        while self._doubted and self.world.settled(self._doubted[0].event.line, line):
            self._judge_doubted(self._doubted.popleft())

    def _judge_doubted(self, doubted: Disagreement) -> None:
        said, change = doubted.said, doubted.change
        explained = any(
            at > change[3] - RECENT
            and pid != doubted.event.pid
            and (level == said.level or not level)
            and said.gfn <= gfn < said.gfn + span(said.level)
            for at, pid, gfn, level in self._recent
        )
        if explained:
            return
        headline = (
            f"gfn {said.gfn:#x} level {said.level}: the change says {change[2]:#x}, the fault has "
            f"left {said.spte:#x}, and no other task has changed its rights"
        )
        self._other_value(doubted.event, headline, change[3])

    def forget(self) -> None:
        """Nothing is known any more."""
        self._doubted.clear()
        self._recent.clear()

    def finish(self, line: int, *, whole: bool) -> None:
        """Judge what waits."""
        if whole:
            while self._doubted:
                self._judge_doubted(self._doubted.popleft())
        self.forget()
