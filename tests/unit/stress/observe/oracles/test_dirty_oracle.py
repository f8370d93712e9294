"""O8: a page that was written and is in neither of the next two logs is reported; one that is only
late is not."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from mmu.candidates import CANDIDATES
from mmu.export.device import Dma
from mmu.machine.vcpu import Vcpu
from mmu.memory.host import tag_of
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, MemoryRegion, Memslot
from mmu.paging.table import RootPage
from mmu.posted import POSTED
from mmu.task import current
from mmu.tdp.dirty import DirtyLog
from mmu.variant import Variant
from tests.conftest import blocked, evidence, finish
from tests.model import Machine, w
from tests.patience import PATIENCE
from tests.unit.stress.observe.oracles.conftest import Watch, reported

DEVICES_FORGOTTEN = POSTED["r19-device-writes-not-logged"]
PML = {"ad_bits": True, "pml": True}
NO_PML = {"ad_bits": True, "pml": False}
NO_AD = {"ad_bits": False, "pml": False}
every_way = pytest.mark.parametrize(
    "how", [PML, NO_PML, NO_AD], ids=["D bits and PML", "write protection", "no D bits"]
)


class ForgetsToProtect(DirtyLog):
    """The log is read and what was in it is not protected again: the next write leaves no trace."""

    def clear_dirty_pt_masked(self, root: RootPage, slot: Memslot, pages: set[int]) -> None:
        pass


UNPROTECTED = Variant(
    "unprotected", "pages of the log are not protected again", (ForgetsToProtect,)
)


class Gate:
    """A place in the code where a thread can be held: open at first."""

    def __init__(self) -> None:
        self._there, self._open = threading.Event(), threading.Event()
        self._open.set()

    def pass_through(self) -> None:
        self._there.set()
        assert self._open.wait(PATIENCE)

    def close(self) -> None:
        self._open.clear()
        self._there.clear()

    def reached(self, _: object = None) -> bool:
        return self._there.is_set()

    def open(self) -> None:
        self._open.set()


def logging(machine: Machine, gfn: int = 8) -> Vcpu:
    """Slot 0 at `gfn`, 16 pages, logged from now on; the vCPU has written its page 3 before."""
    machine.add_slot(gfn, 16)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(gfn + 3))
    machine.log_dirty_pages()
    return vcpu


# Lost.


def test_a_device_write_that_no_log_shows_is_reported_after_the_second(watch: Watch) -> None:
    machine = watch(DEVICES_FORGOTTEN)
    machine.add_slot(8, 16)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(11, write=True)
    machine.log_dirty_pages()
    assert device.transact(11, write=True) is Dma.DONE
    assert machine.vm.get_dirty_log(0) == set()
    machine.expect()
    assert machine.vm.get_dirty_log(0) == set()
    machine.expect("O8 dirty-page-lost")
    report = reported(machine, "dirty-page-lost")
    assert report.gfn == 11
    assert evidence(report, "pages lost") == "0xb"
    assert (
        "1 page of memslot 0 (as0, gfns 0x8..0x17) was written and is in neither" in report.headline
    )


@every_way
def test_a_vcpu_write_to_a_page_that_was_not_protected_again_is_reported(
    watch: Watch, how: dict[str, bool]
) -> None:
    machine = watch(UNPROTECTED, **how)
    vcpu = logging(machine)
    machine.run(vcpu, w(11), w(12))
    assert machine.vm.get_dirty_log(0) == {3, 4}
    machine.run(vcpu, w(11), w(12))
    assert [machine.vm.get_dirty_log(0) for _ in range(2)] == [set(), set()]
    machine.expect("O8 dirty-page-lost")
    assert evidence(reported(machine, "dirty-page-lost"), "pages lost") == "0xb, 0xc"


def test_a_log_that_is_cleared_by_hand_is_judged_when_it_is_cleared(watch: Watch) -> None:
    machine = watch(UNPROTECTED, manual_protect=True)
    vcpu = logging(machine)
    for expected in ({3}, set(), set()):
        machine.run(vcpu, w(11))
        assert machine.vm.get_dirty_log(0) == expected
        machine.expect()
        machine.vm.clear_dirty_log(0, expected)
    machine.expect("O8 dirty-page-lost")


def test_what_a_pml_buffer_loses_is_reported_once_nobody_has_it(watch: Watch) -> None:
    class Forgetful(Vcpu):
        def flush_pml_buffer(self) -> None:
            self.pml.clear()

    machine = watch(Variant("forgetful", "forgets its PML buffer", (Forgetful,)))
    vcpu = logging(machine)
    machine.run(vcpu, w(11))
    assert [machine.vm.get_dirty_log(0) for _ in range(2)] == [set(), set()]
    machine.expect("O8 dirty-page-lost")


def test_each_address_space_has_its_own_log(watch: Watch) -> None:
    machine = watch(UNPROTECTED)
    for as_id in (0, 1):
        machine.add_slot(8, 16, as_id=as_id)
        machine.log_dirty_pages(as_id=as_id)
    vcpu = machine.vcpu()
    for smm in (True, False):
        vcpu.set_smm(smm)
        machine.run(vcpu, w(11))
    assert [machine.vm.get_dirty_log(0, as_id) for as_id in (0, 1)] == [{3}, {3}]
    vcpu.set_smm(True)
    machine.run(vcpu, w(11))
    assert [machine.vm.get_dirty_log(0, 0) for _ in range(3)] == [set()] * 3
    machine.expect()
    assert [machine.vm.get_dirty_log(0, 1) for _ in range(2)] == [set()] * 2
    machine.expect("O8 dirty-page-lost")
    assert "memslot 0 (as1" in reported(machine, "dirty-page-lost").headline


# Not lost.


@every_way
def test_what_the_log_shows_is_not_lost(watch: Watch, how: dict[str, bool]) -> None:
    machine = watch(**how)
    vcpu = logging(machine)
    for pages in ({3, 4}, {4}, set(), {5}):
        machine.run(vcpu, *[w(8 + page) for page in pages], 11)
        assert machine.vm.get_dirty_log(0) == pages
    machine.assert_sound()


def test_a_device_write_that_faults_is_in_the_log(watch: Watch) -> None:
    machine = watch()
    machine.add_slot(8, 16)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(11, write=True)
    machine.log_dirty_pages()
    assert device.transact(11, write=True) is None
    assert hwpt.io_fault(11, write=True)
    assert device.transact(11, write=True) is Dma.DONE
    assert [machine.vm.get_dirty_log(0) for _ in range(3)] == [{3}, set(), set()]


def test_what_was_written_before_logging_went_on_is_not_owed(watch: Watch) -> None:
    machine = watch(UNPROTECTED)
    vcpu = logging(machine)
    machine.run(vcpu, w(11))
    assert machine.vm.get_dirty_log(0) == {3}
    machine.run(vcpu, w(11))
    machine.set_flags(0)
    machine.log_dirty_pages()
    assert [machine.vm.get_dirty_log(0) for _ in range(3)] == [set()] * 3


def test_what_is_written_while_logging_is_off_is_not_owed(watch: Watch) -> None:
    machine = watch()
    vcpu = logging(machine)
    machine.set_flags(0)
    machine.run(vcpu, w(11), w(13))
    machine.log_dirty_pages()
    assert [machine.vm.get_dirty_log(0) for _ in range(3)] == [set()] * 3


def test_a_page_that_was_written_while_the_log_was_read_may_be_in_the_next(watch: Watch) -> None:
    machine = watch()
    vcpu = logging(machine)
    machine.run(vcpu, w(11))

    def writes() -> None:
        machine.run(vcpu, w(13))

    machine.at("P12", lambda: finish(machine.runtime, machine.runtime.spawn("writer", writes)))
    assert [machine.vm.get_dirty_log(0) for _ in range(3)] == [{3}, {5}, set()]


def slow_to_log(gate: Gate) -> Variant:
    """vCPUs stand still with what hardware has logged."""

    class SlowToLog(Vcpu):
        def flush_pml_buffer(self) -> None:
            gate.pass_through()
            super().flush_pml_buffer()

    return Variant("slow-to-log", "stands still with a full PML buffer", (SlowToLog,))


def held_back(machine: Machine, vcpu: Vcpu, gate: Gate) -> Callable[[], None]:
    """A vCPU that has written page 3 is held at `gate`; the result lets it go on and waits for its
    end."""

    def writes() -> None:
        machine.run(vcpu, w(11))

    task = blocked(machine.runtime, writes, at=gate.reached)

    def release() -> None:
        gate.open()
        finish(machine.runtime, task)

    return release


def test_a_write_that_is_still_in_a_pml_buffer_is_not_lost_however_long(watch: Watch) -> None:
    gate = Gate()
    machine = watch(slow_to_log(gate))
    vcpu = logging(machine)
    gate.close()
    release = held_back(machine, vcpu, gate)
    assert [machine.vm.get_dirty_log(0) for _ in range(4)] == [set()] * 4
    machine.expect()
    release()
    assert machine.vm.get_dirty_log(0) == {3}


def test_a_pml_buffer_that_was_flushed_after_the_log_was_copied_is_not_lost(watch: Watch) -> None:
    """The buffer is empty when the oracle looks, and the bitmap has the page, which the next log
    shows. So it is on kernels, which do not wait for the buffer."""
    gate = Gate()
    machine = watch(slow_to_log(gate), CANDIDATES["pml-flushed-after-exit"])
    vcpu = logging(machine)
    gate.close()
    release = held_back(machine, vcpu, gate)
    machine.slot().mark_dirty(9)
    assert machine.vm.get_dirty_log(0) == {1}
    machine.slot().mark_dirty(9)
    machine.at("P12", release)
    assert [machine.vm.get_dirty_log(0) for _ in range(3)] == [{1}, {3}, set()]


def test_a_write_through_an_entry_that_is_just_being_fixed_is_not_lost(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without D bits: one vCPU has made the entry writable and not yet marked the page, another one
    writes through it."""
    gate = Gate()
    mark_dirty = Memslot.mark_dirty

    def slowly(slot: Memslot, gfn: int) -> None:
        if current.task.name == "writes":
            gate.pass_through()
        mark_dirty(slot, gfn)

    machine = watch(**NO_AD)
    first, second = logging(machine), machine.vcpu()
    gate.close()
    monkeypatch.setattr(Memslot, "mark_dirty", slowly)
    release = held_back(machine, first, gate)
    machine.run(second, w(11))
    assert second.stat.pf_taken == 0
    assert [machine.vm.get_dirty_log(0) for _ in range(3)] == [set()] * 3
    machine.expect()
    release()
    assert machine.vm.get_dirty_log(0) == {3}


