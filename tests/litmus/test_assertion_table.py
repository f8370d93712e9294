"""The reference's assertion table (2.14), row by row: called the wrong way a function says so,
called the right way it is silent.

What does not fit that pattern is in test_assertion_details, what the rows say about yielding in
test_assertion_yields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import pytest

from mmu.errors import SelfDeadlock
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.paging.table import RootPage, RootRole
from mmu.tdp.fault import Fault
from tests.conftest import forget_held_locks, rcu_section, reading, srcu_section, writing
from tests.litmus.bench import expect
from tests.model import Machine, machine_of, w

FOR_READ, FOR_WRITE, HELD = "O5 assert-held-for-read", "O5 assert-held-for-write", "O5 assert-held"

Call = Callable[[Machine], object]


def section_of(machine: Machine, name: str) -> AbstractContextManager[object]:
    """A context by its name."""
    kvm = machine.kvm
    sections: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "read": lambda: reading(kvm.mmu_lock),
        "write": lambda: writing(kvm.mmu_lock),
        "rcu": lambda: rcu_section(kvm.rcu),
        "srcu": lambda: srcu_section(kvm.srcu),
        "slots_lock": lambda: kvm.slots_lock,
        "pages_lock": lambda: kvm.tdp_mmu_pages_lock,
    }
    return sections[name]()


@contextmanager
def within(machine: Machine, contexts: str) -> Iterator[None]:
    """Inside all these contexts, outermost first."""
    with ExitStack() as stack:
        for name in contexts.split():
            stack.enter_context(section_of(machine, name))
        yield


def prepared(machine: Machine) -> RootPage:
    """A slot of 64 frames that logs dirty pages, a vCPU, and leaves at gfns 1, 2 and 21 of the
    normal root."""
    machine.add_slot(0, 64, flags=KVM_MEM_LOG_DIRTY_PAGES)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(1), w(2), w(21))
    root = machine.root()
    expect(machine)
    return root


# The calls. Each works on a `prepared` machine.


def the_root(machine: Machine) -> RootPage:
    return machine.vm.roots.snapshot()[0]


def the_slot(machine: Machine) -> object:
    slot = machine.vm.memslots.peek(0).by_id(0)
    assert slot is not None
    return slot


def zap_all_fast(machine: Machine) -> None:
    machine.vm.zapper.zap_all_fast()


def invalidate_all_roots(machine: Machine) -> None:
    machine.vm.roots.invalidate_all_roots()


def zap_invalidated_roots(machine: Machine) -> None:
    machine.vm.zapper.zap_invalidated_roots()


def zap_exported_roots(machine: Machine) -> None:
    machine.vm.zapper.zap_exported_roots()


def zap_obsolete_pages(machine: Machine) -> None:
    machine.vm.zapper.zap_obsolete_pages()


def zap_root_shared(machine: Machine) -> None:
    machine.vm.zapper.zap_root(the_root(machine), shared=True)


def zap_root_exclusive(machine: Machine) -> None:
    machine.vm.zapper.zap_root(the_root(machine), shared=False)


def zap_leafs(machine: Machine) -> None:
    machine.vm.zapper.zap_leafs(the_root(machine), 0, 64, can_yield=False, flush=False)


def put_root_shared(machine: Machine) -> None:
    the_root(machine).refcount.get()
    machine.vm.roots.put_root(the_root(machine), shared=True)


def put_root_exclusive(machine: Machine) -> None:
    the_root(machine).refcount.get()
    machine.vm.roots.put_root(the_root(machine), shared=False)


def iterate_shared(machine: Machine) -> None:
    assert list(machine.vm.roots.each_yield_safe(shared=True))


def iterate_exclusive(machine: Machine) -> None:
    assert list(machine.vm.roots.each_yield_safe(shared=False))


def for_each_root(machine: Machine) -> None:
    assert list(machine.vm.roots.each())


def age(machine: Machine) -> None:
    machine.vm.ageing.age_gfn_range(the_slot(machine), 0, 64)


def test_age(machine: Machine) -> None:
    machine.vm.ageing.test_age_gfn(the_slot(machine), 0, 64)


test_age.__test__ = False  # type: ignore[attr-defined]  # kvm_tdp_mmu_test_age_gfn(), not a test


def clear_dirty_pt_masked(machine: Machine) -> None:
    machine.vm.dirty.clear_dirty_pt_masked(the_root(machine), the_slot(machine), {1, 2})


def look_up_root(machine: Machine) -> None:
    root = machine.vm.roots.get_vcpu_root(RootRole(0))
    root.refcount.put()


def set_spte_atomic(machine: Machine) -> None:
    sp, index = machine.entry(the_root(machine), 1)
    assert machine.vm.writer.set_spte_atomic(sp, index, 1, sp.spt[index], 0)


def set_spte(machine: Machine) -> None:
    sp, index = machine.entry(the_root(machine), 1)
    machine.vm.writer.set_spte(sp, index, 1, sp.spt[index], 0)


def map_gfn(machine: Machine) -> None:
    fault = Fault()
    fault.gfn, fault.pfn, fault.host_writable = 40, machine.regions[0, 0].ptes[40] or 200, True
    vcpu = machine.vm.vcpus()[0]
    vcpu.cache.short = True
    vcpu.cache.pages.extend(machine.kvm.tables.allocate() for _ in range(3))
    machine.vm.faults.map(the_root(machine), vcpu.cache, fault)


def is_page_fault_stale(machine: Machine) -> None:
    fault = Fault()
    fault.mmu_seq = machine.kvm.invalidation.seq.value
    assert not machine.vm.faults.is_page_fault_stale(the_root(machine), fault)


def mmu_invalidate_retry(machine: Machine) -> None:
    machine.kvm.invalidation.retry(0, 0)


def last_sptep(machine: Machine) -> None:
    machine.vm.faults.get_last_sptep(the_root(machine), 1)


def wrprot_slot(machine: Machine) -> None:
    machine.vm.dirty.wrprot_slot(the_root(machine), the_slot(machine), 1)


def clear_dirty_slot(machine: Machine) -> None:
    machine.vm.dirty.clear_dirty_slot(the_root(machine), the_slot(machine))


def zap_collapsible_sptes(machine: Machine) -> None:
    machine.vm.huge.zap_collapsible_sptes(the_slot(machine))


def split_shared(machine: Machine) -> None:
    machine.vm.huge.try_split_huge_pages(the_slot(machine), 0, 64, shared=True)


def split_exclusive(machine: Machine) -> None:
    machine.vm.huge.try_split_huge_pages(the_slot(machine), 0, 64, shared=False)


def recover_nx_huge_pages(machine: Machine) -> None:
    machine.vm.nx.recover()


def swap_active_memslots(machine: Machine) -> None:
    machine.kvm.slots_arch_lock.acquire()
    machine.vm.memslots._swap_active(0, {})


def synchronize_srcu(machine: Machine) -> None:
    """What the swap does after slots_arch_lock is released."""
    machine.vm.memslots.synchronize_srcu()


def swap_without_arch_lock(machine: Machine) -> None:
    machine.vm.memslots._swap_active(0, {})


def invalidate_begin(machine: Machine) -> None:
    machine.kvm.invalidation.begin(0, 1)


def invalidate_end(machine: Machine) -> None:
    machine.kvm.invalidation.in_progress.fetch_add(1)
    machine.kvm.invalidation.end()


def export_and_un_export(machine: Machine) -> None:
    machine.vm.create_tdp_fd().put()


def fault_exported(machine: Machine) -> None:
    (exported,) = machine.vm.exported_tdps.all()
    assert machine.vm.exporter.fault_locked(exported, 1, True)


RIGHT: list[tuple[Call, str]] = [
    (zap_all_fast, "slots_lock"),
    (invalidate_all_roots, "write"),
    (zap_invalidated_roots, ""),
    (zap_exported_roots, "write"),
    (zap_obsolete_pages, "write"),
    (zap_root_shared, "read"),
    (zap_root_exclusive, "write"),
    (zap_leafs, "write"),
    (put_root_shared, "read"),
    (put_root_exclusive, "write"),
    (put_root_exclusive, "write rcu"),
    (iterate_shared, "read"),
    (iterate_exclusive, "write"),
    (for_each_root, "write"),
    (age, "write"),
    (test_age, "write"),
    (clear_dirty_pt_masked, "write"),
    (look_up_root, "write"),
    (set_spte_atomic, "read rcu"),
    (set_spte, "write rcu"),
    (map_gfn, "read"),
    (is_page_fault_stale, "read"),
    (is_page_fault_stale, "write"),
    (mmu_invalidate_retry, "read"),
    (mmu_invalidate_retry, "write"),
    (last_sptep, "rcu"),
    (wrprot_slot, "read"),
    (clear_dirty_slot, "read"),
    (zap_collapsible_sptes, "read"),
    (split_shared, "read"),
    (split_exclusive, "write"),
    (recover_nx_huge_pages, ""),
    (swap_active_memslots, "slots_lock"),
    (synchronize_srcu, "slots_lock"),
    (invalidate_begin, "write"),
    (invalidate_end, "write"),
    (export_and_un_export, ""),
]
"""Each row's function in a context that suits it."""

