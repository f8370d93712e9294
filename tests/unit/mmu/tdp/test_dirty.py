"""Dirty logging: every page that is written is in the log or will fault, be logged by hardware, or
is in a buffer (I15)."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from mmu.errors import KvmError
from mmu.export.device import Dma
from mmu.machine.vcpu import Vcpu
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, MemoryRegion
from mmu.memory.requests import KVM_REQ_TLB_FLUSH
from mmu.paging.spte import SPTE_D, SPTE_W
from mmu.tdp.fault import RetPf
from tests.conftest import blocked, finish, reading, srcu_section, together, writing
from tests.model import Machine, ParkedGuest, w
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine

Logged = Callable[..., tuple[Machine, Vcpu]]

PML = {"ad_bits": True, "pml": True}
NO_PML = {"ad_bits": True, "pml": False}
NO_AD = {"ad_bits": False, "pml": False}
every_way = pytest.mark.parametrize(
    "how", [PML, NO_PML, NO_AD], ids=["D bits and PML", "write protection", "no D bits"]
)


@pytest.fixture
def logged(make_machine: MakeMachine) -> Logged:
    """A machine with a slot at gfns 8..23 that is logged; its vCPU has written gfns 9 and 10 (pages
    1 and 2) before."""

    def make(**config: object) -> tuple[Machine, Vcpu]:
        machine = make_machine(huge_2m=8, **config)
        machine.add_slot(8, 16)
        vcpu = machine.vcpu()
        machine.run(vcpu, w(9), w(10))
        machine.log_dirty_pages()
        return machine, vcpu

    return make


def bitmap(machine: Machine, slot: int = 0) -> list[int]:
    """The pages that are in the log now."""
    return [page for page, dirty in enumerate(machine.slot(slot).dirty_bitmap or ()) if dirty]


# On and off.


def test_the_bitmap_comes_and_goes_with_the_flag(machine: Machine) -> None:
    machine.add_slot(8, 16)
    assert machine.slot().dirty_bitmap is None
    machine.log_dirty_pages()
    assert list(machine.slot().dirty_bitmap or ()) == [0] * 16
    machine.set_flags(0)
    assert machine.slot().dirty_bitmap is None


@every_way
def test_what_was_written_before_is_not_in_the_log(logged: Logged, how: dict[str, bool]) -> None:
    machine, _ = logged(**how)
    assert machine.vm.get_dirty_log(0) == set()


@every_way
def test_switching_on_takes_what_lets_writes_go_unnoticed_and_flushes(
    logged: Logged, how: dict[str, bool]
) -> None:
    machine, vcpu = logged(**how)
    bit = SPTE_D if how["pml"] else SPTE_W
    assert [bool(machine.spte(gfn) & bit) for gfn in (9, 10)] == [False, False]
    assert vcpu.state.requests.value & KVM_REQ_TLB_FLUSH
    if how["pml"]:
        assert machine.spte(9) & SPTE_W, "writes need no fault: hardware logs them"


@every_way
def test_what_was_dirty_before_is_dirty_for_the_host(logged: Logged, how: dict[str, bool]) -> None:
    machine, _ = logged(**how)
    machine.assert_sound()
    if how is not NO_PML:
        assert all(machine.kvm.pfn_dirtied[machine.regions[0, 0].ptes[page]] for page in (1, 2))


@pytest.mark.parametrize("mapped", [True, False])
def test_the_flush_is_unconditional_and_outside_of_the_lock(machine: Machine, mapped: bool) -> None:
    """B15 (b64d740ea7dd): somebody else may have changed the entries before, and not flushed
    yet."""
    machine.add_slot(8, 16)
    if mapped:
        machine.run(machine.vcpu(), w(9))
    held: list[tuple[object, ...]] = []
    machine.on(flush_begin=lambda *args: held.append((*args, machine.mmu_lock.held_mode())))
    machine.log_dirty_pages()
    assert held == [("dirty-log", 8, 16, 0)]


def test_switching_on_splits_huge_pages_eagerly(huge: Machine) -> None:
    huge.add_slot(0, 16, max_level=2)
    vcpu = huge.vcpu()
    huge.run(vcpu, w(5), w(9))
    huge.log_dirty_pages()
    assert huge.huge_leaves() == []
    assert len(huge.leaves(huge.root())) == 8
    huge.run(vcpu, w(6))
    assert huge.vm.get_dirty_log(0) == {6}
    huge.assert_sound()


@every_way
def test_without_eager_splitting_huge_pages_are_write_protected_and_split_by_faults(
    make_machine: MakeMachine, how: dict[str, bool]
) -> None:
    machine = make_machine(huge_2m=8, eager_page_split=False, **how)
    machine.add_slot(0, 16, max_level=2)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(5), w(9))
    machine.log_dirty_pages()
    assert machine.huge_leaves() == [(4, 2), (8, 2)]
    assert not machine.spte(4, 2) & SPTE_W, "a D bit of a huge leaf would log its first page only"
    machine.run(vcpu, 5, w(6))
    assert machine.huge_leaves() == [(8, 2)]
    assert machine.vm.get_dirty_log(0) == {6}
    machine.assert_sound()


def test_the_lockless_path_does_not_make_a_huge_page_writable_that_is_logged(
    make_machine: MakeMachine,
) -> None:
    """B62."""
    machine = make_machine(huge_2m=8, eager_page_split=False)
    machine.add_slot(0, 16, max_level=2)
    vcpu = machine.vcpu()
    machine.run(vcpu, w(5))
    machine.log_dirty_pages()
    fast = machine.record("fast_page_fault")
    machine.run(vcpu, w(6))
    assert fast.events == []
    assert [bool(machine.spte(gfn) & SPTE_W) for gfn in (4, 5, 6, 7)] == [False, False, True, False]


def test_switching_off_makes_writes_free_again(logged: Logged) -> None:
    machine, vcpu = logged(**NO_PML)
    machine.set_flags(0)
    machine.run(vcpu, w(9), w(10))
    machine.log_dirty_pages()
    assert machine.vm.get_dirty_log(0) == set()
    machine.assert_sound()


def test_only_the_slots_address_space_is_protected(make_machine: MakeMachine) -> None:
    machine = make_machine(**NO_PML)
    machine.add_slot(8, 16)
    machine.add_slot(8, 16, as_id=1)
    vcpu = machine.vm.create_vcpu()
    vcpu.set_smm(True)
    machine.run(vcpu, w(9))
    machine.log_dirty_pages()
    assert machine.spte(9, root=machine.root(as_id=1)) & SPTE_W


# Reading the log.


@every_way
def test_what_is_written_is_in_the_log_once(logged: Logged, how: dict[str, bool]) -> None:
    machine, vcpu = logged(**how)
    machine.run(vcpu, 9, w(10), w(10), w(20), 21)
    assert machine.vm.get_dirty_log(0) >= {2, 12}
    assert machine.vm.get_dirty_log(0) == set()
    machine.run(vcpu, w(10))
    assert machine.vm.get_dirty_log(0) == {2}
    machine.assert_sound()


@every_way
def test_a_read_of_what_is_mapped_is_not_in_the_log(logged: Logged, how: dict[str, bool]) -> None:
    machine, vcpu = logged(**how)
    machine.run(vcpu, 9, 10)
    assert machine.vm.get_dirty_log(0) == set()


@every_way
def test_reading_protects_what_was_in_the_log_and_nothing_else(
    logged: Logged, how: dict[str, bool]
) -> None:
    machine, vcpu = logged(**how)
    bit = SPTE_D if how["pml"] else SPTE_W
    machine.run(vcpu, w(9))
    machine.vm.get_dirty_log(0)
    machine.run(vcpu, w(10))
    assert bitmap(machine) == [2]
    machine.kvm.pfn_dirtied.store(machine.regions[0, 0].ptes[1], 0)
    changes = machine.record("spte_changed")
    assert machine.vm.get_dirty_log(0) == {2}
    assert [(gfn, old & ~new) for _, gfn, _, old, new, _ in changes.args("spte_changed")] == [
        (10, bit)
    ]


def test_the_flush_comes_after_the_protection_and_before_the_log_is_handed_out(
    logged: Logged,
) -> None:
    machine, vcpu = logged(**PML)
    machine.run(vcpu, w(9))
    events = machine.record(
        "spte_changed", "mmu_write_unlocking", "flush_begin", "flush_end", "dirty_log_read"
    )
    machine.vm.get_dirty_log(0)
    assert events.names() == [
        "spte_changed",
        "mmu_write_unlocking",
        "flush_begin",
        "flush_end",
        "dirty_log_read",
    ]
    assert events.args("flush_begin") == [("dirty-log", 8, 16)]


def test_an_empty_log_costs_no_flush(logged: Logged) -> None:
    machine, _ = logged(**PML)
    events = machine.record("flush_begin")
    machine.vm.get_dirty_log(0)
    assert events.events == []


@pytest.mark.parametrize(("slot", "as_id"), [(1, 0), (0, 1), (7, 0)])
def test_a_slot_that_logs_nothing_has_no_log(machine: Machine, slot: int, as_id: int) -> None:
    machine.add_slot(8, 16, flags=KVM_MEM_LOG_DIRTY_PAGES)
    machine.add_slot(32, 16, slot=1)
    for call in (
        lambda: machine.vm.get_dirty_log(slot, as_id),
        lambda: machine.vm.clear_dirty_log(slot, [1], as_id),
    ):
        with pytest.raises(KvmError) as refusal:
            call()
        assert refusal.value.errno == errno.ENOENT
    assert not machine.kvm.slots_lock.held()


@every_way
def test_a_write_between_taking_the_log_and_the_flush_is_not_lost(
    logged: Logged, how: dict[str, bool]
) -> None:
    """A TLB still has the right to write; the page is in this log, or it will be in the next."""
    machine, vcpu = logged(**how)
    machine.run(vcpu, w(9))
    machine.at("P12", lambda: together(machine.runtime, lambda: machine.run(vcpu, w(9), w(10))))
    first = machine.vm.get_dirty_log(0)
    assert first | machine.vm.get_dirty_log(0) == {1, 2}
    machine.assert_sound()


def test_the_reader_waits_until_a_running_guest_has_left(logged: Logged) -> None:
    machine, vcpu = logged(**NO_PML)
    machine.run(vcpu, w(9))
    guest = ParkedGuest(9)
    runner = machine.runtime.spawn("vcpu", lambda: vcpu.run(guest, 1))
    assert guest.inside.wait(PATIENCE)
    reader = blocked(
        machine.runtime,
        lambda: machine.vm.get_dirty_log(0),
        lambda task: "leave guest mode" in task.waiting_for,
    )
    guest.leave.set()
    finish(machine.runtime, reader, runner)
    machine.run(vcpu, w(9))
    assert machine.vm.get_dirty_log(0) == {1}


# Manual protection.


def test_with_manual_protection_reading_changes_nothing(logged: Logged) -> None:
    machine, vcpu = logged(manual_protect=True, **PML)
    machine.run(vcpu, w(9))
    events = machine.record("flush_begin", "spte_changed")
    assert machine.vm.get_dirty_log(0) == machine.vm.get_dirty_log(0) == {1}
    assert events.events == []


@every_way
def test_clearing_protects_the_pages_that_were_seen(logged: Logged, how: dict[str, bool]) -> None:
    machine, vcpu = logged(manual_protect=True, **how)
    machine.run(vcpu, w(9), w(10))
    machine.vm.clear_dirty_log(0, [1, 5, 16, -1])
    assert machine.vm.get_dirty_log(0) == {2}
    machine.run(vcpu, w(9))
    assert machine.vm.get_dirty_log(0) == {1, 2}
    machine.assert_sound()


def test_a_page_that_is_not_in_the_log_is_not_protected_again(logged: Logged) -> None:
    """It was never handed out: what is written to it meanwhile would be lost."""
    machine, _ = logged(manual_protect=True, **PML)
    events = machine.record("flush_begin", "spte_changed")
    machine.vm.clear_dirty_log(0, [1, 2, 3])
    assert events.events == []


# Hardware's log.


def test_pml_logs_what_the_cpu_dirties_when_it_leaves_the_guest(logged: Logged) -> None:
    machine, vcpu = logged(**PML)
    faults = vcpu.stat.pf_taken
    machine.run(vcpu, w(9), w(9), w(10))
    assert vcpu.stat.pf_taken == faults, "no write faulted"
    assert vcpu.stat.pml_logged == 2, "each page once"
    assert bitmap(machine) == [1, 2]


def test_the_reader_has_running_guests_empty_their_buffers(logged: Logged) -> None:
    """kvm_arch_sync_dirty_log(): it kicks, and waits for nobody; what comes late is in the next
    log."""
    machine, vcpu = logged(**PML)

    class Writer(ParkedGuest):
        def next_access(self) -> int:
            return super().next_access() | 1

    guest = Writer(9)
    runner = machine.runtime.spawn("vcpu", lambda: vcpu.run(guest, 1))
    assert guest.inside.wait(PATIENCE)
    assert machine.vm.get_dirty_log(0) == set()
    guest.leave.set()
    finish(machine.runtime, runner)
    assert vcpu.stat.kicks == 1
    assert machine.vm.get_dirty_log(0) == {1}


def test_a_nested_guest_is_logged_by_write_protection(logged: Logged) -> None:
    """B61: PML would log the nested guest's addresses."""
    machine, vcpu = logged(**PML)
    vcpu.set_guest_mode(nested=True)
    machine.run(vcpu, w(9))
    nested = vcpu.root
    assert nested is not None
    machine.vm.get_dirty_log(0)
    assert not machine.spte(9, root=nested) & SPTE_W
    logged_by_hardware = vcpu.stat.pml_logged
    machine.run(vcpu, w(9))
    assert vcpu.stat.pml_logged == logged_by_hardware
    assert machine.vm.get_dirty_log(0) == {1}
    machine.assert_sound()


