"""SPTEs: the two layouts say the same of every kind of entry, rights follow the host, and the
frozen value is nothing."""

from __future__ import annotations

import pytest
from attrs import evolve

from mmu.paging.spte import (
    HOST_WRITABLE,
    MISCONFIG,
    MMIO_GEN_BITS,
    MMU_WRITABLE,
    PRESENT_HIGH,
    REMOVED_SPTE,
    SPTE_A,
    SPTE_D,
    SPTE_MMIO,
    SPTE_PS,
    SPTE_R,
    SPTE_RWX,
    SPTE_W,
    SPTE_X,
    UPSTREAM,
    SpteLayout,
    describe,
    pfn_of,
)

BIT_11, BIT_59 = 1 << 11, 1 << 59
PFNS = [0, 1, 0xABCDE, (1 << 40) - 1]
both_layouts = pytest.mark.parametrize(
    "layout", [UPSTREAM, PRESENT_HIGH], ids=["upstream", "present-high"]
)


@both_layouts
@pytest.mark.parametrize("pfn", PFNS)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_leaf_is_a_leaf_and_keeps_its_frame(layout: SpteLayout, pfn: int, level: int) -> None:
    spte = layout.leaf(pfn, level, writable=True, host_writable=True)
    assert layout.is_present(spte)
    assert layout.is_leaf(spte, level)
    assert not layout.is_table(spte, level)
    assert pfn_of(spte) == pfn


@both_layouts
@pytest.mark.parametrize("pfn", PFNS)
@pytest.mark.parametrize("level", [2, 3, 4, 5])
def test_a_table_entry_is_a_table_and_keeps_its_address(
    layout: SpteLayout, pfn: int, level: int
) -> None:
    spte = layout.table(pfn << 12)
    assert layout.is_table(spte, level)
    assert not layout.is_leaf(spte, level)
    assert pfn_of(spte) == pfn
    assert spte & SPTE_RWX == SPTE_RWX, "rights are taken away in leaves, not on the way to them"


@both_layouts
@pytest.mark.parametrize("empty", [0, REMOVED_SPTE])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_zero_and_frozen_are_neither_present_nor_anything(
    layout: SpteLayout, empty: int, level: int
) -> None:
    assert not layout.is_present(empty)
    assert not layout.is_leaf(empty, level)
    assert not layout.is_table(empty, level)


def test_the_frozen_value_is_nothing_to_the_hardware_either() -> None:
    assert REMOVED_SPTE == 0x5A0
    assert not REMOVED_SPTE & SPTE_RWX
    assert pfn_of(REMOVED_SPTE) == 0


@both_layouts
@pytest.mark.parametrize(
    ("writable", "host_writable", "rights"),
    [
        (True, True, SPTE_W | MMU_WRITABLE | HOST_WRITABLE),
        (False, True, HOST_WRITABLE),
        (True, False, 0),
        (False, False, 0),
    ],
)
def test_write_rights_never_exceed_the_hosts(
    layout: SpteLayout, writable: bool, host_writable: bool, rights: int
) -> None:
    spte = layout.leaf(7, 1, writable=writable, host_writable=host_writable)
    assert spte & SPTE_R
    assert spte & (SPTE_W | MMU_WRITABLE | HOST_WRITABLE) == rights


@pytest.mark.parametrize("pfn", PFNS)
def test_only_the_high_layout_keeps_the_bit_that_vtd_reserves_clear(pfn: int) -> None:
    assert UPSTREAM.leaf(pfn, 1, writable=True, host_writable=True) & (BIT_11 | BIT_59) == BIT_11
    assert UPSTREAM.table(pfn << 12) & (BIT_11 | BIT_59) == BIT_11
    assert (
        PRESENT_HIGH.leaf(pfn, 1, writable=True, host_writable=True) & (BIT_11 | BIT_59) == BIT_59
    )
    assert PRESENT_HIGH.table(pfn << 12) & (BIT_11 | BIT_59) == BIT_59


