"""How often each rule was exercised: what one judgement is, and how many the model itself has
passed."""

from __future__ import annotations

from collections.abc import Mapping

from mmu.numbers.oracles import RULES

JUDGED: dict[str, str] = {
    "O1": "accesses compared with the owner of the frame, and flushes that were owed",
    "O2": "tables freed and poisoned, so that a later touch would be seen",
    "O3": "tables freed, each after the readers that had to leave",
    "O4": "roots whose last put was judged",
    "O5": "mmu_lock sections in the order of locks",
    "O6": "accesses, and roots searched for leaves of a slot that had gone",
    "O7": "SPTE changes",
    "O8": "dirty logs compared with what was written",
    "O9": "counts compared with the tables at rest",
    "O10": "write-held sections of mmu_lock",
    "O11": "VMs taken down",
    "O12": "guest entries while a root was obsolete, and invalidations",
    "O13": "accesses that an MMIO SPTE answered",
    "O14": "huge leaves",
    "O15": "zapped ranges walked again",
    "O16": "answers to devices, calls of importers, and notifications that were owed",
    "O17": "additions to lists and removals",
    "INV": "times that everything stood still",
}
"""What is counted for each rule. Where the model checks at each of many steps, only some that are
cheap to count are: a lower bound."""

_MODEL: dict[str, tuple[str, ...]] = {
    "O1": ("vcpu_accesses", "device_accesses"),
    "O2": ("rcu_callbacks",),
    "O3": ("rcu_callbacks",),
    "O4": ("roots_freed",),
    "O5": ("mmu_write_locks", "vcpu_faults", "io_faults"),
    "O6": ("vcpu_accesses", "device_accesses"),
    "O7": ("vcpu_faults_fixed", "exported_leaves_zapped", "tables_removed"),
    "O9": ("quiescent_checks",),
    "O11": ("teardowns",),
    "O17": ("exports", "unexports", "roots_freed"),
    "INV": ("quiescent_checks",),
}
"""The counters of what the model's own primitives, or whoever makes an access, have judged."""


def judged_by_model(counters: Mapping[str, int]) -> dict[str, int]:
    """Every rule with what was judged without an observer."""
    return {rule: sum(counters[name] for name in _MODEL.get(rule, ())) for rule in RULES}
