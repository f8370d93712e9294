"""Candidate bugs of the kernel itself, not of the series: what kernels do and the mended design
does not. None is confirmed by a maintainer; each file says what was seen of it and what was not.

Profile `rfc-v1`, which is the series on the kernel as it is, has all of them, and so have the
kernels that recordings are compared with.
"""

from __future__ import annotations

from mmu.variant import Variant, variants_in

CANDIDATES: dict[str, Variant] = variants_in(__name__, __path__)
"""Every candidate by name."""