def test_a_page_that_was_taken_away_is_owed_by_nobody(watch: Watch) -> None:
    machine = watch(UNPROTECTED)
    vcpu = logging(machine)
    machine.run(vcpu, w(11))
    assert machine.vm.get_dirty_log(0) == {3}
    machine.run(vcpu, w(11))
    machine.discard(machine.regions[0, 0], 3, 4)
    assert [machine.vm.get_dirty_log(0) for _ in range(3)] == [set()] * 3


def test_a_slot_that_comes_back_logging_owes_nothing_of_the_one_before(watch: Watch) -> None:
    machine = watch()
    vcpu = logging(machine)
    machine.run(vcpu, w(11))

    def writes() -> None:
        machine.run(vcpu, w(13))

    machine.at("P12", lambda: finish(machine.runtime, machine.runtime.spawn("writer", writes)))
    assert machine.vm.get_dirty_log(0) == {3}, "page 5 is for the next log"
    machine.delete_slot()
    region = machine.vm.host.mmap(16)
    machine.vm.host.assign(region, tag_of(0, 8))
    machine.vm.set_user_memory_region(MemoryRegion(0, 8, 16, region, KVM_MEM_LOG_DIRTY_PAGES))
    machine.regions[0, 0] = region
    assert [machine.vm.get_dirty_log(0) for _ in range(2)] == [set()] * 2
    false_alarms = machine.news()
    assert false_alarms == set()
