"""P-numbers: preemption points, where an interruption matters (reference 2.16)."""

from __future__ import annotations

from typing import Final

POINTS: Final = {
    "P1": "after the snapshot of mmu_invalidate_seq, before the pfn is looked up",
    "P2": "after the pfn is known, before mmu_lock is taken",
    "P3": "after the stale check, before the walk",
    "P4": "between reading an SPTE and its compare-exchange, at each level",
    "P5": "between link_sp's compare-exchange and the accounting, possible-NX list included",
    "P6": "between freezing an entry and the flush, and between the flush and storing 0",
    "P7": "at each yield: after the flush, after RCU is left, while mmu_lock is dropped, after it",
    "P8": "between invalidate_all_roots and the request to drop obsolete roots",
    "P8b": "in kvm_zap_obsolete_pages, between two batches, before mmu_lock is offered",
    "P9": "between the fast zap's write_unlock and zap_invalidated_roots",
    "P10": "between the zap and the put of a scheduled root",
    "P11": "between an iterator's get of the next root and its put of the previous one",
    "P12": "between range_start's zap and its flush, and between the flush and the unlock",
    "P13": "between publishing the slots and synchronize_srcu",
    "P14": "between the end of synchronize_srcu and the zap",
    "P15": "between clearing leaves and notifying importers of the flush",
    "P16": (
        "in the importer: between a translation and its access, between the flush of the IOTLB and "
        "of the device TLB, and between queueing an IO fault and handling it"
    ),
    "P17": "in un-export: after exported=false, while its zap yields, before the put",
    "P18": "in the fast page fault, between reading the SPTE and its compare-exchange",
    "P19": "between writing the NX knob and the zap",
    "P20": "in a vCPU, between servicing requests and entering the guest",
}
"""Every point by its number."""

NOT_A_POINT: Final = {
    "P3": "the model reads the first SPTE right after the stale check, which makes it P4",
}
"""Points that the model does not stop at, each with the reason."""