WRONG: list[tuple[Call, str, str]] = [
    (zap_all_fast, "", HELD),
    (invalidate_all_roots, "", FOR_WRITE),
    (invalidate_all_roots, "read", FOR_WRITE),
    (zap_invalidated_roots, "read", "O5 read-in-read"),
    (zap_invalidated_roots, "write", "O5 read-in-write"),
    (zap_exported_roots, "", FOR_WRITE),
    (zap_obsolete_pages, "", FOR_WRITE),
    (zap_exported_roots, "read", FOR_WRITE),
    (zap_obsolete_pages, "read", FOR_WRITE),
    (zap_root_shared, "", FOR_READ),
    (zap_root_shared, "write", FOR_READ),
    (zap_root_exclusive, "", FOR_WRITE),
    (zap_root_exclusive, "read", FOR_WRITE),
    (zap_leafs, "", FOR_WRITE),
    (zap_leafs, "read", FOR_WRITE),
    (put_root_shared, "", FOR_READ),
    (put_root_shared, "write", FOR_READ),
    (put_root_exclusive, "", FOR_WRITE),
    (put_root_exclusive, "read", FOR_WRITE),
    (iterate_shared, "", FOR_READ),
    (iterate_shared, "write", FOR_READ),
    (iterate_exclusive, "", FOR_WRITE),
    (iterate_exclusive, "read", FOR_WRITE),
    (for_each_root, "", FOR_WRITE),
    (for_each_root, "read", FOR_WRITE),
    (age, "", FOR_WRITE),
    (age, "read", FOR_WRITE),
    (test_age, "", FOR_WRITE),
    (test_age, "read", FOR_WRITE),
    (clear_dirty_pt_masked, "", FOR_WRITE),
    (clear_dirty_pt_masked, "read", FOR_WRITE),
    (look_up_root, "", FOR_WRITE),
    (look_up_root, "read", FOR_WRITE),
    (set_spte_atomic, "rcu", FOR_READ),
    (set_spte_atomic, "write rcu", FOR_READ),
    (set_spte, "rcu", FOR_WRITE),
    (set_spte, "read rcu", FOR_WRITE),
    (map_gfn, "", FOR_READ),
    (map_gfn, "write", FOR_READ),
    (is_page_fault_stale, "", HELD),
    (last_sptep, "", "O3 suspicious-rcu-usage"),
    (wrprot_slot, "", FOR_READ),
    (wrprot_slot, "write", FOR_READ),
    (clear_dirty_slot, "", FOR_READ),
    (clear_dirty_slot, "write", FOR_READ),
    (zap_collapsible_sptes, "", FOR_READ),
    (zap_collapsible_sptes, "write", FOR_READ),
    (split_shared, "", FOR_READ),
    (split_shared, "write", FOR_READ),
    (split_exclusive, "", FOR_WRITE),
    (split_exclusive, "read", FOR_WRITE),
    (recover_nx_huge_pages, "read", "O5 write-in-read"),
    (recover_nx_huge_pages, "write", "O5 write-in-write"),
    (swap_active_memslots, "", HELD),
    (swap_without_arch_lock, "slots_lock", HELD),
    (swap_active_memslots, "slots_lock srcu", "O3 synchronize-in-reader"),
    (synchronize_srcu, "srcu", "O3 synchronize-in-reader"),
    (synchronize_srcu, "slots_lock rcu", "O3 sleep-in-rcu"),
    (synchronize_srcu, "slots_lock read", "O5 sleep-in-atomic"),
    (synchronize_srcu, "slots_lock pages_lock", "O5 sleep-in-atomic"),
    (invalidate_begin, "", FOR_WRITE),
    (invalidate_begin, "read", FOR_WRITE),
    (invalidate_end, "", FOR_WRITE),
    (invalidate_end, "read", FOR_WRITE),
    (export_and_un_export, "read", "O5 sleep-in-atomic"),
    (export_and_un_export, "write", "O5 sleep-in-atomic"),
    (export_and_un_export, "rcu", "O3 sleep-in-rcu"),
]
"""Each row's function in contexts that do not suit it, and what must be reported at least."""

