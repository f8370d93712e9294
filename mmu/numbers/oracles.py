"""O-numbers: the rules that a report can say were broken (reference 0.2)."""

from __future__ import annotations

from typing import Final

RULES: Final = {
    "O1": "STALE-TLB: a translation was used after the flush that had to remove it",
    "O2": "UAF-PT: a page-table page or slot was touched after it was freed",
    "O3": "RCU-RULE: RCU or SRCU discipline broken",
    "O4": "REFCOUNT: a reference was lost, doubled or dropped too early",
    "O5": "LOCKDEP: wrong lock, wrong mode, wrong order or wrong context",
    "O6": "STALE-MAP: a present leaf maps memory that the slot layout no longer has",
    "O7": "SPTE-TRANSITION: an SPTE changed in a way that is never legal",
    "O8": "LOST-BITS: a written page is in no dirty log, no SPTE and no dirty frame",
    "O9": (
        "ACCOUNTING: a count or list disagrees with the tables, or an invalidation is out of "
        "balance"
    ),
    "O10": "LIVENESS: no progress, or a bound on holding a lock or a read section exceeded",
    "O11": "TEARDOWN-LEAK: something outlived the VM",
    "O12": (
        "ROOT-VALIDITY: an obsolete root used, an exported one invalid, or two valid ones of a role"
    ),
    "O13": "MMIO-GEN: a stale MMIO SPTE was honoured although a memslot covers the gfn",
    "O14": "NX-POLICY: an executable huge leaf exists while the NX huge page mitigation is on",
    "O15": (
        "ITER: an entry that was present during a whole walk was not visited, or a walk lost its "
        "place"
    ),
    "O16": "NOTIFY: an importer was not told, told too late, or an IO fault was answered wrongly",
    "O17": "LIST: a page was added twice or after its end, or a stranger removed",
    "INV": (
        "INVARIANT: at rest the state is wrong: a rule was broken before (appendix A of the "
        "reference)"
    ),
}
"""The oracle catalogue: what each rule that can be reported means."""
