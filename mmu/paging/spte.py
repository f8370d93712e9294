"""SPTE encoding: 64-bit words in EPT's layout, the kernel's software bits, and the frozen value.

Source: arch/x86/kvm/mmu/spte.h as reference 0.1 and 1.2 (patch 24) give it: KVM's MMU-present bit is bit 11 upstream
and bit 59 when tables are shared with VT-d, which reserves bit 11. Hardware looks at the R, W and X bits only.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

SPTE_R: Final = 1 << 0
SPTE_W: Final = 1 << 1
SPTE_X: Final = 1 << 2
SPTE_RWX: Final = SPTE_R | SPTE_W | SPTE_X
SPTE_PS: Final = 1 << 7
SPTE_A: Final = 1 << 8
SPTE_D: Final = 1 << 9
HOST_WRITABLE: Final = 1 << 57
MMU_WRITABLE: Final = 1 << 58
PFN_SHIFT: Final = 12
ADDR_MASK: Final = ((1 << 52) - 1) & ~((1 << PFN_SHIFT) - 1)
REMOVED_SPTE: Final = 0x5A0
"""The frozen value: no R, W, X, no frame, not MMU-present. Whoever writes it owns the entry until he replaces it."""


@frozen
class SpteLayout:
    """Where the MMU-present bit is. `present` is its mask."""

    present: int

    def is_present(self, spte: int) -> bool:
        """is_shadow_present_pte()."""
        return bool(spte & self.present)

    def is_leaf(self, spte: int, level: int) -> bool:
        """A present entry that maps memory: any at level 1, a large page above."""
        return bool(spte & self.present) and (level == 1 or bool(spte & SPTE_PS))

    def is_table(self, spte: int, level: int) -> bool:
        """A present entry that points to a lower table."""
        return bool(spte & self.present) and level > 1 and not spte & SPTE_PS

    def leaf(self, pfn: int, level: int, *, writable: bool, host_writable: bool) -> int:
        """make_spte(): a leaf for `pfn`; MMU-writable only where the host allows writing (reference 2.6)."""
        spte = self.present | SPTE_R | SPTE_X | SPTE_A | (pfn << PFN_SHIFT)
        if level > 1:
            spte |= SPTE_PS
        if host_writable:
            spte |= HOST_WRITABLE
            if writable:
                spte |= SPTE_W | MMU_WRITABLE | SPTE_D
        return spte

    def table(self, address: int) -> int:
        """make_nonleaf_spte(): an entry that points to the table page at `address`."""
        return self.present | SPTE_RWX | SPTE_A | address


UPSTREAM = SpteLayout(1 << 11)
PRESENT_HIGH = SpteLayout(1 << 59)


def pfn_of(spte: int) -> int:
    """spte_to_pfn()."""
    return (spte & ADDR_MASK) >> PFN_SHIFT


def describe(spte: int, layout: SpteLayout) -> str:
    """An SPTE for people: value, state, frame and rights."""
    if spte == REMOVED_SPTE:
        return f"{spte:#x} (frozen)"
    if not layout.is_present(spte):
        return f"{spte:#x} (none)"
    rights = "".join(letter if spte & bit else "-" for letter, bit in (("r", SPTE_R), ("w", SPTE_W), ("x", SPTE_X)))
    return f"{spte:#x} ({rights} frame {pfn_of(spte):#x})"
