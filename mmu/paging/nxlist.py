"""kvm->arch.possible_nx_huge_pages: tables that stand for a huge page only because of the NX
mitigation (reference 2.12)."""

from __future__ import annotations

from typing import Final

from mmu.paging.table import ShadowPage
from mmu.report import Report, Reporter, section
from mmu.runtime import Cell, Counter, Runtime
from mmu.stack import capture, render
from mmu.sync.poison import is_poisoned
from mmu.task import current


class PossibleNxHugePages:
    """The list, oldest first, and the count of `nx_lpage_splits`. Guarded by tdp_mmu_pages_lock, or
    mmu_lock for write.

    Misuse is reported as DEBUG_LIST would: an entry added twice, a freed page added, a stranger
    removed (O17).
    """

    STANDS_FOR: Final = (
        "arch/x86/kvm/mmu/mmu.c: track_possible_nx_huge_page(), untrack_possible_nx_huge_page()"
    )

    def __init__(self, runtime: Runtime, reporter: Reporter, splits: Counter) -> None:
        self._reporter = reporter
        self._splits = splits
        self._pages: Cell[tuple[ShadowPage, ...]] = runtime.cell("possible_nx_huge_pages", ())

    def track(self, sp: ShadowPage) -> None:
        """track_possible_nx_huge_page(): only while the page's flag is still set; it may have been
        zapped meanwhile."""
        if is_poisoned(sp):
            self._report("a freed page is added")
            return
        if sp.nx_disallowed is None or not sp.nx_disallowed.value:
            return
        if any(page is sp for page in self._pages.value):
            self._report("a page is added that is on it already")
            return
        self._pages.value = (*self._pages.value, sp)
        self._splits.add(1)

    def untrack(self, sp: ShadowPage) -> None:
        """untrack_possible_nx_huge_page() with the flag: the page is no longer kept small for the
        mitigation's sake."""
        flag = sp.nx_disallowed
        if flag is None or not flag.value:
            return
        flag.value = False
        left = tuple(page for page in self._pages.value if page is not sp)
        if len(left) != len(self._pages.value):
            self._pages.value = left
            self._splits.add(-1)

    def remove(self, sp: ShadowPage) -> None:
        """list_del(): of a page that must be on the list."""
        if not any(page is sp for page in self._pages.value):
            self._report("a page is removed that is not on it")
            return
        self.untrack(sp)

    def pages(self) -> tuple[ShadowPage, ...]:
        """The pages on the list, oldest first."""
        return self._pages.value

    def _report(self, what: str) -> None:
        here = capture(2)
        self._reporter.emit(
            Report(
                "O17",
                "list-corruption",
                f"BUG: list corruption on possible_nx_huge_pages: {what}",
                "a page is added to the list once, while it is linked, and removed once",
                "DEBUG_LIST; reference 2.8 kvm_tdp_mmu_map(), B46, invariant I14",
                str(current.task),
                what,
                (section("call trace", render(here)),),
            )
        )