JUDGE: dict[Call, str] = {
    zap_all_fast: "Zapper.zap_all_fast",
    invalidate_all_roots: "Roots.invalidate_all_roots",
    zap_exported_roots: "Zapper.zap_exported_roots",
    zap_obsolete_pages: "Zapper.zap_obsolete_pages",
    zap_root_shared: "Zapper.zap_root",
    zap_root_exclusive: "Zapper.zap_root",
    zap_leafs: "Zapper.zap_leafs",
    put_root_shared: "Roots.put_root",
    put_root_exclusive: "Roots.put_root",
    iterate_shared: "Roots._next_root",
    iterate_exclusive: "Roots._next_root",
    for_each_root: "Roots.each",
    age: "Ageing.",
    test_age: "Ageing.",
    clear_dirty_pt_masked: "DirtyLog.clear_dirty_pt_masked",
    look_up_root: "Roots.get_vcpu_root",
    set_spte_atomic: "SpteWriter.set_spte_atomic",
    set_spte: "SpteWriter.set_spte",
    map_gfn: "SpteWriter.set_spte_atomic",
    is_page_fault_stale: "FaultHandler.is_page_fault_stale",
    last_sptep: "FaultHandler.get_last_sptep",
    wrprot_slot: "DirtyLog.",
    clear_dirty_slot: "DirtyLog.",
    zap_collapsible_sptes: "HugePages.zap_collapsible_sptes",
    split_shared: "HugePages.try_split_huge_pages",
    split_exclusive: "HugePages.try_split_huge_pages",
    swap_without_arch_lock: "slots_arch_lock held in Memslots._swap_active",
    invalidate_begin: "Invalidation.begin",
    invalidate_end: "Invalidation.end",
    export_and_un_export: "exported_tdp_cache_lock",
}
"""Who has to say so: the function itself, not one that it calls. The others name the lock that they
take."""


