"""Memslots: no leaf maps a deleted or moved slot once the call that deleted it has returned
(O6)."""

from __future__ import annotations

from typing import Final

from stress.trace.events import Event, ProbeEvent, SpteChanged
from stress.trace.layouts import is_leaf, span
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.world import HORIZON, Check, TracedTask, TracedVm, TracedWorld, name_of

CREATE, DELETE, MOVE, FLAGS = range(4)
"""enum kvm_mr_change."""

SLOTS: Final = Check(
    name="slots",
    rule="O6",
    title="no leaf maps a slot once the call that deleted or moved it has returned",
    needs=(
        frozenset({"set_memslot"}),
        frozenset({"set_memslot_ret"}),
        frozenset({"kvm_tdp_mmu_spte_changed"}),
    ),
    wants="probes on kvm_set_memslot (change, old_id, old_gfn, old_n, new_id, new_gfn, new_n) "
    "and its return, kvm_swap_active_memslots (as_id); kvmmmu:kvm_tdp_mmu_spte_changed",
    source="virt/kvm/kvm_main.c, kvm_set_memslot(); reference 2.9, I8",
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
        self.world.renew(task).tree.complete = True

    def begin(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_set_memslot(): a new slot can be used from its swap on, before the call returns."""
        task.as_id = 0
        if probe.number("change", -1) in (CREATE, MOVE):
            vm = self.world.vm(task)
            new = (probe.number("new_gfn"), probe.number("new_n"))
            vm.dead[:] = [
                (dead[0], *piece, *dead[3:])
                for dead in vm.dead
                for piece in without(dead[1:3], new)
            ]

    def swap(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_swap_active_memslots() names the address space."""
        task.as_id = probe.number("as_id", 0)

    def updated(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """The first generation of all: this is the VM's first slot, so nothing of it is older than
        the recording."""
        if 0 < probe.number("gen", -1) <= 3:
            vm = self.world.vm(task)
            vm = self.world.renew(task) if vm.over else vm
            if not vm.tree.live and not vm.slots:
                vm.tree.complete = True

    def end(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_set_memslot() returned: what it did is in force."""
        opened = task.open.get("set_memslot")
        if opened is None or probe.number("ret", -1) != 0:
            return
        call, probe = opened
        vm, as_id, change = self.world.vm(task), task.as_id, probe.number("change", -1)
        new = (
            (probe.number("new_gfn"), probe.number("new_n")) if change in (CREATE, MOVE) else (0, 0)
        )
        if change in (DELETE, MOVE):
            vm.slots.pop((as_id, probe.number("old_id", -1)), None)
            for first, count in without((probe.number("old_gfn"), probe.number("old_n")), new):
                self._judge(vm, (as_id, first, count), call, event)
                vm.dead.append((as_id, first, count, call.line, event.line))
        if new[1]:
            vm.slots[as_id, probe.number("new_id", -1)] = new

    def _judge(self, vm: TracedVm, gone: Range, call: Event, ret: Event) -> None:
        """Nothing of the slot is mapped, in any root of its address space."""
        left = vm.tree.leaves_in(*gone)
        if not left:
            self.world.held("slots", "slots deleted or moved, with no leaf left")
            return
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
        self.world.broken("slots", "leaf-left", headline, lines, task=name_of(ret))

    def changed(self, event: Event, task: TracedTask, change: SpteChanged) -> None:
        """A new leaf must not lie where a slot was."""
        vm = self.world.vm(task)
        if not vm.dead:
            return
        if not is_leaf(change.new, change.level) or is_leaf(change.old, change.level):
            return
        end = change.gfn + span(change.level)
        for as_id, first, count, call, ret in vm.dead:
            if as_id == change.as_id and first < end and change.gfn < first + count:
                self._late.append((vm, event.line, change.gfn, call, ret, name_of(event)))
                return
        self.world.held("slots", "leaves set outside deleted slots")

    def tick(self, line: int) -> None:
        """A leaf set in a deleted slot is a mistake, unless it was gone before its event came (see
        `HORIZON`)."""
        while self._late and self._late[0][1] < line - HORIZON:
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
            )

    def forget(self) -> None:
        """Nothing is known any more."""
        self._late.clear()

    def finish(self, line: int, *, whole: bool) -> None:
        """Judge what waits."""
        self.tick(line + 2 * HORIZON if whole else line)
        self.forget()


def without(old: tuple[int, int], new: tuple[int, int]) -> list[tuple[int, int]]:
    """The parts (first gfn, pages) of `old` that `new` does not cover."""
    first, end, start, stop = old[0], old[0] + old[1], new[0], new[0] + new[1]
    if not new[1] or stop <= first or start >= end:
        return [old] if old[1] else []
    return [(low, high - low) for low, high in ((first, start), (stop, end)) if low < high]
