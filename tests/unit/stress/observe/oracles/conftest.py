"""Machines that every oracle watches."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from mmu.paging.geometry import Geometry
from mmu.report import Report
from mmu.variant import Variant
from stress.observe.oracles import attach_all
from stress.scenario.types import Limits
from tests.model import SMALL, Machine
from tests.unit.conftest import MakeMachine


class Watch(Protocol):
    """The fixture `watch`: a machine under every oracle, closed after the test."""

    def __call__(
        self, *variants: Variant, limits: Limits = ..., geometry: Geometry = ..., **config: Any
    ) -> Machine: ...


@pytest.fixture
def watch(make_machine: MakeMachine) -> Watch:
    """Make a machine that all oracles observe; what they report has to be expected."""

    def make(
        *variants: Variant, limits: Limits | None = None, geometry: Geometry = SMALL, **config: Any
    ) -> Machine:
        machine = make_machine(geometry, variants, **config)
        attach_all(machine.vm, limits or Limits())
        return machine

    return make


def reported(machine: Machine, code: str) -> Report:
    """The one report of the check `code`."""
    (report,) = [report for report in machine.reporter.reports if report.code == code]
    return report
