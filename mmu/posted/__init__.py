"""The series as posted: each defect of reference 1.11 that is model-level, as a variant that takes
one mend out again.

`POSTED` has them by name; profile `rfc-v1` is all of them together, on a kernel with the candidate
bugs that it has, `hardened` none. One defect a file; defects that are figures by nature (R13 beyond
its bound, R16, R21) need no part: they are measured.
"""

from __future__ import annotations

from mmu.candidates import CANDIDATES
from mmu.variant import Variant, variants_in

POSTED: dict[str, Variant] = variants_in(__name__, __path__)
"""Every posted defect by name, in the order of its R-number."""

PROFILES: dict[str, tuple[Variant, ...]] = {
    "hardened": (),
    "rfc-v1": (*CANDIDATES.values(), *POSTED.values()),
}
"""What a profile takes out of the mended design."""
