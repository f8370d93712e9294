"""SPTEs: the two layouts say the same of every kind of entry, rights follow the host, and the frozen value is nothing."""

from __future__ import annotations

import pytest

from mmu.paging.spte import (
    HOST_WRITABLE,
    MMU_WRITABLE,
    PRESENT_HIGH,
    REMOVED_SPTE,
    SPTE_R,
    SPTE_RWX,
    SPTE_W,
    UPSTREAM,
    SpteLayout,
    describe,
    pfn_of,
)

BIT_11, BIT_59 = 1 << 11, 1 << 59
PFNS = [0, 1, 0xABCDE, (1 << 40) - 1]
both_layouts = pytest.mark.parametrize("layout", [UPSTREAM, PRESENT_HIGH], ids=["upstream", "present-high"])


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
def test_a_table_entry_is_a_table_and_keeps_its_address(layout: SpteLayout, pfn: int, level: int) -> None:
    spte = layout.table(pfn << 12)
    assert layout.is_table(spte, level)
    assert not layout.is_leaf(spte, level)
    assert pfn_of(spte) == pfn
    assert spte & SPTE_RWX == SPTE_RWX, "rights are taken away in leaves, not on the way to them"


@both_layouts
@pytest.mark.parametrize("empty", [0, REMOVED_SPTE])
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_zero_and_frozen_are_neither_present_nor_anything(layout: SpteLayout, empty: int, level: int) -> None:
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
def test_write_rights_never_exceed_the_hosts(layout: SpteLayout, writable: bool, host_writable: bool, rights: int) -> None:
    spte = layout.leaf(7, 1, writable=writable, host_writable=host_writable)
    assert spte & SPTE_R
    assert spte & (SPTE_W | MMU_WRITABLE | HOST_WRITABLE) == rights


@pytest.mark.parametrize("pfn", PFNS)
def test_only_the_high_layout_keeps_the_bit_that_vtd_reserves_clear(pfn: int) -> None:
    assert UPSTREAM.leaf(pfn, 1, writable=True, host_writable=True) & (BIT_11 | BIT_59) == BIT_11
    assert UPSTREAM.table(pfn << 12) & (BIT_11 | BIT_59) == BIT_11
    assert PRESENT_HIGH.leaf(pfn, 1, writable=True, host_writable=True) & (BIT_11 | BIT_59) == BIT_59
    assert PRESENT_HIGH.table(pfn << 12) & (BIT_11 | BIT_59) == BIT_59


@both_layouts
def test_people_can_read_an_spte(layout: SpteLayout) -> None:
    assert describe(REMOVED_SPTE, layout) == "0x5a0 (frozen)"
    assert describe(0, layout) == "0x0 (none)"
    assert describe(layout.leaf(0x2A, 1, writable=False, host_writable=True), layout).endswith("(r-x frame 0x2a)")
    assert describe(layout.leaf(0x2A, 1, writable=True, host_writable=True), layout).endswith("(rwx frame 0x2a)")
