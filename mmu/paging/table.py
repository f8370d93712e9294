"""Page-table pages: what `struct kvm_mmu_page` is for the TDP MMU, and the memory they live in."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from mmu.paging.geometry import PG_LEVEL_4K
from mmu.paging.spte import PFN_SHIFT, SpteLayout
from mmu.report import Report, Reporter, section
from mmu.runtime import Cell, Queue, Runtime, Table
from mmu.stack import capture, innermost, render
from mmu.sync.poison import RcuHead, is_poisoned, obituary_of, poison, poison_table
from mmu.sync.rcu import Rcu
from mmu.sync.refcount import Refcount
from mmu.task import current


class ShadowPage(RcuHead):
    """A table page. `spt` holds the SPTEs; the rest is set before the page becomes visible and
    never changes.

    `gfn` is the first frame it maps, `level` the level of its entries, `parent` and `parent_index`
    the entry that points to it, `root` the root of its tree, `address` its own physical address
    (what a parent SPTE holds). `nx_disallowed` is there for a page that stands for a huge page only
    because of the NX mitigation, and true until it is unaccounted (nx_huge_page_disallowed, under
    tdp_mmu_pages_lock).
    """

    __slots__ = (
        "address",
        "gfn",
        "level",
        "nx_disallowed",
        "parent",
        "parent_index",
        "root",
        "spt",
    )

    def __init__(self, address: int, spt: Table) -> None:
        self.obituary = None
        self.address = address
        self.spt = spt
        self.gfn = 0
        self.level = 0
        self.root: RootPage | None = None
        self.parent: ShadowPage | None = None
        self.parent_index = 0
        self.nx_disallowed: Cell[bool] | None = None

    def place(self, root: RootPage, parent: ShadowPage, index: int, gfn: int, level: int) -> None:
        """tdp_mmu_init_child_sp(): say where in the tree this page will stand; before anybody can
        see it."""
        self.root = root
        self.parent = parent
        self.parent_index = index
        self.gfn = gfn
        self.level = level

    def describe(self) -> str:
        """The page in a report."""
        return f"page-table page {self.address:#x} (level {self.level}, gfn {self.gfn:#x})"


class RootRole:
    """The part of `union kvm_mmu_page_role` that tells roots apart: address space, guest (nested)
    mode, and whether the root is one that KVM keeps for an IOMMU alone (policy E)."""

    __slots__ = ("as_id", "guest_mode", "iommu")

    def __init__(self, as_id: int, guest_mode: bool = False, iommu: bool = False) -> None:
        self.as_id = as_id
        self.guest_mode = guest_mode
        self.iommu = iommu

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RootRole) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return (
            f"as{self.as_id}{' nested' if self.guest_mode else ''}{' iommu' if self.iommu else ''}"
        )

    def _key(self) -> tuple[int, bool, bool]:
        return self.as_id, self.guest_mode, self.iommu


class RootPage(ShadowPage):
    """A root. `invalid` is role.invalid (monotonic), `scheduled` is tdp_mmu_scheduled_root_to_zap,
    `next` the RCU list link of `tdp_mmu_roots`, `zapped` says that a scheduled zap is complete
    (reference 2.2)."""

    __slots__ = ("exported", "invalid", "next", "refcount", "role", "scheduled", "zapped")

    def __init__(
        self,
        address: int,
        spt: Table,
        runtime: Runtime,
        reporter: Reporter,
        role: RootRole,
        level: int,
    ) -> None:
        super().__init__(address, spt)
        self.role = role
        self.level = level
        self.root = self
        self.refcount = Refcount(runtime, reporter, f"root {address:#x}", 2)
        self.invalid: Cell[bool] = runtime.cell("role.invalid", False)
        self.exported: Cell[bool] = runtime.cell("exported", False)
        self.scheduled: Cell[bool] = runtime.cell("scheduled_root_to_zap", False)
        self.zapped: Cell[bool] = runtime.cell("zapped", False)
        self.next: Cell[RootPage | None] = runtime.cell("root.next", None)

    def describe(self) -> str:
        """The root in a report."""
        flags = "".join(
            f" {name}" for name in ("exported", "invalid", "zapped") if getattr(self, name).value
        )
        return f"root {self.address:#x} ({self.role}{flags}, refcount {self.refcount.read()})"


class PageTableMemory:
    """The physical memory that holds page tables: allocation, look-up by address, and poisoned
    quarantine.

    Frees go through RCU: `free` reports when it is called outside a callback, because a page that
    was ever visible may still have a reader in it (reference 2.6, B31).

    With `reuses` the address of a freed page comes back: the next root gets that of the root that
    was freed first, if there is one, and other tables likewise. A page allocator promises no order;
    this one makes aliases frequent.
    """

    STANDS_FOR: Final = "arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_alloc_sp(), tdp_mmu_free_sp()"

    QUARANTINE = 1024

    def __init__(
        self,
        runtime: Runtime,
        rcu: Rcu,
        reporter: Reporter,
        layout: SpteLayout,
        entries: int,
        reuses: bool = False,
    ) -> None:
        self._runtime = runtime
        self._rcu = rcu
        self._reporter = reporter
        self._layout = layout
        self._entries = entries
        self._next = runtime.counter("page_table_memory.next", 0x100)
        self._free_tables: Queue[int] | None = None
        self._free_roots: Queue[int] | None = None
        if reuses:
            self._free_tables = runtime.queue("free page-table pages")
            self._free_roots = runtime.queue("free root pages")
        self.by_spte: dict[int, ShadowPage] = {}
        """Every page by the non-leaf SPTE that points to it (their value is canonical): one look-up
        tells whether an entry is a table and which."""
        self._freed: deque[ShadowPage] = deque()
        self._freed_lock = threading.Lock()
        self.retired = runtime.counter("page_table_pages.retired")
        """Pages given to RCU to be freed, the freed ones included."""
        self.allocated = runtime.counter("page_table_pages.allocated")
        self.released = runtime.counter("page_table_pages.released")
        """Pages that are gone, freed by RCU or discarded."""
        self.discarded = runtime.counter("page_table_pages.discarded")
        """Pages that never became visible."""

    def allocate(self) -> ShadowPage:
        """tdp_mmu_alloc_sp(): a zeroed page, not yet visible to anybody."""
        address = self._address(self._free_tables)
        return self._enter(ShadowPage(address, self._runtime.table(self._entries, "SPTE")))

    def allocate_root(self, role: RootRole, level: int) -> RootPage:
        """A zeroed root page with two references: the caller's and the TDP MMU's own."""
        root = RootPage(
            self._address(self._free_roots),
            self._runtime.table(self._entries, "SPTE"),
            self._runtime,
            self._reporter,
            role,
            level,
        )
        self._enter(root)
        return root

    def at(self, address: int) -> ShadowPage:
        """spte_to_child_sp(): the page at `address`; a freed one comes back poisoned, so that its
        use is reported."""
        page = self.by_spte.get(self._layout.table(address))
        if page is None:
            self._report(
                "wild-pointer",
                "O2",
                f"page-table address {address:#x} holds no page",
                "whatever was there",
            )
            page = ShadowPage(address, self._runtime.table(self._entries, "SPTE"))
            # empty, and nothing is below it: whoever walks on finds an end
            page.level = PG_LEVEL_4K
        return page

    def now_at(self, page: ShadowPage) -> ShadowPage:
        """The page at the address of `page`, to which hardware has cached a pointer. Reports it if
        that is another page by now."""
        address = _address_of(page)
        now = self.by_spte.get(self._layout.table(address), page)
        if now is not page:
            self._report(
                "walk-into-reused-table",
                "O2",
                f"hardware walks through a cached pointer to page-table page {address:#x}, whose "
                "memory holds another table by now",
                f"page-table page {address:#x}",
            )
        return now

    def discard(self, page: ShadowPage) -> None:
        """Free a page that never became visible."""
        self.by_spte.pop(self._layout.table(page.address), None)
        self.discarded.add(1)
        self.released.add(1)
        self.recycle(page)

    def retire(self, page: ShadowPage) -> None:
        """Take an unlinked page out of sight; it is freed after a grace period (call_rcu)."""
        page.retire(page.describe(), self._reporter)
        self.retired.add(1)
        self._rcu.call(lambda: self.free(page))

    def free(self, page: ShadowPage) -> None:
        """tdp_mmu_free_sp(), from its RCU callback: the page is poisoned and kept for a while to
        catch late touches."""
        if is_poisoned(page):
            self._report_double_free(page)
            return
        if not self._rcu.in_callback():
            self._report_unprotected_free(page)
        self.released.add(1)
        with self._freed_lock:
            self._freed.append(page)
            oldest = self._freed.popleft() if len(self._freed) > self.QUARANTINE else None
        if oldest is not None:
            self._forget(oldest)
        if page.obituary is None:
            page.retire(page.describe(), self._reporter)
        spt = page.spt
        poison(page, self._reporter)
        note = obituary_of(page)
        assert note is not None
        poison_table(spt, note)
        self.recycle(page)

    def recycle(self, page: ShadowPage) -> None:
        """From now on the address of `page` may be given to another one."""
        free = self._free_roots if isinstance(page, RootPage) else self._free_tables
        if free is not None:
            free.put(_address_of(page))

    def live(self) -> int:
        """Pages allocated and not freed."""
        return self.allocated.value - self.released.value

    def _address(self, free: Queue[int] | None) -> int:
        """An address out of `free`, else one that was never used."""
        address = free.take() if free is not None else None
        return self._next.fetch_add(1) << PFN_SHIFT if address is None else address

    def _forget(self, page: ShadowPage) -> None:
        """Nobody can find a freed page by its address any more."""
        key = self._layout.table(_address_of(page))
        if self.by_spte.get(key) is page:
            del self.by_spte[key]

    def _enter(self, page: ShadowPage) -> ShadowPage:
        self.by_spte[self._layout.table(page.address)] = page
        self.allocated.add(1)
        return page

    def _report_unprotected_free(self, page: ShadowPage) -> None:
        self._report(
            "free-without-rcu",
            "O3",
            f"{page.describe()} freed without waiting for a grace period",
            page.describe(),
        )

    def _report_double_free(self, page: ShadowPage) -> None:
        note = obituary_of(page)
        self._report(
            "double-free", "O2", f"{note.what if note else 'a page'} freed twice", "page-table page"
        )

    def _report(self, code: str, rule: str, headline: str, what: str) -> None:
        here = capture(3)
        self._reporter.emit(
            Report(
                rule,
                code,
                f"BUG: {headline}",
                f"{what} was visible to walkers: it may be freed only from a call_rcu() callback, "
                "and once",
                "tdp_mmu_free_sp_rcu_callback(); reference 2.6, B31 (7cca2d0b7e7d)",
                str(current.task),
                innermost(here),
                (section("call trace", render(here)),),
            )
        )


def _address_of(page: ShadowPage) -> int:
    address: int = object.__getattribute__(page, "address")
    return address
