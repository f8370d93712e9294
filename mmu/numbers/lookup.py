"""What a number says, whatever its letter."""

from __future__ import annotations

import re
from typing import Final

from mmu.numbers.bugs import BUGS
from mmu.numbers.defects import DEFECTS
from mmu.numbers.differences import DIFFERENCES
from mmu.numbers.invariants import INVARIANTS
from mmu.numbers.measurements import MEASUREMENTS
from mmu.numbers.oracles import RULES
from mmu.numbers.points import POINTS

NUMBERS: Final[dict[str, str]] = {
    **RULES,
    **INVARIANTS,
    **{number: f"{each.name}: {each.says}" for number, each in DEFECTS.items()},
    **{number: each.says for number, each in BUGS.items()},
    **POINTS,
    **MEASUREMENTS,
    **{number: each.says for number, each in DIFFERENCES.items()},
}
"""Every number with its line, letter by letter."""

_NUMBER = re.compile(r"\b[OIRBPMD][0-9]{1,2}[a-z]?\b")


def cited_in(text: str) -> list[str]:
    """The numbers that `text` names, each once, in order. Words that only look like one are left
    out."""
    return [found for found in dict.fromkeys(_NUMBER.findall(text)) if found in NUMBERS]
