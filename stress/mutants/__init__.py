"""Known-broken variants: each re-creates one real bug or breaks one rule, and must be caught.

One idea a file; each file's `VARIANT` says what it breaks, where that comes from, and which rules must fire.
"""

from __future__ import annotations

import importlib
import pkgutil

from mmu.posted import POSTED
from mmu.variant import Variant


def _load() -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        variant = importlib.import_module(f"{__name__}.{module}").VARIANT
        found[variant.name] = variant
    return found


MUTANTS: dict[str, Variant] = _load()
"""Every shipped variant by name."""

SHIPPED: dict[str, Variant] = {**POSTED, **MUTANTS}
"""What `vm.variants` can name: the defects of the posted series as well."""
