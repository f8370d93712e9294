"""What a check needs to know before it may judge, and every way in which a recording can show it.

A `Fact` is about one object: one root, one fault, one invalidation, one slot. A `CheckRule` needs
some facts; where one of them is not known for an object, the rule says "cannot tell" for that
object and goes on elsewhere. A way is the canonical name of an event (`name()` for a function
entry), or `event:argument` for a probe that names the argument.

The same declarations say what a level of `stress trace record` can prove, and what this recording
could.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import field, frozen


def _frozen(ways: Iterable[str]) -> frozenset[str]:
    return frozenset(ways)


@frozen
class Fact:
    """Something that has to be known about one object; any of `ways` makes it known."""

    name: str
    ways: frozenset[str] = field(converter=_frozen)
    wants: str
    """How to record it."""

    def known_from(self, have: set[str]) -> bool:
        """Whether a recording with these events and arguments can show it."""
        return not self.ways.isdisjoint(have)


@frozen
class CheckRule:
    """One thing that is judged, and the facts without which it is not."""

    code: str
    """What a report of it is called; of several reports, the first."""
    oracle: str
    title: str
    needs: tuple[Fact, ...]
    core: bool = True
    """Whether a recording must show its facts before `check` may say PASS."""

    def missing(self, have: set[str]) -> tuple[Fact, ...]:
        """The facts that these events and arguments cannot show."""
        return tuple(fact for fact in self.needs if not fact.known_from(have))


@frozen
class Check:
    """A group of rules that is switched on and off together."""

    name: str
    rule: str
    """The oracle of most of its rules."""
    title: str
    rules: tuple[CheckRule, ...]
    source: str

    def judges(self, have: set[str]) -> bool:
        """Whether at least one of its core rules can be judged."""
        return any(rule.core and not rule.missing(have) for rule in self.rules)

    def wants(self, have: set[str]) -> str:
        """The facts that keep its core rules from being judged, with how to record them."""
        facts = {fact for rule in self.rules if rule.core for fact in rule.missing(have)}
        return "; ".join(f"{fact.name} ({fact.wants})" for fact in sorted(facts, key=str))


FLUSH_EVENTS: Final = ("flush_remote", "flush_remote_range", "flush_remote_memslot")
LOCAL_FLUSHES: Final = ("flush_current", "flush_asid", "flush_all")


def either(*names: str) -> tuple[str, ...]:
    """A probe or the entry of each function."""
    return tuple(way for name in names for way in (name, f"{name}()"))


CHANGES: Final = Fact(
    "page-table changes", {"kvm_tdp_mmu_spte_changed"}, "event kvmmmu:kvm_tdp_mmu_spte_changed"
)
PAGES: Final = Fact(
    "births of roots and tables", {"kvm_mmu_get_page"}, "event kvmmmu:kvm_mmu_get_page"
)
REMOVALS: Final = Fact(
    "removals of tables", {"kvm_mmu_prepare_zap_page"}, "event kvmmmu:kvm_mmu_prepare_zap_page"
)
BEGINNING: Final = Fact(
    "where the VM begins",
    {*either("init_vm"), "memslots_updated:gen", "kvm_mmu_get_page"},
    "a recording that begins before the VM does",
)
WRITTEN: Final = Fact(
    "what the fault has left", {"kvm_mmu_set_spte"}, "event kvmmmu:kvm_mmu_set_spte"
)
FRAME: Final = Fact(
    "the frame that the fault has found",
    {"map:pfn", "kvm_mmu_spte_requested"},
    "event kvmmmu:kvm_mmu_spte_requested",
)
WRITABLE_FRAME: Final = Fact(
    "whether the host let the fault write",
    {"map:map_w", "map:map_writable"},
    "probe on kvm_tdp_mmu_map with fault->map_writable",
)
MARKED: Final = Fact(
    "the generation that an MMIO SPTE was made for",
    {"mark_mmio_spte"},
    "event kvmmmu:mark_mmio_spte",
)
FLUSHED: Final = Fact(
    "remote flushes",
    {*either("flush_remote"), "make_all_req:req"},
    "function or probe kvm_flush_remote_tlbs, or probe on kvm_make_all_cpus_request (req)",
)
FLUSHED_HERE: Final = Fact(
    "a vCPU's own flushes",
    set(either("flush_current")),
    "functions or probes svm_flush_tlb_current, vmx_flush_tlb_current",
)
RETURNED: Final = Fact(
    "where the call is over",
    {
        "set_memslot_ret", "mn_start_ret", "map_ret", "unmap_gfn_range_ret",
        "tdp_page_fault_ret", "flush_shadow_memslot_ret", "mn_end()", "mn_end",
        "swap_memslots()", "kvm_userspace_exit",
    },
    "probes on the returns of kvm_set_memslot, kvm_mmu_notifier_invalidate_range_start, "
    "kvm_tdp_mmu_map",
)  # fmt: skip
NOTIFIED: Final = Fact(
    "where an invalidation of host memory is over",
    {"mn_start_ret", *either("mn_end")},
    "probe on the return of kvm_mmu_notifier_invalidate_range_start",
)
RANGE: Final = Fact(
    "the guest frames of an invalidation",
    {"unmap_gfn_range:start", "zap_leafs:start"},
    "probe on kvm_tdp_mmu_unmap_gfn_range (range->start, range->end) or tdp_mmu_zap_leafs",
)
VALIDITY: Final = Fact(
    "whether the root was valid",
    {
        "zap_root:role", "kvm_mmu_zap_all_fast",
        *either("invalidate_all_roots", "zap_invalidated_roots", "zap_all_fast"),
    },
    "event kvmmmu:kvm_mmu_zap_all_fast, or probe on tdp_mmu_zap_root (root->role.word)",
)  # fmt: skip
REFERENCES: Final = Fact(
    "the references of a root",
    {"put_root:ref"},
    "probe on kvm_tdp_mmu_put_root (root, root->tdp_mmu_root_count, root->role)",
)
WALKS: Final = Fact(
    "the roots that walks find", {"next_root_ret"}, "probe on the return of tdp_mmu_next_root"
)
FREED: Final = Fact(
    "which pages RCU frees", {"free_sp_rcu:head"}, "probe on tdp_mmu_free_sp_rcu_callback (head)"
)
TEARDOWN: Final = Fact(
    "where the TDP MMU is taken down",
    set(either("uninit_tdp")),
    "function or probe kvm_mmu_uninit_tdp_mmu",
)
SLOT: Final = Fact(
    "which slot a call deletes or moves",
    {"set_memslot:old_gfn"},
    "probe on kvm_set_memslot (change, old->base_gfn, old->npages, new->base_gfn, new->npages)",
)
SLOT_OVER: Final = Fact(
    "where the memslot call is over", {"set_memslot_ret"}, "probe on the return of kvm_set_memslot"
)
ENTRIES: Final = Fact("entries to the guest", {"kvm_entry"}, "event kvm:kvm_entry")
LOADS: Final = Fact(
    "where a vCPU loads a root",
    set(either("mmu_load", "load_pgd")),
    "functions or probes kvm_mmu_load, svm/vmx_load_mmu_pgd",
)
LOAD_OVER: Final = Fact(
    "where a load of a root is over", {"mmu_load_ret"}, "probe on the return of kvm_mmu_load"
)
GIVEN_ROOT: Final = Fact(
    "where a root is given to the hardware",
    set(either("load_pgd")),
    "functions or probes svm_load_mmu_pgd, vmx_load_mmu_pgd",
)
LOADED: Final = Fact(
    "which root a vCPU loads", {"load_pgd:root"}, "probe on svm/vmx_load_mmu_pgd (vcpu, root_hpa)"
)
DROPPED: Final = Fact(
    "where a vCPU drops its root",
    {"mmu_free_roots:root"},
    "probe on kvm_mmu_free_roots (roots_to_free, mmu->root.hpa)",
)
UNLOADED: Final = Fact(
    "which vCPU is unloaded", {"mmu_unload:vcpu"}, "probe on kvm_mmu_unload (vcpu->vcpu_id)"
)
INVALIDATED: Final = Fact(
    "where roots become invalid",
    {"kvm_mmu_zap_all_fast", *either("invalidate_all_roots")},
    "event kvmmmu:kvm_mmu_zap_all_fast",
)
ASKED: Final = Fact(
    "requests to the vCPUs",
    set(either("make_all_req")),
    "function or probe kvm_make_all_cpus_request",
)
ANSWERED: Final = Fact(
    "where every vCPU has acknowledged",
    {"make_all_req_ret", *either("zap_invalidated_roots")},
    "probe on the return of kvm_make_all_cpus_request, or function "
    "kvm_tdp_mmu_zap_invalidated_roots",
)
COUNTS: Final = Fact(
    "KVM's own counts",
    {
        "statistics", "zap_all_fast:tdp_pages", "zap_invalidated_roots:tdp_pages",
        "uninit_tdp:tdp_pages",
    },
    "markers with pages_4k=, pages_2m=, pages_1g= (stress trace record --level 3), or probes with "
    "kvm->arch.tdp_mmu_pages",
)  # fmt: skip
