"""TDP FDs: who may export, what the references keep alive, how IO faults are answered, and how
un-export ends it."""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest

from mmu.errors import KvmError
from mmu.export.importer import ExportedTdp
from mmu.export.tdp_fd import TYPE_EPT, TdpFd
from mmu.memory.memslots import KVM_MEM_READONLY, KVM_MEMSLOT_INVALID
from mmu.memory.requests import KVM_REQ_TLB_FLUSH
from mmu.memory.tlb import WHOLE
from mmu.tdp.fault import RetPf
from tests.conftest import blocked, finish, together
from tests.model import Machine
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine


class Importer:
    """An importer that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def invalidate(self, gfn: int, pages: int) -> None:
        """The callback."""
        self.told.append((gfn, pages))


def refused(machine: Machine, as_id: int = 0) -> int:
    """The errno with which an export is refused; no reference may have stayed."""
    users = machine.kvm.users_count.read()
    with pytest.raises(KvmError) as refusal:
        machine.vm.create_tdp_fd(as_id)
    assert machine.kvm.users_count.read() == users
    return refusal.value.errno


# Creation.


def test_the_exported_root_is_the_one_that_vcpus_use(machine: Machine) -> None:
    vcpu = machine.vcpu()
    metadata = machine.export().metadata()
    assert metadata.root is vcpu.root
    assert metadata.level == machine.kvm.geometry.levels
    assert metadata.root.exported.value
    assert metadata.root.refcount.read() == 3, "the TDP MMU's, the vCPU's and the exporter's"
    machine.assert_sound()


def test_exporting_makes_the_root_when_there_is_none(machine: Machine) -> None:
    root = machine.export().metadata().root
    assert root.refcount.read() == 2
    assert machine.vcpu().root is root
    machine.assert_sound()


def test_an_address_space_is_exported_once(machine: Machine) -> None:
    fd = machine.export()
    assert refused(machine) == errno.EEXIST
    assert fd.metadata().root.refcount.read() == 2


def test_a_closed_export_can_be_made_again(machine: Machine) -> None:
    first = machine.vm.create_tdp_fd()
    root = first.metadata().root
    first.put()
    assert machine.export().metadata().root is root
    assert root.exported.value
    machine.assert_sound()


@pytest.mark.parametrize("as_id", [1, 2, -1])
def test_only_the_normal_address_space_can_be_exported(machine: Machine, as_id: int) -> None:
    assert refused(machine, as_id) == errno.EINVAL


def test_without_the_feature_nothing_can_be_exported(make_machine: MakeMachine) -> None:
    assert refused(make_machine(have_exported_tdp=False)) == errno.EOPNOTSUPP


def test_a_dying_vm_exports_nothing(machine: Machine) -> None:
    machine.destroy()
    assert refused(machine) == errno.ENOENT


def test_many_exporters_at_once_and_one_wins(machine: Machine) -> None:
    """The check and the insertion are one critical section (defect R1)."""
    answers: list[Any] = []

    def export() -> None:
        try:
            answers.append(machine.export())
        except KvmError as refusal:
            answers.append(refusal.errno)

    together(machine.runtime, *[export] * 6)
    assert answers.count(errno.EEXIST) == 5
    assert machine.root().refcount.read() == 2
    machine.assert_sound()


# References.


def test_release_runs_at_the_last_reference(machine: Machine) -> None:
    fd = machine.export()
    root = fd.metadata().root
    assert fd.get() is fd
    fd.put()
    assert root.exported.value
    fd.put()
    assert not root.exported.value
    assert root.refcount.read() == 1
    machine.assert_sound()


def test_an_open_tdp_fd_keeps_the_vm_alive(machine: Machine) -> None:
    fd = machine.export()
    events = machine.record("root_invalidated", "root_freed")
    machine.vm.put()
    assert not machine.vm.destroyed.value
    assert events.events == []
    unexported: list[bool] = []
    machine.on(root_invalidated=lambda root: unexported.append(not root.exported.value))
    fd.put()
    assert machine.vm.destroyed.value
    assert unexported == [True], "no root is exported any more when the VM is taken down"


def test_one_put_too_many_is_reported(machine: Machine) -> None:
    fd = machine.export()
    fd.put()
    fd.put()
    machine.expect("O4 refcount-underflow")


def test_a_released_fd_has_no_metadata(machine: Machine) -> None:
    fd = machine.export()
    fd.put()
    with pytest.raises(KvmError, match="ENODEV"):
        fd.metadata()


# Un-export.


def test_un_export_zaps_the_leaves_flushes_and_keeps_the_root_valid(machine: Machine) -> None:
    """Defect R5: tables of a live root may not be freed, and what is removed from it must be
    flushed."""
    machine.add_slot(0, 8)
    vcpu, fd = machine.vcpu(), machine.export()
    root = fd.metadata().root
    machine.run(vcpu, 1, 2)
    tables = machine.tables(root)
    events = machine.record(
        "spte_zapped", "flush_begin", "flush_end", "mmu_write_unlocking", "root_freed"
    )
    fd.put()
    assert events.names() == ["spte_zapped"] * 2 + [
        "flush_begin",
        "flush_end",
        "mmu_write_unlocking",
    ]
    assert vcpu.state.requests.value == KVM_REQ_TLB_FLUSH
    assert (machine.leaves(root), machine.tables(root)) == ({}, tables)
    assert (root.invalid.value, root.exported.value, root.refcount.read()) == (False, False, 2)
    machine.run(vcpu, 1, 2)
    machine.assert_sound()


def test_un_exporting_an_empty_root_needs_no_flush(machine: Machine) -> None:
    fd = machine.export()
    events = machine.record("flush_begin")
    fd.put()
    assert events.events == []


def test_an_un_exported_root_is_invalidated_like_any_other(machine: Machine) -> None:
    machine.add_slot(0, 8)
    fd = machine.export()
    root = fd.metadata().root
    fd.put()
    events = machine.record("root_invalidated")
    machine.delete_slot()
    assert events.args("root_invalidated") == [(root,)]


def test_an_export_that_is_made_while_another_is_released_stays_exported(machine: Machine) -> None:
    """Close and create at the same time: whoever comes second may be refused or served, but not
    served a root that is marked un-exported behind its back - the next memslot change would
    invalidate it under its importer."""
    fd, answers = machine.export(), list[Any]()

    def export() -> None:
        try:
            answers.append(machine.export())
        except KvmError as refusal:
            answers.append(refusal.errno)

    machine.at("P17", lambda: together(machine.runtime, export))
    fd.put()
    (answer,) = answers
    if answer != errno.EEXIST:
        assert answer.metadata().root.exported.value
    machine.assert_sound()


# Importers.


def test_an_importer_hears_of_flushes_from_its_registration_on(machine: Machine) -> None:
    fd, importer = machine.export(), Importer()
    machine.vm.tlb.flush("before")
    fd.register_importer(importer)
    machine.vm.tlb.flush("between")
    fd.unregister_importer(importer)
    machine.vm.tlb.flush("after")
    assert importer.told == [(0, WHOLE)]


def test_every_importer_is_told_and_none_twice(machine: Machine) -> None:
    fd, importers = machine.export(), [Importer() for _ in range(3)]
    for importer in importers:
        fd.register_importer(importer)
    with pytest.raises(KvmError, match="EBUSY"):
        fd.register_importer(importers[1])
    machine.vm.tlb.flush_range("test", 4, 2)
    assert [importer.told for importer in importers] == [[(4, 2)]] * 3


def test_importers_are_told_before_a_memslot_change_returns(machine: Machine) -> None:
    machine.add_slot(0, 8)
    fd, importer = machine.export(), Importer()
    fd.register_importer(importer)
    assert fd.fault(1, write=False)
    machine.delete_slot()
    assert importer.told == [(0, WHOLE)]


def test_after_unregistering_no_callback_runs(machine: Machine) -> None:
    """unregister waits for a callback that is running."""
    inside, leave = threading.Event(), threading.Event()

    class Slow(Importer):
        def invalidate(self, gfn: int, pages: int) -> None:
            inside.set()
            assert leave.wait(PATIENCE)
            super().invalidate(gfn, pages)

    fd, importer = machine.export(), Slow()
    fd.register_importer(importer)
    flusher = machine.runtime.spawn("flusher", lambda: machine.vm.tlb.flush("test"))
    assert inside.wait(PATIENCE)
    told: list[int] = []

    def unregister() -> None:
        fd.unregister_importer(importer)
        told.append(len(importer.told))

    waiter = blocked(machine.runtime, unregister, lambda task: task.waiting_for == "importer_lock")
    leave.set()
    finish(machine.runtime, flusher, waiter)
    assert told == [1], "the callback had ended"


def test_a_released_export_has_no_importers(machine: Machine) -> None:
    fd, importer = machine.export(), Importer()
    fd.register_importer(importer)
    exported = fd.exported
    fd.put()
    assert exported.importers() == ()
    machine.vm.tlb.flush("after")
    assert importer.told == []


# IO faults.


@pytest.mark.parametrize("write", [True, False])
def test_an_io_fault_maps_into_the_exported_root(machine: Machine, write: bool) -> None:
    machine.add_slot(0, 8)
    fd = machine.export()
    assert fd.fault(5, write)
    assert machine.leaves(fd.metadata().root) == {5: machine.regions[0, 0].ptes[5]}
    machine.assert_sound()


def test_an_io_fault_that_a_vcpu_has_already_answered_is_a_success(machine: Machine) -> None:
    """Defect R7: this is the common race of the design."""
    machine.add_slot(0, 8)
    vcpu, fd = machine.vcpu(), machine.export()
    assert machine.fault(vcpu, 5) is RetPf.FIXED
    assert fd.fault(5, write=True)


def test_a_device_and_a_vcpu_share_what_either_maps(machine: Machine) -> None:
    machine.add_slot(0, 8)
    vcpu, fd = machine.vcpu(), machine.export()
    assert fd.fault(5, write=True)
    assert machine.fault(vcpu, 5) is RetPf.SPURIOUS


@pytest.mark.parametrize("gfn", [8, 63, 1 << 40])
def test_an_io_fault_without_a_slot_fails(machine: Machine, gfn: int) -> None:
    machine.add_slot(0, 8)
    assert not machine.export().fault(gfn, write=False)


def test_an_io_fault_follows_the_rights_of_a_read_only_slot(machine: Machine) -> None:
    machine.add_slot(0, 8, flags=KVM_MEM_READONLY)
    fd = machine.export()
    assert [fd.fault(5, write=True), fd.fault(5, write=False), fd.fault(5, write=True)] == [
        False,
        True,
        False,
    ]


def test_an_io_fault_follows_the_rights_of_the_host_every_time(machine: Machine) -> None:
    """Invariant I19: SUCCESS only if the gfn is mapped with the rights that were asked for."""
    machine.add_slot(0, 8, writable=False)
    fd = machine.export()
    assert [fd.fault(5, write=True), fd.fault(5, write=True)] == [False, False]


def test_each_answer_is_told_with_what_the_slots_allow(machine: Machine) -> None:
    machine.add_slot(0, 8)
    fd = machine.export()
    events = machine.record("io_fault_answered")
    fd.fault(5, write=True)
    fd.fault(40, write=False)
    assert events.args("io_fault_answered") == [(5, True, True, True), (40, False, False, False)]


def test_a_stale_io_fault_is_tried_again_from_the_start(machine: Machine) -> None:
    """Defect R8: nothing of the first attempt may be carried into the second."""
    machine.add_slot(0, 8)
    fd = machine.export()
    stale = machine.record("fault_stale")
    machine.at("P1", lambda: machine.kvm.invalidation.seq.fetch_add(1))
    assert fd.fault(5, write=False)
    assert stale.args("fault_stale") == [(None, 5, "notifier")]


def test_slots_lock_keeps_the_slots_still_while_an_io_fault_is_handled(machine: Machine) -> None:
    machine.add_slot(0, 8)
    fd = machine.export()
    held: list[bool] = []
    machine.on(spte_changed=lambda *_: held.append(machine.kvm.slots_lock.held()))
    machine.on(io_fault_answered=lambda *_: held.append(machine.kvm.slots_lock.held()))
    fd.fault(5, write=False)
    assert held == [True] * 4, "two tables, the leaf, and the answer"
    assert not machine.kvm.slots_lock.held()


def test_a_memslot_change_waits_for_an_io_fault_and_then_removes_what_it_mapped(
    machine: Machine,
) -> None:
    machine.add_slot(0, 8)
    fd = machine.export()
    waiting: list[Any] = []

    def delete_meanwhile() -> None:
        waiting.append(
            blocked(
                machine.runtime, machine.delete_slot, lambda task: task.waiting_for == "slots_lock"
            )
        )

    machine.at("P1", delete_meanwhile)
    assert fd.fault(5, write=False)
    finish(machine.runtime, *waiting)
    assert machine.leaves(fd.metadata().root) == {}
    assert not fd.fault(5, write=False)
    machine.assert_sound()


def test_an_invalid_slot_is_not_mappable(machine: Machine) -> None:
    machine.add_slot(0, 8)
    fd = machine.export()
    seen: list[tuple[bool, bool]] = []

    def look() -> None:
        (slot,) = machine.vm.memslots.peek(0).index.value[1]
        assert slot.flags & KVM_MEMSLOT_INVALID
        seen.append((slot.invalid, machine.vm.exporter.mappable(fd.exported, 5, False)))

    machine.at("P14", look)
    machine.delete_slot()
    assert seen == [(True, False)]


# The file table.


def test_a_new_fd_is_complete_before_user_space_can_see_it(machine: Machine) -> None:
    """Defect R3: a second thread may close it at once."""
    seen: list[tuple[bool, bool, int]] = []
    plain = machine.vm.exporter.fd_install

    def install(fd: TdpFd) -> None:
        seen.append(
            (
                fd.exported in machine.vm.exported_tdps.all(),
                fd.metadata().root.exported.value,
                fd.number.value,
            )
        )
        plain(fd)

    machine.vm.exporter.fd_install = install  # type: ignore[method-assign]
    fd = machine.export()
    assert seen == [(True, True, 0)]
    assert fd.number.value >= 3
    assert machine.vm.exporter.files.value == (fd,)


def test_an_fd_that_is_closed_the_moment_it_appears_does_no_harm(machine: Machine) -> None:
    closed: list[bool] = []
    plain = machine.vm.exporter.fd_install

    def install(fd: TdpFd) -> None:
        plain(fd)
        together(machine.runtime, lambda: closed.append(machine.vm.exporter.close(fd)))

    machine.vm.exporter.fd_install = install  # type: ignore[method-assign]
    fd = machine.vm.create_tdp_fd()
    assert closed == [True]
    assert fd.exported.released.value
    assert machine.vm.exported_tdps.all() == ()
    machine.expect()


def test_an_fd_is_closed_once(machine: Machine) -> None:
    fd = machine.vm.create_tdp_fd()
    assert [machine.vm.close_tdp_fd(fd) for _ in range(3)] == [True, False, False]
    assert machine.vm.exporter.files.value == ()
    machine.expect()


def test_of_many_that_close_an_fd_at_once_one_does(machine: Machine) -> None:
    fd, answers = machine.vm.create_tdp_fd(), list[bool]()
    together(machine.runtime, *[lambda: answers.append(machine.vm.close_tdp_fd(fd))] * 6)
    assert answers.count(True) == 1
    machine.expect()


def test_closing_keeps_what_others_still_use(machine: Machine) -> None:
    fd = machine.vm.create_tdp_fd()
    _, hwpt = machine.attach(fd)
    assert machine.vm.close_tdp_fd(fd)
    assert fd.metadata().root.exported.value
    hwpt.destroy()
    assert fd.exported.released.value


def test_fds_are_numbered_as_they_come(machine: Machine) -> None:
    first = machine.vm.create_tdp_fd()
    machine.vm.close_tdp_fd(first)
    assert machine.export().number.value == first.number.value + 1


def test_a_creation_that_fails_late_is_undone_once(make_machine: MakeMachine) -> None:
    """Defect R4: the file's release does everything, the error path nothing more."""
    failing = {"get_unused_fd"}
    machine = make_machine(fail_function=lambda step: step in failing)
    vcpu = machine.vcpu()
    assert refused(machine) == errno.EMFILE
    assert machine.vm.exported_tdps.all() == ()
    assert machine.vm.exporter.files.value == ()
    assert vcpu.root is not None
    assert not vcpu.root.exported.value
    assert vcpu.root.refcount.read() == 2
    machine.assert_sound()
    failing.clear()
    assert machine.export().metadata().root is vcpu.root
    machine.assert_sound()


