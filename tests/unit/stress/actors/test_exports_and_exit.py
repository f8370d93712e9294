"""Consumers, exporters and the end of the process: who opens, shares and closes the TDP FD, and
what a device does meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve

from mmu.errors import KvmError
from stress.actors.base import Actor
from stress.actors.consumer import Consumer, SharedTdpFd
from stress.engines.session import Session
from stress.scenario.operations import Op
from stress.scenario.types import (
    ConsumerSettings,
    Count,
    DirtyLogSettings,
    Disturbances,
    ExitSettings,
    ExporterSettings,
    Flag,
    HostSettings,
    Memory,
    MemslotSettings,
    NxSettings,
    Positive,
    Rate,
    Share,
)
from tests.conftest import blocked, finish
from tests.unit.stress.actors.conftest import HUGE, MakeStage, the

NOBODY = {
    "memslot_worker": MemslotSettings(enabled=Flag(False)),
    "consumer": ConsumerSettings(devices=Count(0)),
}
ON = Flag(True)
OFF = Flag(False)
ON = Flag(True)


def names(session: Session) -> list[str]:
    return [actor.name for actor in session.actors]


# Who takes part.


@pytest.mark.parametrize(
    ("actors", "expected"),
    [
        ({}, []),
        ({"host": HostSettings(threads=Count(2))}, ["host0", "host1"]),
        ({"dirty_log": DirtyLogSettings(enabled=ON)}, ["dirty-logger"]),
        ({"nx": NxSettings(enabled=ON)}, ["nx-admin", "nx-recovery"]),
        ({"nx": NxSettings(enabled=ON, toggles=OFF)}, ["nx-recovery"]),
        ({"nx": NxSettings(enabled=ON, recovers=OFF)}, ["nx-admin"]),
        ({"nx": NxSettings(toggles=ON, recovers=ON)}, []),
        ({"exporter": ExporterSettings(threads=Count(2))}, ["exporter0", "exporter1"]),
        ({"exit": ExitSettings(enabled=ON)}, ["exit"]),
        (
            {"consumer": ConsumerSettings(devices=Count(2))},
            ["device0", "iopf0", "device1", "iopf1"],
        ),
        ({"memslot_worker": MemslotSettings()}, ["memslot-worker"]),
    ],
)
def test_those_take_part_that_the_scenario_names(
    staged: MakeStage, actors: dict[str, Any], expected: list[str]
) -> None:
    assert names(staged(**(NOBODY | actors))) == ["vcpu0", *expected]


def test_without_the_feature_nobody_exports(staged: MakeStage) -> None:
    vm = evolve(HUGE, have_exported_tdp=OFF)
    actors = {
        **NOBODY,
        "exporter": ExporterSettings(threads=Count(2)),
        "consumer": ConsumerSettings(devices=Count(2)),
    }
    assert names(staged(vm=vm, **actors)) == ["vcpu0"]


def test_the_end_of_the_process_waits_for_its_threads_and_not_for_its_devices(
    staged: MakeStage,
) -> None:
    session = staged(
        exit=ExitSettings(enabled=ON),
        host=HostSettings(threads=Count(1)),
        exporter=ExporterSettings(threads=Count(1)),
    )
    waited_for = [actor.name for actor in the(session, "exit")._others]
    assert waited_for == ["vcpu0", "memslot-worker", "host0", "exporter0"]


# Exporters.


def flapping(staged: MakeStage, **config: Any) -> tuple[Session, list[Any]]:
    session = staged(
        **NOBODY, exporter=ExporterSettings(threads=Count(2), hold_s=Share(0), **config)
    )
    return session, [the(session, f"exporter{number}") for number in range(2)]


def test_an_exporter_exports_and_closes(staged: MakeStage) -> None:
    session, (first, _) = flapping(staged)
    for _ in range(3):
        first.step()
    totals = session.totals()
    assert (totals["exports"], totals["unexports"], totals["exports_refused"]) == (3, 3, 0)
    assert session.vm.exporter.files.value == ()
    assert session.vm.exported_tdps.all() == ()


def test_while_somebody_else_exports_it_is_refused(staged: MakeStage) -> None:
    session, (first, _) = flapping(staged)
    fd = session.vm.create_tdp_fd(0)
    first.step()
    assert session.totals()["exports_refused"] == 1
    assert session.vm.exported_tdps.all() == (fd.exported,)
    session.vm.close_tdp_fd(fd)


def test_a_failure_by_injection_is_a_refusal_that_leaves_nothing(staged: MakeStage) -> None:
    session, (first, _) = flapping(staged)
    session.vm.kvm.fail_function = lambda step: step == "get_unused_fd"
    first.step()
    assert session.totals()["exports_refused"] == 1
    assert session.vm.exported_tdps.all() == ()


def test_only_the_others_close_what_they_find(staged: MakeStage) -> None:
    session, (first, second) = flapping(staged, closes_others=ON)
    second.step()
    assert session.totals()["unexports"] == 0
    session.vm.create_tdp_fd(0)
    second.step()
    assert session.totals()["unexports"] == 1
    assert session.vm.exporter.files.value == ()
    first.step()
    assert session.totals()["exports"] == 1
    second.step()
    assert session.totals()["unexports"] == 2, "nobody closes twice"


def test_an_exporter_keeps_one_fd_until_it_closes_it(staged: MakeStage) -> None:
    session, (first, second) = flapping(staged)
    for actor, name in (
        (first, "close"),
        (first, "export"),
        (first, "export"),
        (second, "export"),
        (first, "close"),
        (first, "close"),
    ):
        actor.perform(Op(name))
    totals = session.totals()
    assert (totals["exports"], totals["unexports"], totals["exports_refused"]) == (1, 1, 1)
    assert session.vm.exported_tdps.all() == ()


def test_a_run_that_ends_while_an_exporter_holds_its_fd_leaves_nothing(staged: MakeStage) -> None:
    session, (first, second) = flapping(staged)
    first.perform(Op("export"))
    second.perform(Op("close-any"))
    first.perform(Op("close"))
    assert session.totals()["unexports"] == 1, "somebody else was faster"
    first.perform(Op("export"))
    first.end()
    assert session.vm.exported_tdps.all() == ()


# The shared fd.


def test_the_first_device_opens_and_the_last_one_closes(staged: MakeStage) -> None:
    session = staged(**NOBODY)
    assert session.stage is not None
    fds = SharedTdpFd(session.stage)
    first, second = fds.open(), fds.open()
    assert first is second
    fds.close()
    assert session.vm.exported_tdps.all() == (first.exported,)
    fds.close()
    assert session.vm.exported_tdps.all() == ()
    totals = session.totals()
    assert (totals["exports"], totals["unexports"]) == (1, 1)


def test_while_it_is_recycled_nobody_gets_it_back_before_the_last_has_let_go(
    staged: MakeStage,
) -> None:
    session = staged(**NOBODY)
    assert session.stage is not None
    fds = SharedTdpFd(session.stage)
    old = fds.open()
    fds.open()
    fds.recycling.value = True
    fds.close()
    with pytest.raises(KvmError, match="about to be closed"):
        fds.open()
    fds.close()
    assert not fds.recycling.value
    fresh = fds.open()
    assert fresh is not old
    fds.close()
    assert session.totals()["unexports"] == 2


# Devices.


def consumer(staged: MakeStage, **config: Any) -> tuple[Session, Consumer, Any]:
    session = staged(
        memory=Memory(
            fixed_pages=Positive(64),
            churn_slots=Count(0),
            smm_pages=Count(0),
            smm_churn_pages=Count(0),
        ),
        memslot_worker=MemslotSettings(enabled=OFF),
        consumer=ConsumerSettings(**({"devices": Count(1), "reexports_per_s": Rate(0)} | config)),
    )
    return session, the(session, "device0"), the(session, "iopf0")


def served(session: Session, worker: Actor, work: Callable[[], None]) -> None:
    """Do a device's work in a thread, with its IO page fault worker at hand."""
    task = session.runtime.spawn("device0", work)
    while not session.runtime.join(task, 0):
        if len(worker.queue):  # type: ignore[attr-defined]
            worker.step()
    finish(session.runtime, task)


