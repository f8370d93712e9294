"""`tdp_iter`: the pre-order walk over a root's SPTEs, with the kernel's restart and yield contract
(reference 2.4)."""

from __future__ import annotations

from mmu.kvm import Kvm
from mmu.paging.spte import ADDR_MASK, SPTE_PS
from mmu.paging.table import RootPage, ShadowPage


class TdpIter:
    """A position in a root's tree: `sp`/`index` name the SPTE, `old_spte` is its snapshot, `gfn`
    and `level` its place.

    After a yield (`yielded`), `next` restarts at the goal and does not advance, so the entry at the
    goal is visited. The caller must not use `old_spte` across a yield. `steps` and `began` (ns)
    tell how long it has gone without one. Visits entries before the tables below them, never below
    `min_level`, and only entries that begin before `end`.
    """

    __slots__ = (
        "_kvm",
        "_mask",
        "_present",
        "_rcu",
        "_shifts",
        "began",
        "end",
        "gfn",
        "index",
        "level",
        "min_level",
        "next_last_level_gfn",
        "old_spte",
        "path",
        "root",
        "sp",
        "steps",
        "valid",
        "yielded",
        "yielded_gfn",
    )

    def __init__(self, kvm: Kvm, root: RootPage, min_level: int, start: int, end: int) -> None:
        self._kvm = kvm
        self._rcu = kvm.rcu
        self._shifts = kvm.geometry.shifts()
        self._mask = kvm.geometry.mask
        self._present = kvm.layout.present
        self.root = root
        self.min_level = min_level
        self.end = end
        self.next_last_level_gfn = start
        self.path: list[ShadowPage] = []
        self.gfn = 0
        self.index = 0
        self.steps = 0
        self.began = kvm.runtime.now()
        self.restart()

    def restart(self) -> None:
        """tdp_iter_restart(): back to the root, aimed at the goal. Needs an RCU read section."""
        self._rcu.assert_held("sptep")
        goal = self.next_last_level_gfn
        self.yielded = False
        self.yielded_gfn = goal
        self.level = self.root.level
        self.sp: ShadowPage = self.root
        self.path = [self.root]
        self._aim(goal)
        self.valid = self.gfn < self.end

    def next(self) -> None:
        """tdp_iter_next(): down if possible, else to the side, else up and to the side."""
        self.steps += 1
        if self.yielded:
            self.restart()
        elif not (self.level > self.min_level and self._step_down()):
            self._advance()

    def next_present(self) -> None:
        """Like `next`, but passes over non-present entries of the table it is in; for callers that
        skip them anyway."""
        self.steps += 1
        if self.yielded:
            self.restart()
            return
        if self.level > self.min_level and self._step_down():
            return
        spt = self.sp.spt
        present = self._present
        for index in range(self.index + 1, self._mask + 1):
            if spt[index] & present:
                self._side_to(index, spt[index])
                return
        self._side_to(self._mask, 0)
        self._advance()

    def _advance(self) -> None:
        """To the side, going up as often as needed."""
        while self.index == self._mask:
            if len(self.path) == 1:
                self.valid = False
                return
            self.path.pop()
            self.sp = self.path[-1]
            self.level += 1
            shift = self._shifts[self.level]
            self.gfn = (self.gfn >> shift) << shift
            self.index = (self.gfn >> shift) & self._mask
        self._side_to(self.index + 1, self.sp.spt[self.index + 1])

    def _side_to(self, index: int, spte: int) -> None:
        self.gfn = self.next_last_level_gfn = self.gfn + (
            (index - self.index) << self._shifts[self.level]
        )
        self.index = index
        self.old_spte = spte
        self.valid = self.gfn < self.end

    def _aim(self, gfn: int) -> None:
        shift = self._shifts[self.level]
        self.index = (gfn >> shift) & self._mask
        self.gfn = (gfn >> shift) << shift
        self.old_spte = self.sp.spt[self.index]

    def _step_down(self) -> bool:
        spte = self.old_spte = self.sp.spt[self.index]
        if not spte & self._present or spte & SPTE_PS:
            return False
        self.sp = self._kvm.tables.at(spte & ADDR_MASK)
        self.path.append(self.sp)
        self.level -= 1
        self._aim(self.next_last_level_gfn)
        self.valid = self.gfn < self.end
        return True