@both_layouts
def test_people_can_read_an_spte(layout: SpteLayout) -> None:
    assert describe(REMOVED_SPTE, layout) == "0x5a0 (frozen)"
    assert describe(0, layout) == "0x0 (not present)"
    assert describe(layout.leaf(0x2A, 1, writable=False, host_writable=True), layout).endswith(
        "(r-x frame 0x2a)"
    )
    assert describe(layout.leaf(0x2A, 1, writable=True, host_writable=True), layout).endswith(
        "(rwx frame 0x2a)"
    )
    assert describe(
        layout.leaf(0x200, 2, writable=True, host_writable=True, executable=False), layout
    ).endswith("(rw- huge frame 0x200)")
    assert describe(layout.mmio(7, 42), layout).endswith("(MMIO, generation 42)")
    assert describe(layout.table(0x105000), layout, 2).endswith("(table at 0x105000)")
    assert describe(layout.leaf(0x200, 2, writable=True, host_writable=True), layout, 2).endswith(
        "(rwx huge frame 0x200)"
    )


# Accessed, dirty, executable.


@both_layouts
def test_a_new_leaf_is_young_and_dirty_if_it_can_be_written(layout: SpteLayout) -> None:
    """Hardware must not have to fault for what KVM knows already."""
    writable = layout.leaf(7, 1, writable=True, host_writable=True)
    read_only = layout.leaf(7, 1, writable=False, host_writable=True)
    assert writable & (SPTE_A | SPTE_D) == SPTE_A | SPTE_D
    assert read_only & (SPTE_A | SPTE_D) == SPTE_A
    without = evolve(layout, ad_bits=False)
    assert not without.leaf(7, 1, writable=True, host_writable=True) & (SPTE_A | SPTE_D)


@both_layouts
@pytest.mark.parametrize("level", [1, 2, 3])
def test_only_a_leaf_above_4k_has_the_large_bit(layout: SpteLayout, level: int) -> None:
    assert bool(layout.leaf(0, level, writable=True, host_writable=True) & SPTE_PS) == (level > 1)


@both_layouts
def test_a_leaf_is_executable_unless_told_otherwise(layout: SpteLayout) -> None:
    assert layout.leaf(0, 2, writable=True, host_writable=True) & SPTE_X
    assert not layout.leaf(0, 2, writable=True, host_writable=True, executable=False) & SPTE_X


@both_layouts
def test_accessed_and_dirty_are_bits_where_there_are_such_bits(layout: SpteLayout) -> None:
    leaf = layout.leaf(7, 1, writable=True, host_writable=True)
    assert layout.is_accessed(leaf)
    assert not layout.is_accessed(leaf & ~SPTE_A)
    assert layout.mark_for_access_track(leaf) == leaf & ~SPTE_A
    assert not layout.is_access_tracked(leaf & ~SPTE_RWX), "a leaf that merely has no rights"


@both_layouts
@pytest.mark.parametrize("executable", [True, False])
@pytest.mark.parametrize("writable", [True, False])
def test_without_accessed_bits_an_old_leaf_has_no_rights_and_remembers_them(
    layout: SpteLayout, writable: bool, executable: bool
) -> None:
    layout = evolve(layout, ad_bits=False)
    leaf = layout.leaf(0xABC, 1, writable=writable, host_writable=True, executable=executable)
    assert layout.is_accessed(leaf)
    old = layout.mark_for_access_track(leaf)
    assert not old & SPTE_RWX, "so that the next access faults"
    assert layout.is_access_tracked(old)
    assert not layout.is_accessed(old)
    assert layout.is_leaf(old, 1)
    assert pfn_of(old) == 0xABC
    assert layout.mark_for_access_track(old) == old, "once more does not lose what was saved"
    assert layout.restore_access_track(old) == leaf & ~SPTE_W, (
        "W is given back by the fault that asks for it"
    )


# What others may change at any time.


