"""D-numbers: what the kernel does where a model is tempted to simplify (reference 7.1)."""

from __future__ import annotations

from typing import Final

from attrs import frozen


@frozen
class Difference:
    """What the kernel does, in one line; how much it matters ("fatal", "matters", "harmless"); and
    what this model does."""

    says: str
    rate: str
    here: str


DIFFERENCES: Final = {
    "D1": Difference(
        "the fast zap drops mmu_lock between invalidation and exported zap, for obsolete shadow "
        "pages",
        "fatal",
        "modelled: Zapper.zap_obsolete_pages(), in batches of 10 with the lock break between them; "
        "R22 is what it opens",
    ),
    "D2": Difference(
        "a notifier does not hand a pending flush from slot to slot; one VMA backs many slots",
        "fatal",
        "modelled: slots over parts of a region, and MmuNotifier.unmap_next(), which hands the "
        "flush on; candidate flush-not-handed-on does not",
    ),
    "D3": Difference(
        "with dirty_log_initially_set, CLEAR write-protects huge leaves",
        "matters",
        "modelled: DirtyLog.protect_huge_pages(), word by word; conforms with recordings",
    ),
    "D4": Difference(
        "TLBs are per pCPU and tagged by root; a switch to a cached root does not flush",
        "matters",
        "absent: a TranslationCache belongs to a vCPU, untagged, and is flushed at every switch",
    ),
    "D5": Difference(
        "a VT-d range flush with ih=1 keeps paging-structure caches",
        "matters",
        "modelled: VtdDomain and TranslationCache.flush_range(), which keeps partial walks with "
        "vm.iommu_hint; R23 is what it opens",
    ),
    "D6": Difference(
        "what 6.8 to 6.12 changed for the series",
        "matters",
        "partly: KERNELS has roots under the read lock, small zaps first, and one look before "
        "mmu_lock",
    ),
    "D7": Difference(
        "yields on need_resched(), and on contention only with full preemption",
        "matters",
        "partly: Yielding.iter_cond_resched() yields on contention, as with full preemption",
    ),
    "D8": Difference(
        "rcuwait, IPIs and acknowledgements can lose a wakeup that is ordered wrongly",
        "matters",
        "absent: wait_for_invalidations() and make_all_cpus_request() wait for a predicate",
    ),
    "D9": Difference(
        "PML is switched on per vCPU by a request without WAIT",
        "matters",
        "modelled: DirtyLog.update_cpu_dirty_logging(), which waits; candidate "
        "pml-request-not-awaited does not",
    ),
    "D10": Difference(
        "shadow pages, write tracking, -EINVAL for IO faults on tracked gfns",
        "matters",
        "partly: a nested guest is a root with its own role; ShadowPages are counted and zapped",
    ),
    "D11": Difference(
        "mappers other than KVM_RUN: async page faults and KVM_PRE_FAULT_MEMORY",
        "matters",
        "absent: vCPUs map in KVM_RUN only",
    ),
    "D12": Difference(
        "guest_memfd and memory attributes invalidate without an MMU notifier",
        "matters",
        "partly: an attribute zap is kvm_zap_gfn_range(); there is no guest_memfd",
    ),
    "D13": Difference(
        "ATS: IOTLB, then device TLB, and page requests are drained",
        "matters",
        "modelled: a Device with ats has a TLB behind the IOTLB, VtdDomain.flush_range() has their "
        "order, KvmHwpt.drain() the requests; R24 is what a detach without it opens",
    ),
    "D14": Difference(
        "paging-structure caches for every level, and on the way to huge leaves",
        "matters",
        "partly: a partial walk caches the last-level table only",
    ),
    "D15": Difference(
        "the non-present value is SHADOW_NONPRESENT_VALUE from 6.10 on",
        "matters",
        "absent: 0 is non-present, and bit 63 marks MMIO",
    ),
    "D16": Difference(
        "page-table memory is recycled at the same address",
        "matters",
        "absent: PageTableMemory gives no address twice; a use after free is found by poison",
    ),
    "D17": Difference(
        "non-blockable notifiers, change_pte up to 6.9, gfn_to_pfn caches",
        "harmless",
        "absent: every notifier may block",
    ),
    "D18": Difference(
        "the slot is looked up once, before the fast page fault",
        "harmless",
        "other: FaultHandler.page_fault() looks it up after the caches are topped up, and the fast "
        "path for itself",
    ),
    "D19": Difference(
        "after more than 4 lost races the fast page fault takes the slow path",
        "harmless",
        "other: fast_page_fault() returns RETRY then",
    ),
    "D20": Difference(
        "the map walk re-reads the SPTE before it steps down",
        "harmless",
        "other: FaultHandler.map() reads it once",
    ),
    "D21": Difference(
        "the retry label of the root zap polls cond_resched again",
        "harmless",
        "other: a lost compare-exchange is retried without polling",
    ),
    "D22": Difference(
        "zap_gfn_range flushes exactly its range",
        "harmless",
        "modelled: Zapper.zap_gfn_range(); a TranslationCache drops every huge leaf that the range "
        "touches",
    ),
    "D23": Difference(
        "the slot zap of 6.12 flushes everything, and shadow pages may yield",
        "harmless",
        "other: Zapper.zap_memslot_leafs() flushes the slot's range",
    ),
    "D24": Difference(
        "ageing without A/D bits judges the value read before the xchg",
        "harmless",
        "other: Ageing.age_leaf() judges what the exchange returned",
    ),
    "D25": Difference(
        "MMIO SPTEs are installed while memslots are in flux",
        "harmless",
        "mended: FaultHandler.is_in_flux() refuses; UpstreamMmio restores what upstream does",
    ),
    "D26": Difference(
        "enabling the log takes three mmu_lock sections, getting it exchanges bits under mmu_lock",
        "harmless",
        "partly: DirtyLog.enable() takes two, one for what the kernel does in two; get() "
        "exchanges under mmu_lock",
    ),
    "D27": Difference(
        "the NX knob is written before kvm_lock is taken",
        "harmless",
        "other: NxHugePages.set_nx_huge_pages() writes it inside",
    ),
    "D28": Difference(
        "requests are serviced one by one in a fixed order",
        "harmless",
        "other: Vcpu.service_requests() fetches all of them at once",
    ),
    "D29": Difference(
        "7.x tells the host dirty and accessed at fault time",
        "harmless",
        "other: the host is told when a leaf goes, in the 7.2 profile as well",
    ),
    "D30": Difference(
        "memory order is x86-TSO",
        "matters",
        "absent: memory is sequentially consistent (chapter 9)",
    ),
}
"""Every difference by its number."""