# Metadata.


@pytest.mark.parametrize(("max_level", "largest"), [(1, 1), (2, 2), (3, 3)])
def test_the_metadata_says_what_the_tables_hold(
    make_machine: MakeMachine, max_level: int, largest: int
) -> None:
    """What an IOMMU driver checks: superpages, and the bits that no leaf of a level ever has."""
    machine = make_machine(max_level=max_level)
    metadata = machine.export().metadata()
    assert (metadata.type, metadata.max_huge_page_level) == (TYPE_EPT, largest)
    layout = machine.kvm.layout
    for level in range(1, metadata.level + 1):
        leaf = layout.leaf(16, level, writable=True, host_writable=True)
        assert bool(leaf & metadata.reserved_bits[level]) == (level > largest)
        if 1 < level <= largest:
            assert (
                layout.leaf(17, level, writable=True, host_writable=True)
                & metadata.reserved_bits[level]
            ), "not aligned"


# The list.


def test_an_object_that_was_released_cannot_be_listed(machine: Machine) -> None:
    exported = ExportedTdp(machine.kvm, 0)
    exported.released.value = True
    machine.vm.exported_tdps.reserve(exported)
    machine.expect("O17 list-corruption")
    assert machine.vm.exported_tdps.all() == ()


def test_an_object_that_was_never_listed_cannot_be_taken_off(machine: Machine) -> None:
    fd = machine.export()
    machine.vm.exported_tdps.remove(ExportedTdp(machine.kvm, 0))
    machine.expect("O17 list-corruption")
    assert machine.vm.exported_tdps.all() == (fd.exported,)


def test_an_address_space_can_be_exported_again_only_when_the_release_is_complete(
    machine: Machine,
) -> None:
    """The other half of R1: the object leaves the list last."""
    fd, answers = machine.vm.create_tdp_fd(), list[int]()
    machine.at("P17", lambda: together(machine.runtime, lambda: answers.append(refused(machine))))
    fd.put()
    assert answers == [errno.EEXIST]
