"""Geometry: the arithmetic on guest frame numbers agrees with itself at every shape, and bad shapes
are refused."""

from __future__ import annotations

import pytest
from attrs.exceptions import FrozenInstanceError

from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Geometry
from tests.model import round_down

SHAPES = [Geometry(), Geometry(5, 512), Geometry(3, 4), Geometry(1, 2), Geometry(2, 16)]


def sample(geometry: Geometry) -> list[int]:
    """Gfns at and around every boundary of the shape."""
    edges = {0, geometry.max_gfn} | {
        geometry.pages(level) for level in range(1, geometry.levels + 1)
    }
    return sorted(
        {
            gfn
            for edge in edges
            for gfn in (edge - 1, edge, edge + 1)
            if 0 <= gfn <= geometry.max_gfn
        }
    )


def test_the_default_is_what_the_hardware_has() -> None:
    real = Geometry()
    assert (real.levels, real.entries, real.bits, real.mask) == (4, 512, 9, 511)
    assert real.max_gfn == (1 << 36) - 1
    assert [real.pages(level) for level in (PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G)] == [
        1,
        512,
        512 * 512,
    ]


@pytest.mark.parametrize("geometry", SHAPES, ids=str)
def test_the_indices_of_a_gfn_are_its_digits(geometry: Geometry) -> None:
    levels = range(1, geometry.levels + 1)
    for gfn in sample(geometry):
        assert sum(geometry.index(gfn, level) * geometry.pages(level) for level in levels) == gfn


@pytest.mark.parametrize("geometry", SHAPES, ids=str)
def test_rounding_down_gives_the_first_gfn_of_the_same_entry(geometry: Geometry) -> None:
    for level in range(1, geometry.levels + 1):
        for gfn in sample(geometry):
            first = round_down(geometry, gfn, level)
            assert first % geometry.pages(level) == 0
            assert first <= gfn < first + geometry.pages(level)
            assert geometry.index(first, level) == geometry.index(gfn, level)


@pytest.mark.parametrize("geometry", SHAPES, ids=str)
def test_the_root_table_maps_everything_exactly_once(geometry: Geometry) -> None:
    assert geometry.pages(geometry.levels) * geometry.entries == geometry.max_gfn + 1
    assert geometry.index(geometry.max_gfn, geometry.levels) == geometry.entries - 1


@pytest.mark.parametrize("geometry", SHAPES, ids=str)
def test_shifts_lists_the_shift_of_every_level(geometry: Geometry) -> None:
    assert geometry.shifts()[1:] == tuple(
        geometry.shift(level) for level in range(1, geometry.levels + 1)
    )
    assert len(geometry.shifts()) == geometry.levels + 1


@pytest.mark.parametrize("levels", [0, -1, 6])
def test_a_number_of_levels_that_no_cpu_has_is_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"levels must be 1 to 5, not {levels}"):
        Geometry(levels=levels)


@pytest.mark.parametrize("entries", [0, 1, 3, 6, 511, -4])
def test_a_table_size_that_is_no_power_of_two_is_refused(entries: int) -> None:
    with pytest.raises(
        ValueError, match=f"entries must be a power of two from 2 on, not {entries}"
    ):
        Geometry(entries=entries)


def test_a_geometry_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Geometry().levels = 5  # type: ignore[misc]