@both_layouts
@pytest.mark.parametrize(
    ("clear", "volatile"),
    [
        (0, False),
        (SPTE_W, True),
        (SPTE_W | MMU_WRITABLE, False),
        (SPTE_A, True),
        (SPTE_D, True),
        (SPTE_D | SPTE_W | MMU_WRITABLE, False),
        (SPTE_A | SPTE_W | MMU_WRITABLE, True),
    ],
)
@pytest.mark.parametrize("level", [1, 2])
def test_volatile_is_what_hardware_or_the_lockless_path_can_still_set(
    layout: SpteLayout, level: int, clear: int, volatile: bool
) -> None:
    leaf = layout.leaf(0, level, writable=True, host_writable=True) & ~clear
    assert layout.has_volatile_bits(leaf, level) == volatile


@both_layouts
def test_without_accessed_bits_only_the_lockless_path_changes_leaves(layout: SpteLayout) -> None:
    layout = evolve(layout, ad_bits=False)
    leaf = layout.leaf(0, 1, writable=True, host_writable=True)
    assert not layout.has_volatile_bits(leaf, 1)
    assert layout.has_volatile_bits(leaf & ~SPTE_W, 1)
    read_only = layout.leaf(0, 1, writable=False, host_writable=False)
    assert not layout.has_volatile_bits(read_only, 1)
    assert layout.has_volatile_bits(layout.mark_for_access_track(read_only), 1)


@both_layouts
def test_what_is_no_leaf_is_not_volatile(layout: SpteLayout) -> None:
    for word, level in (
        (0, 1),
        (REMOVED_SPTE, 1),
        (layout.mmio(3, 1), 1),
        (layout.table(0x5000), 2),
        (layout.table(0x5000) | MMU_WRITABLE, 3),
    ):
        assert not layout.has_volatile_bits(word, level)


# MMIO.


@both_layouts
@pytest.mark.parametrize(
    "generation", [0, 1, 2, 0x155, 0x2AAAA, (1 << 18) - 1, 1 << 18, (1 << MMIO_GEN_BITS) - 1]
)
@pytest.mark.parametrize("gfn", [0, 1, 0xABCDE, (1 << 40) - 1])
def test_an_mmio_spte_keeps_its_gfn_and_generation(
    layout: SpteLayout, gfn: int, generation: int
) -> None:
    spte = layout.mmio(gfn, generation)
    assert layout.mmio_generation(spte) == generation
    assert pfn_of(spte) == gfn
    assert spte & SPTE_MMIO


@both_layouts
def test_a_generation_is_kept_modulo_its_bits(layout: SpteLayout) -> None:
    assert sum(width for _, width in layout.gen_fields) == MMIO_GEN_BITS == 19
    assert layout.mmio(5, (1 << 19) + 6) == layout.mmio(5, 6)


@both_layouts
@pytest.mark.parametrize("generation", [0, (1 << MMIO_GEN_BITS) - 1])
def test_an_mmio_spte_is_nothing_to_kvm_and_to_the_hardware(
    layout: SpteLayout, generation: int
) -> None:
    spte = layout.mmio(0xABCDE, generation)
    assert not layout.is_present(spte), "no piece of the generation may reach the present bit"
    assert not layout.is_leaf(spte, 1)
    assert not layout.is_table(spte, 2)
    assert not spte & SPTE_RWX
    assert layout.mmio(0xABCDE, generation, MISCONFIG) == spte | SPTE_W | SPTE_X


def test_the_pieces_of_the_generation_are_where_the_series_puts_them() -> None:
    """Patch 24: 8 + 11 bits upstream; 9 + 7 + 3 once bit 59 says "present"."""
    ones = (1 << MMIO_GEN_BITS) - 1

    def bits(first: int, last: int) -> int:
        return (1 << last + 1) - (1 << first)

    assert UPSTREAM.mmio(0, ones) == SPTE_MMIO | bits(3, 10) | bits(52, 62)
    assert PRESENT_HIGH.mmio(0, ones) == SPTE_MMIO | bits(3, 11) | bits(52, 58) | bits(60, 62)


@both_layouts
def test_ordinary_words_are_not_taken_for_mmio(layout: SpteLayout) -> None:
    for word in (
        0,
        REMOVED_SPTE,
        layout.table(0x5000),
        layout.leaf((1 << 40) - 1, 3, writable=True, host_writable=True),
    ):
        assert not word & SPTE_MMIO
