"""O13 and R18: an MMIO SPTE is honoured only where no slot is, and to a device it is nothing."""

from __future__ import annotations

from collections.abc import Callable

from mmu.export.device import Dma
from mmu.machine.vcpu import Exit
from mmu.posted import POSTED
from mmu.tdp.fault import RetPf
from tests.conftest import evidence
from tests.model import Machine, w
from tests.patience import PATIENCE
from tests.unit.stress.observe.oracles.conftest import Watch, reported

SURVIVE = POSTED["r9-mmio-sptes-survive"]
WALKED = POSTED["r18-mmio-spte-walked"]


def generation(machine: Machine) -> int:
    return machine.vm.memslots.peek(0).generation.value


def go_round(machine: Machine) -> None:
    """Change flags until the generation that MMIO SPTEs keep (three bits) is what it was."""
    flags, goal = 1, generation(machine) + 8
    while generation(machine) < goal:
        machine.set_flags(flags)
        flags ^= 1


def aged(machine: Machine) -> Callable[[], Exit]:
    """gfn 40 had no slot when a vCPU touched it, and has one now that the generation has come round
    in the exported root; the result touches it again."""
    machine.add_slot(0, 16)
    machine.export()
    vcpu = machine.vcpu()
    assert machine.run(vcpu, 40) is Exit.MMIO
    made = generation(machine)
    machine.add_slot(32, 16, slot=1)
    while generation(machine) != made + 8:
        machine.set_flags(machine.slot().flags ^ 1)
    return lambda: machine.run(vcpu, w(40))


def test_an_ancient_mmio_spte_over_a_slot_is_reported_when_it_is_honoured(watch: Watch) -> None:
    machine = watch(SURVIVE, mmio_gen_bits=3)
    touch = aged(machine)
    machine.expect()
    assert touch() is Exit.MMIO
    machine.expect("O13 stale-mmio-honoured")
    report = reported(machine, "stale-mmio-honoured")
    assert report.gfn == 40
    assert "vcpu0 emulates an access to gfn 0x28 as MMIO" in report.headline
    assert "memslot 1 (as0, gfns 0x20..0x2f) covers it" in report.headline
    assert "MMIO, generation 2" in evidence(report, "SPTE")


def test_the_mended_wrap_leaves_none(watch: Watch) -> None:
    machine = watch(mmio_gen_bits=3)
    assert aged(machine)() is Exit.INTR
    machine.assert_sound()


def test_an_mmio_spte_where_still_no_slot_is_may_be_as_old_as_it_likes(watch: Watch) -> None:
    machine = watch(SURVIVE, mmio_gen_bits=3)
    machine.add_slot(0, 16)
    machine.export()
    vcpu = machine.vcpu()
    machine.run(vcpu, 40)
    go_round(machine)
    assert machine.run(vcpu, 40) is Exit.MMIO
    assert vcpu.stat.pf_mmio == 1, "it was honoured"


def test_a_slot_of_the_other_address_space_is_no_slot_here(watch: Watch) -> None:
    machine = watch()
    machine.add_slot(0, 16)
    machine.add_slot(32, 16, as_id=1)
    vcpu = machine.vcpu()
    assert [machine.run(vcpu, 40) for _ in range(2)] == [Exit.MMIO] * 2
    assert vcpu.stat.pf_mmio == 1


def test_while_a_slot_is_invalid_what_lies_beside_it_is_honoured_and_what_lies_in_it_waits(
    watch: Watch,
) -> None:
    machine = watch()
    machine.add_slot(0, 16)
    machine.add_slot(32, 4, slot=1)
    vcpu = machine.vcpu()
    seen: list[object] = []

    def look() -> None:
        assert machine.slot(1).invalid
        seen.extend(machine.run(vcpu, 40) for _ in range(2))
        seen.append(machine.fault(vcpu, 33))

    def in_a_thread(name: str) -> None:
        if name == "P14" and not seen:
            task = machine.runtime.spawn("guest", look)
            assert machine.runtime.join(task, PATIENCE)
            assert task.error is None, task.error

    machine.on(point=in_a_thread)
    machine.delete_slot(1)
    assert seen == [Exit.MMIO, Exit.MMIO, RetPf.RETRY]
    assert vcpu.stat.pf_mmio == 1, "it was honoured"


def test_a_device_that_walks_an_mmio_spte_is_reported(watch: Watch) -> None:
    machine = watch(WALKED)
    machine.add_slot(0, 16)
    device, _ = machine.attach(machine.export())
    machine.run(machine.vcpu(), 40)
    assert device.transact(40, write=False) is None, "no R"
    machine.expect()
    assert device.transact(40, write=True) is Dma.WRONG
    machine.expect("O6 mmio-spte-walked")
    report = reported(machine, "mmio-spte-walked")
    assert report.gfn == 40
    assert report.subject == "device"
    assert "device0 used gfn 0x28 -> frame 0x28 for a write" in evidence(report, "translation")
    assert "MMIO, generation" in evidence(report, "translation")
    machine.wrong.clear()


def test_a_vcpu_only_finds_the_mark(watch: Watch) -> None:
    machine = watch(WALKED)
    machine.add_slot(0, 16)
    vcpu = machine.vcpu()
    assert [machine.run(vcpu, w(40)) for _ in range(3)] == [Exit.MMIO] * 3
    assert vcpu.stat.pf_mmio == 2


def test_an_mmio_spte_without_rights_is_nothing_to_a_device(watch: Watch) -> None:
    machine = watch()
    machine.add_slot(0, 16)
    device, hwpt = machine.attach(machine.export())
    machine.run(machine.vcpu(), 40)
    assert device.transact(40, write=True) is None
    assert not hwpt.io_fault(40, write=True)
