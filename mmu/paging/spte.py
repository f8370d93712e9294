"""SPTE encoding: 64-bit words in EPT's layout, the kernel's software bits, and the values that map
nothing.

Source: arch/x86/kvm/mmu/spte.h as reference 0.1, 1.2 (patch 24) and 2.6 give it: KVM's MMU-present
bit is bit 11 upstream and bit 59 when tables are shared with VT-d, which reserves bit 11. Hardware
looks at the R, W and X bits only.
"""

from __future__ import annotations

from typing import Final

from attrs import field, frozen

SPTE_R: Final = 1 << 0
SPTE_W: Final = 1 << 1
SPTE_X: Final = 1 << 2
SPTE_RWX: Final = SPTE_R | SPTE_W | SPTE_X
SPTE_PS: Final = 1 << 7
SPTE_A: Final = 1 << 8
SPTE_D: Final = 1 << 9
SAVED_R: Final = 1 << 54
SAVED_X: Final = 1 << 56
HOST_WRITABLE: Final = 1 << 57
MMU_WRITABLE: Final = 1 << 58
SPTE_MMIO: Final = 1 << 63
"""Software's mark of an MMIO SPTE (suppress #VE, which hardware ignores here)."""
MISCONFIG: Final = SPTE_W | SPTE_X
"""The rights of an MMIO SPTE that a CPU reports as an EPT misconfiguration; an IOMMU may read them
as "writable" (R18)."""
PFN_SHIFT: Final = 12
ADDR_MASK: Final = ((1 << 52) - 1) & ~((1 << PFN_SHIFT) - 1)
REMOVED_SPTE: Final = 0x5A0
"""The frozen value: no R, W, X, no frame, not MMU-present. Whoever writes it owns the entry until
he replaces it."""

MMIO_GEN_BITS: Final = 19
_SAVED_SHIFT = 54
_GEN_UPSTREAM = ((3, 8), (52, 11))
_GEN_HIGH = ((3, 9), (52, 7), (60, 3))


@frozen
class SpteLayout:
    """Where things are in an SPTE. `present` is the mask of the MMU-present bit, `gen_fields` the
    (shift, width) pieces of an MMIO SPTE's generation, lowest first, `ad_bits` says whether leaves
    have accessed and dirty bits."""

    present: int
    gen_fields: tuple[tuple[int, int], ...] = field(default=_GEN_HIGH)
    ad_bits: bool = True

    def is_present(self, spte: int) -> bool:
        """is_shadow_present_pte()."""
        return bool(spte & self.present)

    def is_leaf(self, spte: int, level: int) -> bool:
        """A present entry that maps memory: any at level 1, a large page above."""
        return bool(spte & self.present) and (level == 1 or bool(spte & SPTE_PS))

    def is_table(self, spte: int, level: int) -> bool:
        """A present entry that points to a lower table."""
        return bool(spte & self.present) and level > 1 and not spte & SPTE_PS

    def leaf(
        self, pfn: int, level: int, *, writable: bool, host_writable: bool, executable: bool = True
    ) -> int:
        """make_spte(): a leaf for `pfn`; MMU-writable only where the host allows writing (reference
        2.6)."""
        spte = self.present | SPTE_R | (pfn << PFN_SHIFT)
        if executable:
            spte |= SPTE_X
        if self.ad_bits:
            spte |= SPTE_A
        if level > 1:
            spte |= SPTE_PS
        if host_writable:
            spte |= HOST_WRITABLE
            if writable:
                spte |= SPTE_W | MMU_WRITABLE
                if self.ad_bits:
                    spte |= SPTE_D
        return spte

    def table(self, address: int) -> int:
        """make_nonleaf_spte(): an entry that points to the table page at `address`. One value a
        table."""
        return self.present | SPTE_RWX | SPTE_A | address

    # Accessed, dirty, writable.

    def is_accessed(self, spte: int) -> bool:
        """is_accessed_spte(): the A bit, or without one: not marked for access tracking."""
        return bool(spte & SPTE_A) if self.ad_bits else bool(spte & SPTE_RWX)

    def is_access_tracked(self, spte: int) -> bool:
        """is_access_track_spte(): present to KVM, but hardware faults, so that the next access is
        noticed."""
        return not self.ad_bits and bool(spte & self.present) and not spte & SPTE_RWX

    def mark_for_access_track(self, spte: int) -> int:
        """mark_spte_for_access_track(): make the leaf old. Without A bits its R and X are saved and
        all rights removed."""
        if self.ad_bits:
            return spte & ~SPTE_A
        if self.is_access_tracked(spte):
            return spte
        return spte & ~(SPTE_RWX | SAVED_R | SAVED_X) | (spte & (SPTE_R | SPTE_X)) << _SAVED_SHIFT

    def restore_access_track(self, spte: int) -> int:
        """restore_acc_track_spte(): give back the saved R and X."""
        return spte & ~(SAVED_R | SAVED_X) | spte >> _SAVED_SHIFT & (SPTE_R | SPTE_X)

    def has_volatile_bits(self, spte: int, level: int) -> bool:
        """spte_has_volatile_bits(): whether the CPU or the lockless fault path can change this leaf
        outside mmu_lock."""
        if not spte & self.present or not (level == 1 or spte & SPTE_PS):
            return False
        if spte & (SPTE_W | MMU_WRITABLE) == MMU_WRITABLE or self.is_access_tracked(spte):
            return True
        return self.ad_bits and (not spte & SPTE_A or spte & (SPTE_W | SPTE_D) == SPTE_W)

    # MMIO.

    def mmio(self, gfn: int, generation: int, rights: int = 0) -> int:
        """make_mmio_spte(): remembers that no slot covers `gfn`, and under which memslot generation
        that was known."""
        spte = SPTE_MMIO | rights | gfn << PFN_SHIFT
        for shift, width in self.gen_fields:
            spte |= (generation & ((1 << width) - 1)) << shift
            generation >>= width
        return spte

    def mmio_generation(self, spte: int) -> int:
        """get_mmio_spte_generation()."""
        generation = position = 0
        for shift, width in self.gen_fields:
            generation |= (spte >> shift & ((1 << width) - 1)) << position
            position += width
        return generation


UPSTREAM = SpteLayout(1 << 11, _GEN_UPSTREAM)
PRESENT_HIGH = SpteLayout(1 << 59, _GEN_HIGH)


def pfn_of(spte: int) -> int:
    """spte_to_pfn()."""
    return (spte & ADDR_MASK) >> PFN_SHIFT


def describe(spte: int, layout: SpteLayout, level: int = 1) -> str:
    """An SPTE of a table of `level` for people: value, state, frame and rights, or the table that
    it points to."""
    if spte == REMOVED_SPTE:
        return f"{spte:#x} (frozen)"
    if spte & SPTE_MMIO:
        return f"{spte:#x} (MMIO, generation {layout.mmio_generation(spte)})"
    if not layout.is_present(spte):
        return f"{spte:#x} (not present)"
    if layout.is_table(spte, level):
        return f"{spte:#x} (table at {spte & ADDR_MASK:#x})"
    rights = "".join(
        letter if spte & bit else "-"
        for letter, bit in (("r", SPTE_R), ("w", SPTE_W), ("x", SPTE_X))
    )
    huge = " huge" if spte & SPTE_PS else ""
    return f"{spte:#x} ({rights}{huge} frame {pfn_of(spte):#x})"