@pytest.mark.parametrize("how", [NO_PML, NO_AD])
def test_the_lockless_path_logs_what_it_makes_writable(
    logged: Logged, how: dict[str, bool]
) -> None:
    machine, vcpu = logged(**how)
    fast = machine.record("fast_page_fault")
    machine.run(vcpu, w(9))
    assert [args[0] for args in fast.args("fast_page_fault")] == [9]
    assert bitmap(machine) == [1]


def test_the_lockless_path_that_loses_logs_nothing(logged: Logged) -> None:
    machine, vcpu = logged(**NO_PML)
    sp, index = machine.entry(machine.root(), 9)
    machine.at("P18", lambda: sp.spt.store(index, 0))
    assert machine.fault(vcpu, 9, write=True, present=True) is RetPf.FIXED
    assert bitmap(machine) == [1], "by the slow path"
    machine.abandon()


# Devices.


def test_what_a_device_writes_is_logged(make_machine: MakeMachine) -> None:
    """Defect R19: an IOMMU sets no D bits, and PML does not know of it."""
    machine = make_machine(**PML)
    machine.add_slot(8, 16)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(9, write=True)
    assert device.transact(9, write=True) is Dma.DONE
    machine.log_dirty_pages()
    for _ in range(2):
        assert device.transact(9, write=True) is None
        assert hwpt.io_fault(9, write=True)
        assert device.transact(9, write=True) is Dma.DONE
        assert machine.vm.get_dirty_log(0) == {1}
    machine.assert_sound()


