"""The upstream commits that variants and the bugs of the reference name: what `git log --oneline`
says of them, and the release."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TABLE = """
a889ea54b3da 5.11 KVM: x86/mmu: Ensure TDP MMU roots are freed after yield
88bf56d04bc3 5.11 kvm: check tlbs_dirty directly
34c0f6f2695a 5.10 KVM: mmu: Fix SPTE encoding of MMIO generation upper half
a835429cda91 5.12 KVM: x86/mmu: Ensure TLBs are flushed when yielding during GFN range zap
048f49809c52 5.12 KVM: x86/mmu: Ensure TLBs are flushed for TDP MMU during NX zapping
33a3164161fc 5.12 KVM: x86/mmu: Don't allow TDP MMU to yield when recovering NX pages
08f07c800e9d 5.12 KVM: x86/mmu: Flush TLBs after zap in TDP MMU PF handler
ed5e484b79e8 5.12 KVM: x86/mmu: Ensure forward progress when yielding in TDP MMU iter
7cca2d0b7e7d 5.12 KVM: x86/mmu: Protect TDP MMU page table memory with RCU
4a42d848db95 5.12 KVM: x86/mmu: Consider the hva in mmu_notifier retry
14f6fec2e8e0 5.13 KVM: x86/mmu: Fix RCU usage when atomically zapping SPTEs
70fb3e41a97a 5.13 KVM: x86/mmu: Fix RCU usage in handle_removed_tdp_mmu_page
2822da446640 5.15 KVM: x86/mmu: fix parameters to kvm_flush_remote_tlbs_with_address
edb298c663fc 5.15 KVM: x86/mmu: bump mmu notifier count in kvm_zap_gfn_range
5a324c24b638 5.15 Revert "KVM: x86/mmu: Allow zap gfn range to operate under the mmu read lock"
52ac8b358b0c 5.15 KVM: Block memslot updates across range_start() and range_end()
0103098fb4f1 5.15 KVM: x86/mmu: Don't step down in the TDP iterator when zapping all SPTEs
524a1e4e381f 5.15 KVM: x86/mmu: Don't leak non-leaf SPTEs when zapping all SPTEs
bc3b3c1002ea 5.16 KVM: x86/mmu: Drop a redundant, broken remote TLB flush
574c3c55e969 5.16 KVM: x86/mmu: Fix TLB flush range when handling disconnected pt
3a0f64de479c 5.16 KVM: x86/mmu: Don't advance iterator after restart due to yielding
7533377215b6 5.16 KVM: x86/mmu: Use yield-safe TDP MMU root iter in MMU notifier unmapping
a955cad84cda 5.16 KVM: x86/mmu: Retry page fault if root is invalidated by memslot update
f7e570780efc 5.17 KVM: x86: Forcibly leave nested virt when SMM state is toggled
cf3e26427c08 5.18 KVM: x86/mmu: Zap only TDP MMU leafs in kvm_zap_gfn_range()
873dd122172f 5.18 Revert "KVM: x86/mmu: Zap only TDP MMU leafs in kvm_zap_gfn_range()"
f47e5bbbc92f 5.18 KVM: x86/mmu: Zap only TDP MMU leafs in zap range and mmu_notifier unmap
614f6970aa70 5.18 KVM: x86/mmu: do not allow readers to acquire references to invalid roots
226b8c8f85e4 5.18 KVM: x86/mmu: Require mmu_lock be held for write in unyielding root iter
d62007edf01f 5.18 KVM: x86/mmu: Zap _all_ roots when unmapping gfn range in TDP MMU
22b94c4b63eb 5.18 KVM: x86/mmu: Zap invalidated roots via asynchronous worker
efd995dae5eb 5.18 KVM: x86/mmu: Zap defunct roots via asynchronous worker
527d5cd7eece 5.18 KVM: x86/mmu: Zap only obsolete roots if a root shadow page is zapped
5f6de5cbebee 5.18 KVM: Prevent module exit until all VMs are freed
a151aceca1e4 5.18 KVM: x86/mmu: Drop RCU after processing each root in MMU notifier hooks
1b6043e8e584 5.18 KVM: x86/mmu: Zap roots in two passes to avoid inducing RCU stalls
58298b068137 5.18 KVM: x86/mmu: Check for a REMOVED leaf SPTE before making the SPTE
ba3a6120a4e7 5.18 KVM: x86/mmu: Use atomic XCHG to write TDP MMU SPTEs with volatile bits
54eb3ef56f36 5.18 KVM: x86/mmu: Move shadow-present check out of spte_has_volatile_bits()
706c9c55e5a3 5.18 KVM: x86/mmu: Don't treat fully writable SPTEs as volatile (modulo A/D)
3354ef5a592d 5.18 KVM: x86/mmu: Check for present SPTE when clearing dirty bit in TDP MMU
cf4a8693d97a 5.19 KVM: x86/mmu: Check every prev_roots in __kvm_mmu_free_obsolete_roots()
58cd407ca4c6 5.19 KVM: Fix multiple races in gfn=>pfn cache refresh
b64d740ea7dd 6.1  kvm: x86: mmu: Always flush TLBs when enabling dirty logging
6d3085e4d89a 6.1  KVM: x86/mmu: Block all page faults during kvm_zap_gfn_range()
47b0c2e4c220 6.1  KVM: x86/mmu: Fix race condition in direct_page_fault
f5d16bb9be68 6.2  KVM: x86/mmu: Don't attempt to map leaf if target TDP MMU SPTE is frozen
50a9ac25985c 6.2  KVM: x86/mmu: Don't install TDP MMU SPTE if SP has unexpected level
80a3e4ae962d 6.2  KVM: x86/mmu: Map TDP MMU leaf SPTE iff target level is reached
21a36ac6b6c7 6.2  KVM: x86/mmu: Re-check under lock that TDP MMU SP hugepage is disallowed
d25ceb926436 6.2  KVM: x86/mmu: Track the number of TDP MMU pages, but not the actual pages
ba6e3fe25543 6.3  KVM: x86/mmu: Grab mmu_invalidate_seq in kvm_faultin_pfn()
edbdb43fc96b 6.4  KVM: x86: Preserve TDP MMU roots until they are explicitly invalidated
817fa998362d 6.4  KVM: x86/mmu: Grab memslot for correct address space in NX recovery worker
2230f9e1171a 6.4  KVM: Avoid illegal stage2 mapping on invalid memory slot
f6a27d6dc51b 6.4  KVM: arm64: Drop last page ref in kvm_pgtable_stage2_free_removed()
0df9dab891ff 6.6  KVM: x86/mmu: Stop zapping invalidated TDP MMU roots asynchronously
59bf3557cf2f 5.18 iommu/vt-d: Calculate mask for non-aligned flushes
c43e1ccdebf2 6.13 iommu/vt-d: Drain PRQs when domain removed from RID
d02c357e5bfa 6.8  KVM: x86/mmu: Retry fault before acquiring mmu_lock if mapping is changing
8ca983631f3c 6.9  KVM: x86/mmu: Zap invalidated TDP MMU roots at 4KiB granularity
576a15de8d29 6.9  KVM: x86/mmu: Free TDP MMU roots while holding mmy_lock for read
1bc26cb90902 6.9  KVM: x86/mmu: Precisely invalidate MMU root_role during CPUID update
2673dfb591a3 6.9  KVM: x86/mmu: Write-protect L2 SPTEs in TDP MMU when clearing dirty status
4bcdd831d9d0 6.11 KVM: x86: Acquire kvm->srcu when handling KVM_SET_VCPU_EVENTS
58a20a9435aa 6.12 KVM: x86/mmu: Zap only SPs that shadow gPTEs when deleting memslot
28cf49788107 6.12 KVM: x86/mmu: Add lockdep assert to enforce safe usage of kvm_unmap_gfn_range()
9129633d568e 6.15 KVM: x86/mmu: Prevent installing hugepages when mem attributes are changing
6b38a108eeb3 6.19 iommu/vt-d: Fix unused invalidation hint in qi_desc_iotlb
3ccbf6f47098 6.18 KVM: x86/mmu: Return -EAGAIN if userspace deletes/moves memslot during prefault
152482580a1b 5.1  KVM: Call kvm_arch_memslots_updated() before updating memslots
ddfd1730fd82 5.1  KVM: x86/mmu: Do not cache MMIO accesses while memslots are in flux
"""

COMMITS: dict[str, tuple[str, str]] = {
    line[:12]: (line[13:].split()[0], line[13:].split(maxsplit=1)[1])
    for line in _TABLE.strip().splitlines()
}
"""By the first twelve digits of the hash: the release that has it, and the subject."""

HASH = re.compile(r"\b[0-9a-f]{12}\b")


def named_in(origin: str) -> Iterator[str]:
    """A line for each commit that an origin names and whose subject is known, the way a Fixes: tag
    has it."""
    for commit in dict.fromkeys(HASH.findall(origin)):
        if commit in COMMITS:
            release, subject = COMMITS[commit]
            yield f'{commit} ("{subject}") v{release}'