def test_a_scatter_list_that_faults_is_one_request_and_is_tried_again(staged: MakeStage) -> None:
    session, device, worker = consumer(staged, group=Positive(3))
    device.begin()
    groups: list[list[tuple[int, bool]]] = []
    assert device.hwpt is not None
    handle = device.hwpt.io_fault_group
    device.hwpt.io_fault_group = lambda group: groups.append(list(group)) or handle(group)  # type: ignore[method-assign,func-returns-value]
    served(session, worker, lambda: device._dma([(3, True), (4, False), (5, True)]))
    assert groups == [[(3, True), (4, False), (5, True)]]
    assert device.accesses == 3
    served(session, worker, lambda: device._dma([(3, True), (9, True)]))
    assert groups[1:] == [[(9, True)]], "only what is missing is asked for"
    assert (device.accesses, device.aborts) == (5, 0)
    device._detach()


def test_a_page_is_asked_for_ahead_and_not_waited_for(staged: MakeStage) -> None:
    session, device, worker = consumer(staged)
    device.prefetch(3, write=True)
    assert len(worker.queue) == 0, "it is not attached"
    device.begin()
    device.prefetch(3, write=True)
    assert len(worker.queue) == 1
    worker.step()
    served(session, worker, lambda: device._dma([(3, True)]))
    totals = session.totals()
    assert (totals["prefetches"], totals["io_faults"], totals["device_accesses"]) == (1, 1, 1)
    device._detach()