def test_a_root_that_is_exported_while_logging_is_on_is_protected(
    make_machine: MakeMachine,
) -> None:
    machine = make_machine(**PML)
    machine.add_slot(8, 16)
    vcpu = machine.vcpu()
    machine.log_dirty_pages()
    machine.run(vcpu, w(9))
    machine.vm.get_dirty_log(0)
    assert machine.spte(9) & SPTE_W
    device, hwpt = machine.attach(machine.export())
    assert not machine.spte(9) & SPTE_W
    assert device.transact(9, write=True) is None
    assert hwpt.io_fault(9, write=True)
    assert device.transact(9, write=True) is Dma.DONE
    assert machine.vm.get_dirty_log(0) == {1}
    machine.assert_sound()


def test_writers_that_hardware_does_not_log_are_known(machine: Machine) -> None:
    dirty, root = machine.vm.dirty, machine.root()
    assert not dirty.needs_write_protect(root)
    machine.export()
    assert dirty.needs_write_protect(root)


@pytest.mark.parametrize("how", [NO_PML, NO_AD, {"ad_bits": False, "pml": True}])
def test_without_pml_everybody_is_write_protected(
    make_machine: MakeMachine, how: dict[str, bool]
) -> None:
    machine = make_machine(**how)
    assert machine.vm.dirty.needs_write_protect(machine.root())


