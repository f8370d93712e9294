"""The exported root is invalidated like any other: the negative control (policy C)."""

from mmu.export.policies import INVALIDATE_IN_PLACE
from stress.mutants.case import Case, Mutant

VARIANT = Mutant(
    name="exported-root-invalidated",
    title="the exported root is invalidated like any other",
    parts=INVALIDATE_IN_PLACE.parts,
    expects=("O12",),
    rule=INVALIDATE_IN_PLACE.rule,
    origin="what RFC PATCH 36/42 puts an end to; reference 1.10",
    story=INVALIDATE_IN_PLACE.story,
    confidence="V",
    tags=("seed", "roots"),
    controlled=Case("explore/delete-vs-dma"),
    threads=Case("BUSTED/exported-root-invalidated"),
)