@pytest.mark.parametrize("group", [1, 2])
def test_a_device_that_asks_ahead_asks_for_what_comes_next(staged: MakeStage, group: int) -> None:
    _, device, _ = consumer(
        staged, group=Positive(group), bursts=Positive(1), prefetch_share=Share(1.0)
    )
    device.begin()
    ahead, burst = device.choose()
    first = burst.pieces()[0]
    assert ahead == Op(first.name.replace("dma", "prefetch"), first.args)
    device._detach()


def test_a_device_with_ats_has_a_tlb_of_its_own(staged: MakeStage) -> None:
    session, device, worker = consumer(staged, ats=ON)
    device.begin()
    served(session, worker, lambda: device._dma([(3, True)]))
    served(session, worker, lambda: device._dma([(3, True)]))
    assert session.totals()["device_devtlb_hits"] == 1
    device._detach()


def test_a_group_with_one_bad_address_is_aborted_as_a_whole(staged: MakeStage) -> None:
    session, device, worker = consumer(staged, group=Positive(2))
    device.begin()
    beyond = session.vm.kvm.geometry.max_gfn
    served(session, worker, lambda: device._dma([(beyond, False), (3, True)]))
    assert (device.accesses, device.aborts) == (0, 1)
    totals = session.totals()
    assert (totals["io_faults"], totals["io_faults_failed"]) == (1, 1), (
        "after the first failure the rest is not handled"
    )
    device._detach()


def test_a_device_that_cannot_be_attached_lets_go_of_the_fd(staged: MakeStage) -> None:
    session, device, _ = consumer(staged)
    session.vm.kvm.fail_function = lambda step: step == "hwpt_attach"
    device.begin()
    assert device.hwpt is None
    assert session.totals()["attach_failures"] == 1
    assert session.vm.exported_tdps.all() == ()
    session.vm.kvm.fail_function = None
    assert device._attach()
    assert device.device.root.value is session.vm.exported_tdps.all()[0].root.value
    device._detach()


def test_a_device_waits_while_somebody_else_exports(staged: MakeStage) -> None:
    session, device, _ = consumer(staged)
    fd = session.vm.create_tdp_fd(0)
    device.begin()
    assert device.hwpt is None
    assert session.totals()["exports_refused"] == 1
    session.vm.close_tdp_fd(fd)
    assert device._attach()
    device._detach()