# Races and rules.


def test_a_bit_is_taken_from_the_entry_as_it_is_and_not_as_it_was(logged: Logged) -> None:
    """B58: after a lost compare-exchange the entry is judged anew; here it is gone."""
    machine, vcpu = logged(**PML)
    machine.run(vcpu, w(9))
    writer, root = machine.vm.writer, machine.root()
    sp, index = machine.entry(root, 9)
    plain, tries = writer.iter_set_spte_atomic, list[int]()

    def zapped_first(it: object, new: int) -> bool:
        tries.append(new)
        sp.spt.store(index, 0)
        return plain(it, new)  # type: ignore[arg-type]

    writer.iter_set_spte_atomic = zapped_first  # type: ignore[method-assign, assignment]
    with reading(machine.mmu_lock):
        assert not machine.vm.dirty.clear_dirty_slot(root, machine.slot())
    assert len(tries) == 1
    assert sp.spt[index] == 0
    machine.abandon()


def test_a_d_bit_that_the_cpu_sets_while_the_entry_is_protected_is_kept(logged: Logged) -> None:
    """B56: write protection and the CPU write the same word."""
    machine, vcpu = logged(**NO_PML)
    machine.run(vcpu, w(9))
    sp, index = machine.entry(machine.root(), 9)
    sp.spt.fetch_and(index, ~SPTE_D)
    vcpu.tlb.flush()
    writer = machine.vm.writer
    plain = writer.has_volatile_bits

    def dirtied_meanwhile(spte: int, level: int) -> bool:
        writer.has_volatile_bits = plain  # type: ignore[method-assign]
        assert vcpu.walk(9, write=True) & SPTE_D
        return plain(spte, level)

    writer.has_volatile_bits = dirtied_meanwhile  # type: ignore[method-assign]
    assert machine.vm.get_dirty_log(0) == {1}
    assert sp.spt[index] & (SPTE_D | SPTE_W) == SPTE_D
    machine.assert_sound()


