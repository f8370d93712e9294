"""O16: a page request group is answered as its faults were."""

from __future__ import annotations

import pytest

from mmu.export.iommu import KvmHwpt, PageRequest
from mmu.variant import Variant
from tests.model import Machine
from tests.unit.stress.observe.oracles.conftest import Watch, reported

GOOD, BAD = (1, True), (40, True)


class LastDecides(KvmHwpt):
    """The answer to the last fault is the group's."""

    def io_fault_group(self, group: list[tuple[int, bool]]) -> bool:
        return [self.io_fault(gfn, write) for gfn, write in group][-1]


class FirstIsEnough(KvmHwpt):
    """What follows the first fault is not handled."""

    def io_fault_group(self, group: list[tuple[int, bool]]) -> bool:
        return self.io_fault(*group[0])


class Refuses(KvmHwpt):
    """Nothing is good enough."""

    def handle(self, request: PageRequest) -> None:
        self.io_fault_group(request.faults)
        self.respond(request, ok=False)


def answered(watch: Watch, part: type | None, *faults: tuple[int, bool]) -> Machine:
    """A machine in which a group of faults was answered."""
    machine = watch(*([Variant("test", "for this test", (part,))] if part else []))
    machine.add_slot(0, 8)
    _, hwpt = machine.attach(machine.export())
    hwpt.handle(hwpt.request(list(faults)))
    return machine


@pytest.mark.parametrize("faults", [(GOOD,), (GOOD, GOOD), (BAD, GOOD), (GOOD, BAD), ()])
def test_a_group_that_is_answered_as_its_faults_were(
    watch: Watch, faults: tuple[tuple[int, bool], ...]
) -> None:
    answered(watch, None, *faults).assert_sound()


@pytest.mark.parametrize(
    ("part", "faults", "says"),
    [
        (LastDecides, (BAD, GOOD), "group of 2 is answered SUCCESS, and 1 of its faults"),
        (FirstIsEnough, (GOOD, GOOD), "group of 2 is answered SUCCESS, and 1 of its faults"),
        (Refuses, (GOOD, GOOD), "group of 2 is answered FAILURE, and 2 of its faults"),
    ],
)
def test_a_group_that_is_answered_otherwise(
    watch: Watch, part: type, faults: tuple[tuple[int, bool], ...], says: str
) -> None:
    machine = answered(watch, part, *faults)
    assert says in reported(machine, "group-answer").headline
    machine.expect("O16 group-answer")


def test_each_group_is_judged_by_itself(watch: Watch) -> None:
    machine = answered(watch, None, BAD)
    machine.assert_sound()
    (hwpt,) = machine._hwpts
    hwpt.handle(hwpt.request([GOOD]))
    machine.assert_sound()
