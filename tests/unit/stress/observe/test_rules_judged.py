"""Oracles say how often they had something to decide: nothing where nothing happened, and each
event once."""

from __future__ import annotations

from mmu.numbers.oracles import RULES
from stress.observe.oracles import ORACLES, attach_all
from stress.observe.oracles.base import Oracle
from stress.scenario.types import Limits
from tests.model import Machine, w


def watched(machine: Machine) -> list[Oracle]:
    return attach_all(machine.vm, Limits())


def judged(oracles: list[Oracle]) -> dict[str, int]:
    sums = dict.fromkeys(RULES, 0)
    for oracle in oracles:
        for rule, counter in oracle.judged.items():
            sums[rule] += counter.value
    return {rule: count for rule, count in sums.items() if count}


def test_an_oracle_counts_for_its_own_rules(machine: Machine) -> None:
    assert [set(oracle.judged) for oracle in watched(machine)] == [
        set(kind.rules) for kind in ORACLES
    ]


def test_where_nothing_happened_nothing_was_judged(machine: Machine) -> None:
    assert judged(watched(machine)) == {}


def test_a_delete_under_a_device_is_judged_by_everybody_concerned(machine: Machine) -> None:
    machine.add_slot(0, 4)
    device, hwpt = machine.attach(machine.export())
    oracles = watched(machine)
    assert hwpt.io_fault(1, True)
    assert device.transact(1, True) is not None
    assert judged(oracles) == {"O16": 1}, "the answer"
    machine.delete_slot()
    found = judged(oracles)
    assert found["O1"] == 2, "the zap owed vCPUs a flush, and the device's caches were looked at"
    assert found["O16"] == 1 + 2, "the call of the importer, and the notification that was owed"
    assert found["O6"] == 1, "one root was searched"
    assert found["O15"] == 1
    assert found["O10"] >= 1
    assert "O12" not in found, "no root was invalidated"


def test_guest_entries_count_while_a_root_is_obsolete(machine: Machine) -> None:
    machine.add_slot(0, 4)
    vcpu, other = machine.vcpu(), machine.vcpu()
    machine.run(vcpu, w(0))
    oracles = watched(machine)
    machine.add_slot(8, 4, slot=1)
    machine.delete_slot(1)
    assert judged(oracles)["O12"] == 1, "the invalidation; nobody has entered yet"
    machine.run(vcpu, w(1))
    assert judged(oracles)["O12"] > 1, "the other vCPU still holds the old root"
    machine.run(other, w(1))
    before = judged(oracles)["O12"]
    machine.run(vcpu, w(2))
    assert judged(oracles)["O12"] == before, "nobody holds it any more"


def test_a_dirty_log_is_judged_when_it_is_read(machine: Machine) -> None:
    machine.add_slot(0, 4)
    oracles = watched(machine)
    machine.log_dirty_pages()
    assert "O8" not in judged(oracles)
    machine.vm.get_dirty_log(0)
    assert judged(oracles)["O8"] == 1
