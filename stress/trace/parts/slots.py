"""Memslots: no leaf maps a deleted or moved slot once the call that deleted it has returned
(O6)."""

from __future__ import annotations

from typing import Final

from stress.trace.events import Event, ProbeEvent, SpteChanged
from stress.trace.facts import CHANGES, SLOT, SLOT_OVER, Check, CheckRule, Fact
from stress.trace.frames import Frame
from stress.trace.layouts import LEVELS, is_leaf, span
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.parts.placing import AMBIGUOUS
from stress.trace.tree import TracedTable
from stress.trace.world import FOREVER, TracedTask, TracedVm, TracedWorld, name_of

CREATE, DELETE, MOVE, FLAGS = range(4)
"""enum kvm_mr_change."""

SLOTS: Final = Check(
    name="slots",
    rule="O6",
    title="no leaf maps a slot once the call that deleted or moved it has returned",
    rules=(
        CheckRule(
            "leaf-left",
            "O6",
            "no leaf maps a slot once the call that deleted or moved it has returned",
            (CHANGES, SLOT, SLOT_OVER),
        ),
        CheckRule(
            "leaf-revived",
            "O6",
            "no leaf is set in a slot that is gone",
            (CHANGES, SLOT, SLOT_OVER),
        ),
    ),
    source="virt/kvm/kvm_main.c, kvm_set_memslot(); reference 2.9, I8",
)

ANY_SPACE: Final = -1
"""An address space that is not recorded."""
SPACE: Final = Fact(
    "the address space of a slot",
    {"swap_memslots:as_id"},
    "probe on kvm_swap_active_memslots (as_id)",
)
Range = tuple[int, int, int]
"""as_id, first gfn, pages."""


