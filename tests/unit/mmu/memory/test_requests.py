"""Requests and kicks: nobody in guest mode is missed, nobody outside is waited for."""

from __future__ import annotations

from mmu.machine.vcpu import Vcpu
from mmu.memory.requests import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_TLB_FLUSH,
    OUTSIDE_GUEST_MODE,
    RunState,
)
from mmu.variant import Variant
from tests.conftest import blocked, finish, together
from tests.model import Machine, ParkedGuest
from tests.patience import PATIENCE
from tests.unit.conftest import MakeMachine


def waits_for_exit(task: object) -> bool:
    """Whether a task waits for a vCPU to leave the guest."""
    return str(getattr(task, "waiting_for", "")).endswith("to leave guest mode")


def test_the_bits_are_those_of_the_kernel() -> None:
    assert KVM_REQ_TLB_FLUSH == 1 << 0
    assert KVM_REQ_MMU_FREE_OBSOLETE_ROOTS == 1 << 31


def test_a_vcpu_outside_of_the_guest_is_asked_and_not_waited_for(machine: Machine) -> None:
    vcpus = [machine.vcpu() for _ in range(3)]
    assert machine.vm.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH) == 0
    assert [vcpu.state.requests.value for vcpu in vcpus] == [KVM_REQ_TLB_FLUSH] * 3
    assert [vcpu.state.mode.value for vcpu in vcpus] == [OUTSIDE_GUEST_MODE] * 3


def test_requests_add_up_until_they_are_serviced(machine: Machine) -> None:
    vcpu = machine.vcpu()
    machine.vm.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH)
    machine.vm.requests.make_all_cpus_request(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
    assert vcpu.state.requests.value == KVM_REQ_TLB_FLUSH | KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
    vcpu.service_requests()
    assert vcpu.state.requests.value == 0


def test_a_kick_waits_until_the_vcpu_has_left_the_guest(machine: Machine) -> None:
    machine.add_slot(0, 4)
    vcpu, guest, kicked = machine.vm.create_vcpu(), ParkedGuest(), list[int]()
    runner = machine.runtime.spawn("vcpu", lambda: vcpu.run(guest, 1))
    assert guest.inside.wait(PATIENCE)
    kicker = blocked(
        machine.runtime,
        lambda: kicked.append(machine.vm.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH)),
        waits_for_exit,
    )
    assert vcpu.state.mode.value == EXITING_GUEST_MODE
    assert kicked == []
    guest.leave.set()
    finish(machine.runtime, kicker, runner)
    assert kicked == [1]
    assert vcpu.state.mode.value == OUTSIDE_GUEST_MODE
    assert vcpu.state.requests.value == 0, "it came back for its access and did what it was asked"
    assert vcpu.stat.tlb_flush == 2, "once for the root, once for the request"


def test_two_kickers_share_one_exit(machine: Machine) -> None:
    machine.add_slot(0, 4)
    vcpu, guest, kicked = machine.vm.create_vcpu(), ParkedGuest(), list[int]()

    def kick() -> None:
        kicked.append(machine.vm.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH))

    runner = machine.runtime.spawn("vcpu", lambda: vcpu.run(guest, 1))
    assert guest.inside.wait(PATIENCE)
    kickers = [blocked(machine.runtime, kick, waits_for_exit) for _ in range(2)]
    guest.leave.set()
    finish(machine.runtime, runner, *kickers)
    assert kicked == [1, 1]


def test_a_vcpu_that_left_and_came_back_has_seen_the_request(machine: Machine) -> None:
    """The kicker counts exits: a vCPU that is in the guest again is not the one it has to wait
    for."""
    vcpu = machine.vcpu()
    state = vcpu.state
    state.mode.store(IN_GUEST_MODE)
    before = state.exits.value
    state.exits.value += 1
    together(machine.runtime, lambda: machine.vm.requests._wait_for_exit(state, before))
    state.mode.store(OUTSIDE_GUEST_MODE)


class _AskedAtTheLastMoment(Vcpu):
    """A vCPU to which a request is made after it has announced guest mode and before it has
    looked."""

    asked = False

    def exit_request(self) -> bool:
        if not self.asked:
            self.asked = True
            assert self.state.mode.value == IN_GUEST_MODE
            self.state.requests.fetch_or(KVM_REQ_TLB_FLUSH)
        return super().exit_request()


def test_a_request_made_while_the_vcpu_announces_itself_is_not_lost(
    make_machine: MakeMachine,
) -> None:
    """Announce guest mode, then look at the requests: either the sender sees the mode or the vCPU
    sees the request."""
    machine = make_machine(
        variants=[Variant("asked", "a request at the last moment", (_AskedAtTheLastMoment,))]
    )
    machine.add_slot(0, 4)
    vcpu = machine.vm.create_vcpu()
    pending_in_the_guest: list[int] = []
    machine.on(
        guest_enter=lambda entered: pending_in_the_guest.append(entered.state.requests.value)
    )
    machine.run(vcpu, 1)
    assert pending_in_the_guest
    assert not any(pending_in_the_guest)
    assert vcpu.stat.tlb_flush == 2, "once for the root, once for the request"


def test_vcpus_come_and_go(machine: Machine) -> None:
    requests = machine.vm.requests
    stays, goes = RunState(machine.runtime, "stays"), RunState(machine.runtime, "goes")
    requests.add(stays)
    requests.add(goes)
    requests.remove(goes)
    requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH)
    assert (stays.requests.value, goes.requests.value) == (KVM_REQ_TLB_FLUSH, 0)


def test_vcpus_that_come_online_together_are_all_known(machine: Machine) -> None:
    count = 8
    together(machine.runtime, *[machine.vcpu] * count)
    assert len(machine.vm.vcpus()) == count
    assert sorted(vcpu.number for vcpu in machine.vm.vcpus()) == list(range(count))
    machine.vm.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH)
    assert all(vcpu.state.requests.value for vcpu in machine.vm.vcpus())
