"""The device: it walks what the hardware would walk, keeps what it walked until it is told, and is
judged by the host."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mmu.errors import KvmError
from mmu.export.device import Device, Dma
from mmu.export.iommu import KvmHwpt
from mmu.memory.memslots import KVM_MEM_READONLY
from mmu.memory.tlb import WHOLE
from mmu.paging.spte import PFN_SHIFT, REMOVED_SPTE, SPTE_W
from mmu.paging.table import RootPage
from tests.conftest import blocked, finish, rcu_section, writing
from tests.model import Machine
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine


@pytest.fixture
def bound(machine: Machine) -> tuple[Device, KvmHwpt]:
    """A device bound to the exported root of a VM with one slot at gfns 0..15; gfn 1 is mapped."""
    machine.add_slot(0, 16)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(1, write=False)
    return device, hwpt


@pytest.fixture
def device(bound: tuple[Device, KvmHwpt]) -> Device:
    """The device."""
    return bound[0]


@pytest.fixture
def hwpt(bound: tuple[Device, KvmHwpt]) -> KvmHwpt:
    """Its HWPT."""
    return bound[1]


class NotedLock:
    """A lock that says when somebody has to wait for it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.awaited = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it, noting that it had to be waited for."""
        if not self._lock.acquire(blocking=False):
            self.awaited.set()
            self._lock.acquire()
        return True

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


# Translation.


@pytest.mark.parametrize("write", [True, False])
def test_a_mapped_page_is_reached(device: Device, write: bool) -> None:
    assert device.transact(1, write) is Dma.DONE


def test_what_is_not_mapped_is_an_io_page_fault(machine: Machine, device: Device) -> None:
    for gfn in (2, 8, 40):
        assert device.transact(gfn, write=False) is None
    assert machine.wrong == []


@pytest.mark.parametrize("gfn", [65, 1 | 1 << 40])
def test_an_address_beyond_the_tables_is_not_mapped(
    machine: Machine, device: Device, gfn: int
) -> None:
    """Bits that no level looks at must be zero; they are not simply left out."""
    assert device.transact(gfn, write=False) is None
    assert machine.wrong == []


def test_a_second_access_is_a_hit(device: Device) -> None:
    device.transact(1, write=False)
    assert (device.walks, device.hits) == (1, 0)
    device.transact(1, write=True)
    assert (device.walks, device.hits) == (1, 1)


def test_a_device_without_a_root_reaches_nothing(machine: Machine) -> None:
    assert machine.vm.create_device("lonely").transact(1, write=False) is None


def test_a_write_needs_the_right_to_write(machine: Machine) -> None:
    machine.add_slot(0, 4, flags=KVM_MEM_READONLY)
    device, hwpt = machine.attach(machine.export())
    assert hwpt.io_fault(1, write=False)
    assert device.transact(1, write=False) is Dma.DONE
    assert device.transact(1, write=True) is None
    assert device.walks == 2, "a hit without the right is looked up again"


def test_the_frozen_value_is_nothing_to_the_hardware(machine: Machine, device: Device) -> None:
    sp, index = machine.entry(machine.root(), 1)
    before = sp.spt.xchg(index, REMOVED_SPTE)
    assert device.transact(1, write=False) is None
    sp.spt.store(index, before)
    assert device.transact(1, write=False) is Dma.DONE


def test_the_hardware_looks_at_rights_and_not_at_kvms_present_bit(
    machine: Machine, device: Device
) -> None:
    """Defect R18: what KVM calls non-present may be a write-only leaf to an IOMMU."""
    sp, index = machine.entry(machine.root(), 1)
    before = sp.spt.xchg(index, SPTE_W | 7 << PFN_SHIFT)
    assert not machine.kvm.layout.is_present(sp.spt[index])
    assert device.transact(1, write=False) is None
    assert device.transact(1, write=True) is Dma.WRONG
    sp.spt.store(index, before)
    machine.wrong.clear()


def test_a_walk_into_a_freed_table_is_reported(machine: Machine, device: Device) -> None:
    root = machine.root()
    with writing(machine.mmu_lock), rcu_section(machine.kvm.rcu):
        stale = root.spt[0]
        machine.vm.writer.set_spte(root, 0, 0, stale, 0)
    machine.kvm.rcu.barrier()
    root.spt.store(0, stale)
    assert device.transact(1, write=False) is None
    machine.expect("O2 use-after-free")
    machine.abandon()


# Invalidation.


def test_an_invalidation_of_the_range_is_felt_and_of_another_is_not(
    machine: Machine, device: Device
) -> None:
    device.transact(1, write=False)
    device.flush_iotlb(4, 4, leaves_only=False)
    assert (list(device.iotlb.entries), len(device.iotlb.tables)) == ([1], 1)
    device.flush_iotlb(2, 2, leaves_only=True)
    assert (list(device.iotlb.entries), len(device.iotlb.tables)) == ([1], 1)
    device.flush_iotlb(2, 2, leaves_only=False)
    assert (list(device.iotlb.entries), len(device.iotlb.tables)) == ([1], 0), (
        "the partial walk led to these pages, too"
    )
    device.flush_iotlb(1, 1, leaves_only=False)
    assert not device.iotlb.entries
    device.transact(1, write=False)
    device.flush()
    assert not device.iotlb.entries
    assert device.hits == 0


def test_a_flush_of_the_vm_empties_the_iotlb(machine: Machine, device: Device) -> None:
    device.transact(1, write=False)
    machine.vm.tlb.flush("test")
    assert not device.iotlb.entries
    assert not device.iotlb.tables


def test_every_bound_device_is_invalidated(machine: Machine, device: Device, hwpt: KvmHwpt) -> None:
    other, _ = machine.attach(hwpt.fd, "device1")
    for each in (device, other):
        assert each.transact(1, write=False) is Dma.DONE
    machine.vm.tlb.flush("test")
    assert not device.iotlb.entries
    assert not other.iotlb.entries


def test_an_invalidation_waits_for_the_access_in_flight(machine: Machine, device: Device) -> None:
    """Between its translation and its access a transaction still uses what is being removed."""
    lock = NotedLock(device.hardware)
    device.hardware = lock
    order: list[str] = []
    invalidators: list[Any] = []

    def invalidate() -> None:
        device.flush_iotlb(0, WHOLE, leaves_only=False)
        order.append("invalidated")

    def in_flight() -> None:
        invalidators.append(blocked(machine.runtime, invalidate, lambda _: lock.awaited.is_set()))
        order.append("accessed")

    machine.at("P16", in_flight)
    assert device.transact(1, write=True) is Dma.DONE
    finish(machine.runtime, *invalidators)
    assert order == ["accessed", "invalidated"]
    assert not device.iotlb.entries


# Memory that went away.


def test_after_a_delete_the_device_is_turned_away(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    assert device.transact(1, write=True) is Dma.DONE
    machine.delete_slot()
    assert device.transact(1, write=True) is None
    assert not hwpt.io_fault(1, write=True)
    machine.assert_sound()


def test_after_a_move_the_device_finds_its_data_at_the_new_place_only(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    assert device.transact(1, write=True) is Dma.DONE
    machine.move_slot(32)
    assert device.transact(1, write=False) is None
    assert not hwpt.io_fault(1, write=False)
    assert hwpt.io_fault(33, write=False)
    assert device.transact(33, write=False) is Dma.DONE
    machine.assert_sound()


@pytest.mark.parametrize("write", [True, False])
def test_memory_released_under_the_device_without_a_flush_is_wrong_memory(
    machine: Machine, device: Device, write: bool
) -> None:
    device.transact(1, write=False)
    pfn = machine.regions[0, 0].ptes[1]
    machine.vm.host.munmap(machine.regions[0, 0])
    assert device.transact(1, write) is Dma.WRONG
    assert [found[:4] for found in machine.wrong] == [("device0", 1, pfn, write)]
    machine.abandon()


# The HWPT.


def test_binding_programs_the_root_and_registers_the_importer(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    assert device.root.value is machine.root()
    assert hwpt.fd.exported.importers() == (hwpt,)
    assert hwpt.fd.count.read() == 2
    assert hwpt.live.value


def test_a_bound_device_keeps_the_root_exported(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    root = machine.root()
    hwpt.fd.put()
    assert root.exported.value
    assert device.transact(1, write=False) is Dma.DONE
    hwpt.destroy()
    assert not root.exported.value


def test_destroying_cuts_the_hardware_off_first(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    """Defect R14: what the callback uses must outlive the callback."""
    device.transact(1, write=False)
    hwpt.fd.put()
    at_release: list[tuple[Any, int, int, bool]] = []

    def look() -> None:
        at_release.append(
            (
                device.root.value,
                len(device.iotlb.entries),
                len(hwpt.fd.exported.importers()),
                hwpt.live.value,
            )
        )

    machine.at("P17", look)
    hwpt.destroy()
    assert at_release == [(None, 0, 0, False)]
    assert device.transact(1, write=False) is None


def test_a_destroyed_hwpt_hears_nothing_more(machine: Machine, hwpt: KvmHwpt) -> None:
    events = machine.record("importer_called")
    hwpt.destroy()
    machine.vm.tlb.flush("test")
    assert events.events == []


def test_an_io_fault_is_told_from_begin_to_end(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    events = machine.record("io_fault_begin", "io_fault_answered", "io_fault_end")
    hwpt.io_fault(5, write=True)
    assert events.names() == ["io_fault_begin", "io_fault_answered", "io_fault_end"]
    assert events.args("io_fault_begin") == [(device, 5, True)]
    assert [args[:4] for args in events.args("io_fault_end")] == [(device, 5, True, True)]


def test_closing_a_device_while_the_vm_flushes_does_no_harm(
    machine: Machine, hwpt: KvmHwpt
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def park(*_: Any) -> None:
        inside.set()
        assert leave.wait(PATIENCE)

    machine.on(importer_called=park)
    flusher = machine.runtime.spawn("flusher", lambda: machine.vm.tlb.flush("test"))
    assert inside.wait(PATIENCE)
    closer = blocked(
        machine.runtime, hwpt.destroy, lambda task: task.waiting_for == "importer_lock"
    )
    leave.set()
    finish(machine.runtime, flusher, closer)
    assert not hwpt.live.value


# Groups of faults.


def handled(machine: Machine) -> list[tuple[int, bool]]:
    """What becomes of each fault of a group, as (gfn, success)."""
    answers: list[tuple[int, bool]] = []
    machine.on(io_fault_end=lambda device, gfn, write, ok, ns: answers.append((gfn, ok)))
    return answers


def test_a_group_is_answered_as_one(machine: Machine, hwpt: KvmHwpt) -> None:
    answers = handled(machine)
    assert hwpt.io_fault_group([(2, False), (3, True), (4, True)])
    assert answers == [(2, True), (3, True), (4, True)]
    machine.assert_sound()


def test_after_the_first_failure_the_rest_of_a_group_is_not_handled(
    machine: Machine, hwpt: KvmHwpt
) -> None:
    """Reference 1.7: errors are sticky in the group."""
    answers = handled(machine)
    assert not hwpt.io_fault_group([(2, False), (40, True), (4, True)])
    assert answers == [(2, True), (40, False)]
    assert sorted(machine.leaves(machine.root())) == [1, 2]
    assert hwpt.io_fault(4, write=True), "of that group only"


def test_a_group_has_one_response(machine: Machine, hwpt: KvmHwpt) -> None:
    events = machine.record("page_response")
    good, bad = hwpt.request([(2, False), (3, True)]), hwpt.request([(4, True), (40, False)])
    hwpt.handle(good)
    hwpt.handle(bad)
    assert (good.code.value, bad.code.value) == ("SUCCESS", "FAILURE")
    answered = [(each.domain.device, each.faults, ok) for each, ok in events.args("page_response")]
    assert answered == [
        (hwpt.device, [(2, False), (3, True)], True),
        (hwpt.device, [(4, True), (40, False)], False),
    ]


def test_a_second_response_is_reported_and_not_sent(machine: Machine, hwpt: KvmHwpt) -> None:
    request = hwpt.request([(2, False)])
    hwpt.handle(request)
    hwpt.respond(request, ok=False)
    machine.expect("O16 response-without-request")
    assert request.code.value == "SUCCESS"


def test_destroying_waits_for_the_page_requests_in_the_queue(
    machine: Machine, hwpt: KvmHwpt
) -> None:
    """Defect R24: a request is for the domain that the device was attached to."""
    request = hwpt.request([(2, True)])
    closer = blocked(
        machine.runtime, hwpt.destroy, lambda task: task.waiting_for == "page requests"
    )
    assert hwpt.live.value
    assert hwpt.device.root.value is None, "it asks for nothing more"
    hwpt.handle(request)
    finish(machine.runtime, closer)
    assert (request.code.value, hwpt.live.value) == ("SUCCESS", False)


def test_a_page_request_in_a_freed_domain_is_reported(machine: Machine, hwpt: KvmHwpt) -> None:
    request = hwpt.request([(2, True)])
    hwpt.unbind()
    hwpt.free_domain()
    hwpt.handle(request)
    machine.expect("O2 domain-used-after-free")
    hwpt.fd.put()
    machine._hwpts.clear()


def test_a_device_that_is_unbound_is_not_attached_again(machine: Machine, hwpt: KvmHwpt) -> None:
    request = hwpt.request([(2, True)])
    hwpt.revoke()
    hwpt.unbind()
    hwpt.handle(request)
    assert (request.code.value, hwpt.device.root.value) == ("FAILURE", None)
    hwpt.drain()


def test_an_empty_group_is_a_success(machine: Machine, hwpt: KvmHwpt) -> None:
    assert hwpt.io_fault_group([])


# Another root.


def other_root(machine: Machine) -> RootPage:
    """A root that maps gfn 1 as well."""
    root = machine.root(as_id=1)
    machine.plant(root, 1, pfn=machine.regions[0, 0].ptes[1])
    return root


def test_switching_walks_the_new_root_and_forgets_the_old_one(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    device.transact(1, write=False)
    root = other_root(machine)
    assert hwpt.switch_root(root)
    assert device.root.value is root
    assert (device.iotlb.entries, device.iotlb.tables) == ({}, {})
    assert device.transact(1, write=False) is Dma.DONE
    assert hwpt.switch_root(machine.root())


def test_a_switch_waits_for_the_access_in_flight(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    """Only then it is acknowledged: the old root may be freed."""
    lock = NotedLock(device.hardware)
    device.hardware = lock
    order: list[str] = []
    switchers: list[Any] = []
    root, fresh = machine.root(), other_root(machine)

    def switch() -> None:
        assert hwpt.switch_root(fresh)
        order.append("acknowledged")

    def in_flight() -> None:
        switchers.append(blocked(machine.runtime, switch, lambda _: lock.awaited.is_set()))
        order.append("accessed")

    machine.at("P16", in_flight)
    assert device.transact(1, write=True) is Dma.DONE
    finish(machine.runtime, *switchers)
    assert order == ["accessed", "acknowledged"]
    assert hwpt.switch_root(root)


def test_a_switch_may_sleep_so_it_must_not_be_atomic(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    with writing(machine.mmu_lock):
        root = device.root.value
        assert root is not None
        hwpt.switch_root(root)
    machine.expect("O5 sleep-in-atomic")


def test_a_revoked_device_reaches_nothing_until_it_is_attached_again(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    device.transact(1, write=False)
    hwpt.revoke()
    assert device.root.value is None
    assert device.iotlb.entries == {}
    assert device.transact(1, write=False) is None
    assert hwpt.revoked.value
    assert hwpt.reattach()
    assert (hwpt.revoked.value, device.root.value) == (False, machine.root())
    assert device.transact(1, write=False) is Dma.DONE
    machine.assert_sound()


def test_an_io_fault_brings_a_revoked_device_back(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    hwpt.revoke()
    assert hwpt.io_fault(2, write=True)
    assert device.transact(2, write=True) is Dma.DONE


def test_a_device_that_was_not_revoked_is_not_attached_again(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    device.transact(1, write=False)
    assert hwpt.reattach()
    assert list(device.iotlb.entries) == [1], "nothing was drained"


def test_without_an_exported_root_a_device_stays_revoked(
    machine: Machine, device: Device, hwpt: KvmHwpt
) -> None:
    hwpt.revoke()
    root = hwpt.fd.exported.root
    exported, root.value = root.value, None
    assert not hwpt.reattach()
    assert not hwpt.io_fault(1, write=False)
    assert device.root.value is None
    root.value = exported


def test_a_switch_that_fails_keeps_the_old_root(make_machine: MakeMachine) -> None:
    machine = make_machine(fail_function=lambda step: step == "switch_root")
    machine.add_slot(0, 4)
    device, hwpt = machine.attach(machine.export())
    root = device.root.value
    assert not hwpt.switch_root(machine.root(as_id=1))
    assert device.root.value is root


# Binding.


def test_an_attach_that_fails_leaves_nothing_behind(make_machine: MakeMachine) -> None:
    """Defect R15: one put, not two."""
    failing = {"hwpt_attach"}
    machine = make_machine(fail_function=lambda step: step in failing)
    fd = machine.export()
    device = machine.vm.create_device()
    with pytest.raises(KvmError, match="ENOMEM"):
        machine.vm.attach(device, fd)
    assert fd.count.read() == 1
    assert fd.exported.importers() == ()
    assert device.root.value is None
    assert fd.metadata().root.exported.value
    failing.clear()
    hwpt = machine.vm.attach(device, fd)
    machine.assert_sound()
    hwpt.destroy()


def test_a_device_cannot_be_bound_to_what_was_released(machine: Machine) -> None:
    fd = machine.export()
    holder = fd.get()
    fd.put()
    machine.vm.exporter.put_exported_tdp(fd.exported)
    with pytest.raises(KvmError, match="ENODEV"):
        machine.vm.attach(machine.vm.create_device(), fd)
    assert fd.exported.importers() == ()
    assert holder.count.read() == 1
    machine.abandon()


def test_registering_and_programming_the_root_are_one_step(machine: Machine) -> None:
    """Otherwise the root could be switched in between, and the device would walk the old one for
    ever."""
    fd, held = machine.export(), list[bool]()
    plain = Device.attach

    class Noting(Device):
        def attach(self, root: RootPage) -> None:
            held.append(fd.exported.bind_lock.held())
            assert len(fd.exported.importers()) == 1
            plain(self, root)

    device = Noting(machine.kvm, machine.vm.host, "noting")
    hwpt = KvmHwpt(machine.kvm, fd, device)
    assert held == [True]
    hwpt.destroy()


def test_un_export_and_binding_exclude_each_other(machine: Machine, hwpt: KvmHwpt) -> None:
    waiting: list[Any] = []
    exported = hwpt.fd.exported

    def bind_lock_taken() -> None:
        waiting.append(
            blocked(
                machine.runtime,
                hwpt.reattach,
                lambda task: task.waiting_for == "exported_bind_lock",
            )
        )

    hwpt.revoke()
    hwpt.fd.get()
    machine.at("P17", bind_lock_taken)
    while hwpt.fd.count.read() > 1:
        hwpt.fd.count.put()
    hwpt.fd.put()
    finish(machine.runtime, *waiting)
    assert exported.root.value is None
    assert hwpt.revoked.value, "it found no root any more"
    hwpt.live.store(False)