class SlotsPart(CheckPart):
    """The slots of each VM, and the places where slots were."""

    checks = (SLOTS,)

    def __init__(self, world: TracedWorld) -> None:
        super().__init__(world)
        self._late: list[tuple[TracedVm, int, int, int, int, str]] = []

    def handlers(self) -> dict[str, Handler]:
        """The update's call and return, the swaps inside it, and every new leaf."""
        return {
            "set_memslot": self.begin,
            "swap_memslots": self.swap,
            "memslots_updated": self.updated,
            "set_memslot_ret": self.end,
            "kvm_tdp_mmu_spte_changed": self.changed,
            "init_vm": self.born,
            "init_vm()": self.born,
        }

    def born(self, _event: Event, task: TracedTask, _said: object) -> None:
        """A VM is made."""
        tree = self.world.renew(task).tree
        tree.complete = tree.proven = True

    def begin(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_set_memslot(): a new slot can be used from its swap on, before the call returns."""
        task.as_id = ANY_SPACE
        if probe.number("change", -1) in (CREATE, MOVE) and "new_gfn" in probe.args:
            vm = self.world.vm(task)
            new = (probe.number("new_gfn"), probe.number("new_n"))
            vm.dead[:] = [
                (dead[0], *piece, *dead[3:])
                for dead in vm.dead
                for piece in without(dead[1:3], new)
            ]

    def swap(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_swap_active_memslots() names the address space."""
        task.as_id = probe.number("as_id", ANY_SPACE)

    def updated(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """The first generation of all: this is the VM's first slot, so nothing of it is older than
        the recording."""
        if 0 < probe.number("gen", -1) <= 3:
            vm = self.world.vm(task)
            vm = self.world.renew(task) if vm.over else vm
            if not vm.tree.live and not vm.slots:
                vm.tree.complete = vm.tree.proven = True

    def end(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_set_memslot() returned: what it did is in force."""
        call = task.frame("set_memslot")
        if call is None or probe.number("ret", -1) != 0:
            return
        vm, as_id, change = self.world.vm(task), task.as_id, call.number("change")
        if change not in (CREATE, DELETE, MOVE):
            return
        if "old_gfn" not in call.args or "new_gfn" not in call.args:
            self.world.unknown("slots", SLOT, call.line)
            return
        new = (call.number("new_gfn"), call.number("new_n")) if change != DELETE else (0, 0)
        if change != CREATE:
            old = (call.number("old_gfn"), call.number("old_n"))
            if (as_id, *old) in vm.slots:
                vm.slots.remove((as_id, *old))
            for first, count in self._vacated(vm, as_id, old, new):
                self._judge(vm, (as_id, first, count), call, event)
                vm.dead.append((as_id, first, count, call.line, event.line))
        if new[1]:
            vm.slots.append((as_id, *new))

    def _vacated(
        self, vm: TracedVm, as_id: int, old: tuple[int, int], new: tuple[int, int]
    ) -> list[tuple[int, int]]:
        """The frames of a slot that no slot has any more. Where the address space is not recorded,
        these are the ones that no slot of another one covers either."""
        left = without(old, new)
        if as_id != ANY_SPACE:
            return left
        if not vm.tree.proven:
            self.world.unknown("slots", SPACE, vm.alive)
            return []
        for _, first, count in vm.slots:
            left = [piece for part in left for piece in without(part, (first, count))]
        return left

    def _judge(self, vm: TracedVm, gone: Range, call: Frame, ret: Event) -> None:
        """Nothing of the slot is mapped, in any root of its address space."""
        spaces = (0, 1) if gone[0] == ANY_SPACE else gone[:1]
        left = [leaf for space in spaces for leaf in vm.tree.leaves_in(space, *gone[1:])]
        sure = [leaf for leaf in left if vm.tree.knows(leaf[0])]
        if sure:
            self._leaf_left(sure, gone, call, ret)
        elif left:
            self.world.unknown("slots", AMBIGUOUS, ret.line)
        else:
            self.world.held("slots", "slots deleted or moved, with no leaf left")

    def _leaf_left(
        self,
        left: list[tuple[TracedTable, int, int, int]],
        gone: Range,
        call: Frame,
        ret: Event,
    ) -> None:
        table, gfn, value, line = left[0]
        headline = (
            f"the slot at gfn {gone[1]:#x} is gone, but gfn {gfn:#x} is still mapped by a level "
            f"{table.level} leaf ({value:#x})"
        )
        lines = [
            (ret.line, f"the call returned; {len(left)} leaves are left"),
            (call.line, "the call"),
            (line, "the leaf was set"),
        ]
        self.world.broken(
            "slots",
            "leaf-left",
            headline,
            lines,
            task=name_of(ret),
            absent=frozenset({"kvm_tdp_mmu_spte_changed"}),
            tables=True,
        )

    def changed(self, event: Event, task: TracedTask, change: SpteChanged) -> None:
        """A new leaf must not lie where a slot was."""
        vm = self.world.vm(task)
        if not vm.dead or change.level not in LEVELS:
            return
        if not is_leaf(change.new, change.level) or is_leaf(change.old, change.level):
            return
        end = change.gfn + span(change.level)
        for as_id, first, count, call, ret in vm.dead:
            if as_id in (change.as_id, ANY_SPACE) and first < end and change.gfn < first + count:
                self._late.append((vm, event.line, change.gfn, call, ret, name_of(event)))
                return
        self.world.held("slots", "leaves set outside deleted slots")

    def tick(self, line: int) -> None:
        """A leaf set in a deleted slot is a mistake, unless it was gone before its event came (see
        `HORIZON`)."""
        while self._late and self.world.settled(self._late[0][1], line):
            vm, at, gfn, call, ret, who = self._late.pop(0)
            if at in vm.vanished:
                continue
            headline = (
                f"gfn {gfn:#x} is mapped although its slot was deleted and the call had returned"
            )
            self.world.broken(
                "slots",
                "leaf-revived",
                headline,
                [(at, "the leaf"), (ret, "the call returned"), (call, "the call")],
                task=who,
                absent=frozenset({"set_memslot"}),
            )

    def forget(self) -> None:
        """Nothing is known any more."""
        self._late.clear()

    def finish(self, line: int, *, whole: bool) -> None:
        """Judge what waits."""
        self.tick(FOREVER if whole else line)
        self.forget()


def without(old: tuple[int, int], new: tuple[int, int]) -> list[tuple[int, int]]:
    """The parts (first gfn, pages) of `old` that `new` does not cover."""
    first, end, start, stop = old[0], old[0] + old[1], new[0], new[0] + new[1]
    if not new[1] or stop <= first or start >= end:
        return [old] if old[1] else []
    return [(low, high - low) for low, high in ((first, start), (stop, end)) if low < high]
