"""The shape of the page tables: how many levels, how many entries, and the arithmetic on guest
frame numbers."""

from __future__ import annotations

from attrs import field, frozen

PG_LEVEL_4K = 1
PG_LEVEL_2M = 2
PG_LEVEL_1G = 3


@frozen
class Geometry:
    """`levels` of tables (level 1 holds 4 KiB leaves), each with `entries` words, a power of two.

    The real one is 4 x 512; small ones are for exhaustive exploration. A table at level L maps
    `pages(L + 1)` frames.
    """

    levels: int = field(default=4)
    entries: int = field(default=512)

    @levels.validator
    def _levels_in_range(self, _: object, value: int) -> None:
        if not 1 <= value <= 5:
            raise ValueError(f"levels must be 1 to 5, not {value}")

    @entries.validator
    def _entries_power_of_two(self, _: object, value: int) -> None:
        if value < 2 or value & (value - 1):
            raise ValueError(f"entries must be a power of two from 2 on, not {value}")

    @property
    def bits(self) -> int:
        """Bits of a gfn that select an entry at one level."""
        return self.entries.bit_length() - 1

    @property
    def mask(self) -> int:
        """Mask of an index."""
        return self.entries - 1

    @property
    def max_gfn(self) -> int:
        """The last guest frame number that the tables can map."""
        return (1 << (self.bits * self.levels)) - 1

    def shift(self, level: int) -> int:
        """How far a gfn is shifted to give the index at `level`."""
        return self.bits * (level - 1)

    def shifts(self) -> tuple[int, ...]:
        """`shift` of every level, indexed by level; entry 0 is unused."""
        return (0, *(self.shift(level) for level in range(1, self.levels + 1)))

    def pages(self, level: int) -> int:
        """KVM_PAGES_PER_HPAGE: frames that one entry at `level` maps."""
        return 1 << self.shift(level)

    def index(self, gfn: int, level: int) -> int:
        """SPTE_INDEX: the entry of a table at `level` that `gfn` selects."""
        return (gfn >> self.shift(level)) & self.mask