def test_clearing_stays_on_the_pages_that_are_asked_for(logged: Logged) -> None:
    machine, vcpu = logged(**PML)
    machine.run(vcpu, w(9), w(10), w(11), w(12))
    root = machine.root()
    with writing(machine.mmu_lock):
        machine.vm.dirty.clear_dirty_pt_masked(root, machine.slot(), {1, 4})
    assert [bool(machine.spte(gfn) & SPTE_D) for gfn in (9, 10, 11, 12)] == [
        False,
        True,
        True,
        False,
    ]


def test_each_step_needs_its_lock(logged: Logged) -> None:
    machine, _ = logged(**PML)
    root, slot, dirty = machine.root(), machine.slot(), machine.vm.dirty
    with writing(machine.mmu_lock):
        dirty.wrprot_slot(root, slot, 1)
    assert "O5 assert-held-for-read" in machine.news()
    with reading(machine.mmu_lock):
        dirty.clear_dirty_pt_masked(root, slot, {0})
    assert "O5 assert-held-for-write" in machine.news()


def test_a_page_is_marked_in_its_slot_only_while_that_logs(logged: Logged) -> None:
    machine, _ = logged(**PML)
    with srcu_section(machine.kvm.srcu):
        for gfn in (8, 23, 24, 60):
            machine.vm.faults.mark_page_dirty(0, gfn)
    assert bitmap(machine) == [0, 15]


def test_a_log_survives_a_move_of_its_slot(logged: Logged) -> None:
    machine, vcpu = logged(**PML)
    machine.run(vcpu, w(9))
    region = machine.regions[0, 0]
    host = machine.vm.host
    move = host.begin_move(region, 40)
    machine.vm.set_user_memory_region(MemoryRegion(0, 40, 16, region, KVM_MEM_LOG_DIRTY_PAGES))
    host.end_move(move)
    assert machine.vm.get_dirty_log(0) == {1}
    machine.run(vcpu, w(42))
    assert machine.vm.get_dirty_log(0) == {2}
    machine.assert_sound()


@every_way
def test_nothing_is_lost_while_everybody_is_busy(logged: Logged, how: dict[str, bool]) -> None:
    """The ground truth: the epoch of every page's last write."""
    machine, vcpu = logged(**how)
    other = machine.vm.create_vcpu()
    region, found = machine.regions[0, 0], set[int]()

    def guest(which: Vcpu) -> None:
        for turn in range(15):
            machine.run(which, *[w(8 + (turn * 5 + each) % 16) for each in range(4)], 9)

    def reader() -> None:
        for _ in range(10):
            found.update(machine.vm.get_dirty_log(0))

    machine.vm.host.epoch.value = 2
    together(machine.runtime, lambda: guest(vcpu), lambda: guest(other), reader)
    for each in (vcpu, other):
        machine.run(each, 9)
    found |= machine.vm.get_dirty_log(0)
    assert {tag - 8 for tag in machine.vm.host.written_since(region, 2)} <= found
    machine.assert_sound()
