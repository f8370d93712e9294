"""Every litmus program by name, family by family."""

from __future__ import annotations

from stress.selftest.litmus.base import Family, Litmus
from stress.selftest.litmus.cells import FAMILY as CELLS
from stress.selftest.litmus.exports import FAMILY as EXPORTS
from stress.selftest.litmus.faults import FAMILY as FAULTS
from stress.selftest.litmus.guests import FAMILY as GUESTS
from stress.selftest.litmus.iommu import FAMILY as IOMMU
from stress.selftest.litmus.locks import FAMILY as LOCKS
from stress.selftest.litmus.memslots import FAMILY as MEMSLOTS
from stress.selftest.litmus.nx import FAMILY as NX
from stress.selftest.litmus.rcu import FAMILY as RCU
from stress.selftest.litmus.refcounts import FAMILY as REFCOUNTS
from stress.selftest.litmus.roots import FAMILY as ROOTS
from stress.selftest.litmus.sptes import FAMILY as SPTES
from stress.selftest.litmus.waits import FAMILY as WAITS

FAMILIES: tuple[Family, ...] = (
    CELLS,
    LOCKS,
    WAITS,
    REFCOUNTS,
    RCU,
    GUESTS,
    SPTES,
    FAULTS,
    MEMSLOTS,
    ROOTS,
    EXPORTS,
    IOMMU,
    NX,
)
"""The families, from words to whole operations."""

LITMUS: dict[str, Litmus] = {
    litmus.name: litmus for family in FAMILIES for litmus in family.programs
}
"""The programs by name."""
