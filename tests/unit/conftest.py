"""Machines for the unit tests: one to use as it is, and a maker for those with options."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any, Protocol

import pytest

from mmu.paging.geometry import Geometry
from mmu.variant import Variant
from tests.conftest import forget_held_locks
from tests.model import SMALL, Machine

FAILED = pytest.StashKey[bool]()


class MakeMachine(Protocol):
    """The fixture `make_machine`: machines that are closed after the test."""

    def __call__(
        self, geometry: Geometry = SMALL, variants: Iterable[Variant] = (), **config: Any
    ) -> Machine: ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember a failure, so that its error is the only one: a machine that stopped half-way cannot
    be taken down."""
    report = yield
    if call.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture
def make_machine(request: pytest.FixtureRequest) -> Iterator[MakeMachine]:
    """Make a machine with options; afterwards it is taken down and must have reported nothing
    unexpected."""
    made: list[Machine] = []

    def make(
        geometry: Geometry = SMALL, variants: Iterable[Variant] = (), **config: Any
    ) -> Machine:
        made.append(Machine(geometry, variants, **config))
        return made[-1]

    forget_held_locks()
    yield make
    forget_held_locks()
    for machine in made:
        if request.node.stash.get(FAILED, False):
            machine.kvm.rcu.shutdown()
        else:
            machine.close()


@pytest.fixture
def huge(make_machine: MakeMachine) -> Machine:
    """A small machine whose host has huge pages: eight of "2M" (4 frames) and two of "1G" (16
    frames)."""
    return make_machine(huge_2m=8, huge_1g=2)


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    """A small machine: three levels of four entries."""
    return make_machine()
