"""Controls: variants that look wrong and are right. An oracle that fires on one of them
cries wolf.

One idea a file; each file's `VARIANT` is a `stress.mutants.case.Control`.
"""

from __future__ import annotations

from mmu.variant import variants_in
from stress.mutants.case import Control

CONTROLS: dict[str, Control] = {
    name: found
    for name, found in variants_in(__name__, __path__).items()
    if isinstance(found, Control)
}
"""Every control by name."""
