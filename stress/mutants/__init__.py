"""Mutants, the variants that must die: each re-creates one real bug or breaks one rule.

One idea a file; each file's `VARIANT` is a `stress.mutants.case.Mutant`, which says what it breaks,
where that comes from, which rules must fire, and the smallest scenarios that show it.
"""

from __future__ import annotations

from mmu.candidates import CANDIDATES
from mmu.posted import POSTED
from mmu.variant import Variant, variants_in
from stress.mutants.case import Mutant
from stress.mutants.controls import CONTROLS

MUTANTS: dict[str, Mutant] = {
    name: found
    for name, found in variants_in(__name__, __path__, besides=("case", "commits")).items()
    if isinstance(found, Mutant)
}
"""Every shipped mutant by name."""

SHIPPED: dict[str, Variant] = {**POSTED, **CANDIDATES, **MUTANTS, **CONTROLS}
"""What `vm.variants` can name: the posted defects, the candidate bugs of kernels and the controls
as well."""
