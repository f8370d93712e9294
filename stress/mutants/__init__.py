"""Known-broken variants: each re-creates one real bug or breaks one rule, and must be caught.

One idea a file; each file's `VARIANT` says what it breaks, where that comes from, and which rules must fire.
"""

from __future__ import annotations

from mmu.posted import POSTED
from mmu.variant import Variant, variants_in

MUTANTS: dict[str, Variant] = variants_in(__name__, __path__)
"""Every shipped variant by name."""

SHIPPED: dict[str, Variant] = {**POSTED, **MUTANTS}
"""What `vm.variants` can name: the defects of the posted series as well."""