def name_of(value: object) -> str:
    return value.__name__ if callable(value) else str(value).replace(" ", "+") or "nothing"


@pytest.mark.parametrize(("call", "contexts"), RIGHT, ids=name_of)
def test_called_the_right_way_it_is_silent(call: Call, contexts: str) -> None:
    with machine_of() as machine:
        prepared(machine)
        with within(machine, contexts):
            call(machine)
        expect(machine)
        machine.abandon()


@pytest.mark.parametrize(("call", "contexts", "report"), WRONG, ids=name_of)
def test_called_the_wrong_way_it_says_so(call: Call, contexts: str, report: str) -> None:
    with machine_of() as machine:
        prepared(machine)
        with suppress(SelfDeadlock), within(machine, contexts):
            call(machine)
        said = [
            found.subject
            for found in machine.reporter.reports
            if f"{found.rule} {found.code}" == report
        ]
        assert any(JUDGE.get(call, "") in subject for subject in said), machine.splats()
        machine.news()
        machine.abandon()
        forget_held_locks()


def test_both_lists_have_every_function() -> None:
    """Whatever can be called wrongly is also called rightly."""
    rightly = {call.__name__ for call, _ in RIGHT}
    assert {call.__name__ for call, _, _ in WRONG} - rightly == {"swap_without_arch_lock"}
