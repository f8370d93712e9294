"""Shadow pages: a FIFO of generations."""

from __future__ import annotations

import pytest

from mmu.paging.shadow import ShadowPages
from mmu.runtime import Runtime


@pytest.fixture
def pages() -> ShadowPages:
    """What is tested."""
    return ShadowPages(Runtime())


def test_pages_are_made_until_there_are_as_many_as_wanted(pages: ShadowPages) -> None:
    assert pages.fill(3, 0) == 3
    assert pages.fill(5, 0) == 2
    assert pages.fill(4, 0) == 0
    assert pages.count() == 5


def test_only_pages_of_the_generation_count_for_it(pages: ShadowPages) -> None:
    pages.fill(3, 0)
    assert pages.fill(3, 1) == 3
    assert pages.count() == 6


def test_the_oldest_page_tells_whether_there_are_obsolete_ones(pages: ShadowPages) -> None:
    assert not pages.is_oldest_obsolete(0)
    pages.fill(1, 0)
    pages.fill(1, 1)
    assert pages.is_oldest_obsolete(1)
    pages.zap_oldest()
    assert not pages.is_oldest_obsolete(1)
    assert pages.count() == 1
