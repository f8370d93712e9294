"""Machines for the unit tests: one to use as it is, and a maker for those with options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest

from mmu.paging.geometry import Geometry
from mmu.variant import Variant
from tests.model import SMALL, Machine, machine_of


class MakeMachine(Protocol):
    """The fixture `make_machine`: machines that are closed after the test."""

    def __call__(self, geometry: Geometry = SMALL, variants: Iterable[Variant] = (), **config: Any) -> Machine: ...


@pytest.fixture
def make_machine() -> Iterator[MakeMachine]:
    """Make a machine with options; afterwards it is taken down and must have reported nothing unexpected."""
    with ExitStack() as machines:
        yield lambda geometry=SMALL, variants=(), **config: machines.enter_context(machine_of(geometry, variants, **config))


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    """A small machine: three levels of four entries."""
    return make_machine()
