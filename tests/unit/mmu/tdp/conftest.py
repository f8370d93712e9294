"""A root with a few leaves, for the tests of zapping."""

from __future__ import annotations

import pytest

from mmu.tdp.roots import RootPage
from tests.model import Machine


@pytest.fixture
def root(machine: Machine) -> RootPage:
    """A root with leaves at gfns 1, 2, 21 and 63."""
    root = machine.root()
    machine.plant(root, 1, 2, 21, 63)
    return root