def test_the_first_device_has_the_fd_recycled_and_every_device_lets_go(staged: MakeStage) -> None:
    session, device, worker = consumer(staged, devices=Count(2), reexports_per_s=Rate(1e6))
    other = the(session, "device1")
    device.begin()
    other.begin()
    assert other._reexport_ns == 0, "one device decides"
    device.step()
    assert device.hwpt is None
    assert session.vm.exported_tdps.all() != ()
    other.step()
    assert other.hwpt is None
    assert session.vm.exported_tdps.all() == ()
    assert session.totals()["unexports"] == 1
    assert not len(worker.queue)


def test_without_recycling_the_fd_stays_open(staged: MakeStage) -> None:
    session, device, worker = consumer(staged)
    device.begin()
    for _ in range(3):
        served(session, worker, device.step)
    assert device.hwpt is not None
    assert session.totals()["unexports"] == 0
    device._detach()


def test_dma_is_done_while_attached_and_only_then(staged: MakeStage) -> None:
    session, device, worker = consumer(staged)
    for op in (Op("dma-write", (3,)), Op("detach"), Op("dma", (6, 9))):
        device.perform(op)
    assert (device.accesses, device.device.walks, session.totals()["exports"]) == (0, 0, 0)
    for _ in range(2):
        device.perform(Op("attach"))
    assert session.totals()["exports"] == 1
    for op in (Op("dma-write", (3,)), Op("dma-read", (3,)), Op("dma", (6, 9))):
        served(session, worker, lambda op=op: device.perform(op))  # type: ignore[misc]
    assert (device.accesses, session.totals()["io_faults"]) == (4, 2), "gfn 3 twice, then 3 and 4"
    device.perform(Op("detach"))
    assert device.hwpt is None
    assert session.vm.exported_tdps.all() == ()


# The end.


def ending(staged: MakeStage, *, vm_first: bool) -> Session:
    return staged(**NOBODY, exit=ExitSettings(enabled=ON, vm_first=Flag(vm_first)))


@pytest.mark.parametrize("vm_first", [True, False])
def test_the_memory_goes_before_files_are_closed(staged: MakeStage, vm_first: bool) -> None:
    session = ending(staged, vm_first=vm_first)
    fd = session.vm.create_tdp_fd(0)
    for actor in session.actors:
        actor.gone.value = True
    the(session, "exit").end()
    assert session.vm.kvm.mm_gone.value
    assert session.totals()["process_exits"] == 1
    assert not session.vm.destroyed.value
    session.vm.close_tdp_fd(fd)
    assert session.vm.destroyed.value == vm_first, "the last file destroys the VM"
    session.take_down()
    assert session.vm.destroyed.value


def test_the_process_does_not_end_before_its_threads(staged: MakeStage) -> None:
    session = ending(staged, vm_first=False)
    task = blocked(
        session.runtime,
        the(session, "exit").end,
        at=lambda task: "other threads" in (task.waiting_for or ""),
    )
    assert not session.vm.kvm.mm_gone.value
    for actor in session.actors:
        actor.gone.value = True
    finish(session.runtime, task)
    assert session.vm.kvm.mm_gone.value


def test_a_device_goes_on_until_the_memory_has_gone(staged: MakeStage) -> None:
    session = staged(
        memslot_worker=MemslotSettings(enabled=OFF),
        exit=ExitSettings(enabled=ON),
        disturbances=Disturbances(delay_share=Share(0)),
    )
    device, worker = the(session, "device0"), the(session, "iopf0")
    device.begin()
    others = [actor for actor in session.actors if actor not in (device, worker)]

    def dies() -> None:
        if device.accesses + device.aborts > 5:
            for actor in others:
                actor.gone.value = True
            the(session, "exit").end()

    task = session.runtime.spawn("device0", device.end)
    while not session.runtime.join(task, 0):
        if len(worker.queue):
            worker.step()
        if not session.vm.kvm.mm_gone.value:
            dies()
    finish(session.runtime, task)
    assert device.aborts > 0
    assert worker.closed.value
    assert device.hwpt is None
    assert session.vm.exported_tdps.all() == ()
