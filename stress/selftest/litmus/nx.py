"""The list of tables that stand for a huge page only because of the NX mitigation."""

from __future__ import annotations

from mmu.paging.spte import SPTE_X
from mmu.paging.table import ShadowPage
from stress.selftest.litmus.base import Family, LitmusBench, Tasks, acceptable, forbidden
from stress.selftest.litmus.tinyvm import TinyVm

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
    "0 listed, 0 counted": acceptable(
        "off the list again, or never on it because the flag was gone"
    ),
    "1 listed, 1 counted": forbidden(
        "a table that was removed is on the list: the recovery worker will find freed memory"
    ),
    "0 listed, 1 counted": forbidden("the count is out of step with the list"),
    "1 listed, 0 counted": forbidden("the count is out of step with the list"),
    "0 listed, -1 counted": forbidden("the count is out of step with the list"),
}


@FAMILY.program(
    "track-against-untrack",
    title="a fault puts its table on the list while the table is removed",
    rule=(
        "a table is added only if its flag is still set, and the flag and the list change under "
        "tdp_mmu_pages_lock"
    ),
    source=(
        "track_possible_nx_huge_page() in kvm_tdp_mmu_map(), tdp_mmu_unlink_sp(); B46, invariant "
        "I14"
    ),
    grades=_TRACK_GRADES,
)
def track_against_untrack(bench: LitmusBench) -> Tasks:
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
def track_without_lock(bench: LitmusBench) -> Tasks:
    """The removal comes between the look and the addition."""
    return _track(bench, locked=False)


def _track(bench: LitmusBench, *, locked: bool) -> Tasks:
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
def two_tracks(bench: LitmusBench) -> Tasks:
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
        "1, 1 listed, 1 counted": acceptable(
            "the worker has dealt with the first; the second is there"
        ),
        "1, 0 listed, 0 counted": forbidden("the second was lost"),
        "1, 2 listed, 2 counted": forbidden("the first came back"),
    },
)
def recovery_against_track(bench: LitmusBench) -> Tasks:
    """The first table is linked below a root, the second is a fault's."""
    tiny = bench.vm(have_exported_tdp=False, nx_recovery_ratio=1)
    root, kvm = tiny.root(), tiny.kvm
    tiny.map_pfn(root, tiny.full_cache(), 0, 1)
    first = tiny.table_of(root, 0)
    first.nx_disallowed = kvm.runtime.cell("nx_huge_page_disallowed", True)
    kvm.possible_nx_huge_pages.track(first)
    second = _disallowed(tiny)

    def worker() -> int:
        token = kvm.srcu.read_lock()
        kvm.mmu_lock.write_lock()
        kvm.rcu.read_lock()
        done = 0
        for page in kvm.possible_nx_huge_pages.pages():
            if page is first:
                done += tiny.vm.nx.recover_page(page)
        kvm.rcu.read_unlock()
        kvm.mmu_lock.write_unlock()
        kvm.srcu.read_unlock(token)
        return done

    def fault() -> None:
        kvm.mmu_lock.read_lock()
        with kvm.tdp_mmu_pages_lock:
            kvm.possible_nx_huge_pages.track(second)
        kvm.mmu_lock.read_unlock()

    return Tasks(worker, fault, after=lambda: _state(tiny))


@FAMILY.program(
    "nx-toggle-against-fetch",
    title="the mitigation is switched on while a vCPU fetches from a huge page of an exported root",
    rule=(
        "once the knob's write has returned no executable huge leaf exists, also in a root that is "
        "kept valid"
    ),
    source="set_nx_huge_pages(); R10, oracle O14",
    grades={
        "FIXED, none": acceptable("mapped huge before, zapped by the toggle"),
        "FIXED, small": acceptable("the fault has seen the knob"),
        "RETRY, none": acceptable("the knob has changed since the fault began"),
        "FIXED, huge": forbidden("an executable huge page under the mitigation"),
    },
)
def nx_toggle_against_fetch(bench: LitmusBench) -> Tasks:
    """Nothing but the policy check under mmu_lock makes the fault stale."""
    tiny = bench.vm(frames=16, huge_2m=1, max_level=2)
    region = tiny.slot(npages=4, max_level=2)
    tiny.vm.host.fault_in(region, 0)
    tiny.export()
    vcpu = tiny.vcpu()
    root = vcpu.root
    assert root is not None

    def fetch() -> str:
        return tiny.fault(vcpu, 0, fetch=True).name

    def admin() -> None:
        tiny.vm.set_nx_huge_pages(True)

    def after() -> str:
        upper = root.spt[0]
        if tiny.kvm.layout.is_leaf(upper, 2):
            return "huge" if upper & SPTE_X else "huge without X"
        return "none" if tiny.mapped(root, 0) == "none" else "small"

    return Tasks(fetch, admin, after=after)
