"""Every litmus program by name, family by family."""

from __future__ import annotations

from stress.litmus.base import Family, Litmus
from stress.litmus.cells import FAMILY as CELLS
from stress.litmus.exports import FAMILY as EXPORTS
from stress.litmus.faults import FAMILY as FAULTS
from stress.litmus.guests import FAMILY as GUESTS
from stress.litmus.locks import FAMILY as LOCKS
from stress.litmus.memslots import FAMILY as MEMSLOTS
from stress.litmus.nx import FAMILY as NX
from stress.litmus.rcu import FAMILY as RCU
from stress.litmus.refcounts import FAMILY as REFCOUNTS
from stress.litmus.roots import FAMILY as ROOTS
from stress.litmus.sptes import FAMILY as SPTES
from stress.litmus.waits import FAMILY as WAITS

FAMILIES: tuple[Family, ...] = (CELLS, LOCKS, WAITS, REFCOUNTS, RCU, GUESTS, SPTES, FAULTS, MEMSLOTS, ROOTS, EXPORTS, NX)
"""The families, from words to whole operations."""

LITMUS: dict[str, Litmus] = {litmus.name: litmus for family in FAMILIES for litmus in family.programs}
"""The programs by name."""
