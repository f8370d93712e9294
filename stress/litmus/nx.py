"""The list of tables that stand for a huge page only because of the NX mitigation."""

from __future__ import annotations

from mmu.paging.table import ShadowPage
from stress.litmus.base import Bench, Family, Tasks, acceptable, forbidden
from stress.litmus.tinyvm import TinyVm

FAMILY = Family("nx", "the NX huge page mitigation")


def _disallowed(tiny: TinyVm) -> ShadowPage:
    """A table with the flag set, linked already as far as anybody knows."""
    page = tiny.kvm.tables.allocate()
    page.level = 1
    page.nx_disallowed = tiny.kvm.runtime.cell("nx_huge_page_disallowed", True)
    return page


def _state(tiny: TinyVm) -> str:
    nx = tiny.kvm.possible_nx_huge_pages
    return f"{len(nx.pages())} listed, {tiny.kvm.stat.nx_lpage_splits.value} counted"


_TRACK_GRADES = {
    "0 listed, 0 counted": acceptable("off the list again, or never on it because the flag was gone"),
    "1 listed, 1 counted": forbidden("a table that was removed is on the list: the recovery worker will find freed memory"),
    "0 listed, 1 counted": forbidden("the count is out of step with the list"),
    "1 listed, 0 counted": forbidden("the count is out of step with the list"),
    "0 listed, -1 counted": forbidden("the count is out of step with the list"),
}


@FAMILY.program(
    "track-against-untrack",
    title="a fault puts its table on the list while the table is removed",
    rule="a table is added only if its flag is still set, and the flag and the list change under tdp_mmu_pages_lock",
    source="track_possible_nx_huge_page() in kvm_tdp_mmu_map(), tdp_mmu_unlink_sp(); B46, invariant I14",
    grades=_TRACK_GRADES,
)
def track_against_untrack(bench: Bench) -> Tasks:
    """The table is visible before it is on the list, so it can be removed in between."""
    return _track(bench, locked=True)


@FAMILY.program(
    "track-without-lock",
    title="a fault puts its table on the list without tdp_mmu_pages_lock",
    rule="the flag is looked at and the table added in one critical section",
    source="track_possible_nx_huge_page(); B46",
    broken=True,
    grades=_TRACK_GRADES,
)
def track_without_lock(bench: Bench) -> Tasks:
    """The removal comes between the look and the addition."""
    return _track(bench, locked=False)


def _track(bench: Bench, *, locked: bool) -> Tasks:
    tiny = bench.vm(have_exported_tdp=False)
    kvm = tiny.kvm
    page = _disallowed(tiny)
    nx = kvm.possible_nx_huge_pages

    def fault() -> None:
        if locked:
            with kvm.tdp_mmu_pages_lock:
                nx.track(page)
        else:
            nx.track(page)

    def zapper() -> None:
        with kvm.tdp_mmu_pages_lock:
            nx.untrack(page)

    return Tasks(fault, zapper, after=lambda: _state(tiny))


@FAMILY.program(
    "two-tracks",
    title="two faults put their tables on the list",
    rule="under tdp_mmu_pages_lock no addition is lost",
    source="tdp_mmu_pages_lock; reference 2.1 order rule 5",
    grades={
        "2 listed, 2 counted": acceptable("both are there"),
        "1 listed, 2 counted": forbidden("one has overwritten the other"),
    },
)
def two_tracks(bench: Bench) -> Tasks:
    """Two readers of mmu_lock."""
    tiny = bench.vm(have_exported_tdp=False)
    kvm = tiny.kvm
    pages = _disallowed(tiny), _disallowed(tiny)

    def track(page: ShadowPage) -> None:
        with kvm.tdp_mmu_pages_lock:
            kvm.possible_nx_huge_pages.track(page)

    def one() -> None:
        track(pages[0])

    def other() -> None:
        track(pages[1])

    return Tasks(one, other, after=lambda: _state(tiny))


@FAMILY.program(
    "recovery-against-track",
    title="the recovery worker takes a table off the list while a fault adds another",
    rule="the worker holds mmu_lock for write, so no fault is between link and list",
    source="kvm_recover_nx_huge_pages(), reference 2.12",
    grades={
        "1, 1 listed, 1 counted": acceptable("the worker has dealt with the first; the second is there"),
        "1, 0 listed, 0 counted": forbidden("the second was lost"),
        "1, 2 listed, 2 counted": forbidden("the first came back"),
    },
)
def recovery_against_track(bench: Bench) -> Tasks:
    """With the real tables: the first is linked below the root."""
    tiny = bench.vm(have_exported_tdp=False, nx_recovery_ratio=1)
    root, kvm = tiny.root(), tiny.kvm
    tiny.map_pfn(root, tiny.full_cache(), 0, 1)
    first = tiny.table_of(root, 0)
    first.nx_disallowed = kvm.runtime.cell("nx_huge_page_disallowed", True)
    kvm.possible_nx_huge_pages.track(first)
    second = _disallowed(tiny)

    def worker() -> int:
        kvm.mmu_lock.write_lock()
        kvm.rcu.read_lock()
        done = 0
        for page in kvm.possible_nx_huge_pages.pages():
            if page is first:
                done += tiny.vm.nx.recover_page(page)
        kvm.rcu.read_unlock()
        kvm.mmu_lock.write_unlock()
        return done

    def fault() -> None:
        kvm.mmu_lock.read_lock()
        with kvm.tdp_mmu_pages_lock:
            kvm.possible_nx_huge_pages.track(second)
        kvm.mmu_lock.read_unlock()

    return Tasks(worker, fault, after=lambda: _state(tiny))
