"""I-numbers: what must hold of a VM (reference, appendix A). `mmu.invariants` checks it at rest."""

from __future__ import annotations

from typing import Final

INVARIANTS: Final = {
    "I1": (
        "A linked root has at least one reference; its last reference is put only once it is "
        "invalid, zapped and not exported."
    ),
    "I2": (
        "The TDP MMU holds exactly one reference to each root that is not yet zapped; a "
        "zapped root is empty."
    ),
    "I3": (
        "At rest a root's refcount is the TDP MMU's own reference, plus one for each vCPU slot "
        "that holds it, each iterator on it, and its exporter."
    ),
    "I4": (
        "A root that was invalidated stays invalid; role.invalid is set only under mmu_lock(write)."
    ),
    "I5": "An exported root is valid, and has exactly one exporter.",
    "I6": (
        "Every linked table is reached from exactly one parent entry, and its stored parent, gfn "
        "and level match it."
    ),
    "I7": (
        "A leaf's gfn and pfn are aligned to its level; its pfn is what the host maps there now; "
        "writable implies MMU-writable implies Host-writable, on a slot that may be written."
    ),
    "I8": (
        "No leaf exists for an INVALID or absent slot after the memslot operation has returned, "
        "and none for a released page after range_start has returned."
    ),
    "I9": (
        "A cached translation that a vCPU or device uses is justified by an SPTE that was present "
        "since the last flush that was due."
    ),
    "I10": (
        "A removed table is freed only after a grace period, and no task touches it afterwards; "
        "the barrier at VM destroy drains every callback."
    ),
    "I11": "Only the task that froze an entry replaces REMOVED, and within a bounded time.",
    "I12": (
        "No SPTE is installed from a pfn snapshot that an invalidation overlaps; every "
        "invalidation that began has ended."
    ),
    "I13": "At rest tdp_mmu_pages and the page statistics equal a full walk.",
    "I14": "possible_nx_huge_pages holds only linked tables whose nx_huge_page_disallowed is set.",
    "I15": "Every written page is in the dirty log, an SPTE's dirty or W state, or pfn-dirty.",
    "I16": (
        "An MMIO SPTE is honoured only if its generation is the current stable one and no slot "
        "covers the gfn."
    ),
    "I17": "While the NX huge page mitigation is on there is no executable huge leaf.",
    "I18": (
        "An importer hears of every flush for its root between removal and completion, and of none "
        "after it has unregistered."
    ),
    "I19": (
        "An IO fault is answered SUCCESS only if the gfn is mapped with the rights asked for, and "
        "FAILURE only if it cannot be mapped."
    ),
    "I20": (
        "Locks are taken in the documented order and held for a bounded time; at rest no lock is "
        "held."
    ),
}
"""The invariants in the words of the reference."""
