"""Requests, guest mode and flushes: how a task makes every running vCPU notice something."""

from __future__ import annotations

from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from mmu.memory.requests import (
    IN_GUEST_MODE,
    KVM_REQ_TLB_FLUSH,
    OUTSIDE_GUEST_MODE,
    Requests,
    RunState,
)
from mmu.paging.spte import SPTE_D
from stress.selftest.litmus.base import (
    Family,
    LitmusBench,
    Tasks,
    acceptable,
    forbidden,
    interesting,
)
from stress.selftest.litmus.tinyvm import ProbingGuest

FAMILY = Family("guests", "requests, guest mode and flushes")


class _GuestEntry:
    """A vCPU reduced to its entry: it flushes for a request, announces guest mode, and uses what it
    has cached."""

    def __init__(self, bench: LitmusBench) -> None:
        kvm = bench.vm().kvm
        self.requests = Requests(kvm)
        self.state = RunState(kvm.runtime, "vcpu0")
        self.requests.add(self.state)
        self.cached = True
        self.flushed = bench.cell("flushed")

    def sender(self) -> None:
        """Ask for a flush; on return nobody may use what was cached."""
        self.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH)
        self.flushed.value = 1

    def announce(self) -> None:
        """vcpu->mode = IN_GUEST_MODE; smp_mb()."""
        self.state.mode.store(IN_GUEST_MODE)

    def pending(self) -> bool:
        """kvm_request_pending(), and whether it was kicked."""
        return bool(self.state.requests.value) or self.state.mode.value != IN_GUEST_MODE

    def guest(self) -> str:
        """One access in guest mode."""
        return f"used {'after' if self.flushed.value else 'before'}"

    def leave(self) -> None:
        """Out of the guest: acknowledges a kick."""
        self.state.exits.value += 1
        self.state.mode.store(OUTSIDE_GUEST_MODE)


_ENTRY_GRADES = {
    "used before": acceptable(
        "the guest was in before the request, and its sender waits until it is out"
    ),
    "not entered": acceptable("the request was seen in time"),
    "used after": forbidden("the sender goes on, and the guest uses what it should have flushed"),
    "deadlock": forbidden("the sender waits for an exit that nobody will make"),
}


@FAMILY.program(
    "guest-entry",
    title="announce guest mode, look at the requests, enter",
    rule=(
        "requests are looked at after guest mode is announced; the sender sets the request before "
        "it looks at the mode"
    ),
    source=(
        "vcpu_enter_guest(), kvm_make_all_cpus_request(); "
        "Documentation/virt/kvm/vcpu-requests.rst; reference 2.16 P20"
    ),
    grades=_ENTRY_GRADES,
)
def guest_entry(bench: LitmusBench) -> Tasks:
    """Store buffering in disguise: one of the two sees the other."""
    entry = _GuestEntry(bench)

    def vcpu() -> str:
        entry.announce()
        seen = "not entered" if entry.pending() else entry.guest()
        entry.leave()
        return seen

    def sender() -> None:
        entry.sender()

    return Tasks(vcpu, sender)


@FAMILY.program(
    "guest-entry-check-first",
    title="look at the requests, announce guest mode, enter",
    rule="requests are looked at after guest mode is announced, or neither side sees the other",
    source="Documentation/virt/kvm/vcpu-requests.rst, IN_GUEST_MODE; reference 2.16 P20",
    broken=True,
    grades=_ENTRY_GRADES,
)
def guest_entry_check_first(bench: LitmusBench) -> Tasks:
    """The mirror image: the check comes before the announcement."""
    entry = _GuestEntry(bench)

    def vcpu() -> str:
        if entry.state.requests.value:
            return "not entered"
        entry.announce()
        seen = entry.guest()
        entry.leave()
        return seen

    def sender() -> None:
        entry.sender()

    return Tasks(vcpu, sender)


@FAMILY.program(
    "guest-entry-mode-first",
    title="the sender looks at the mode before it sets the request",
    rule="the sender sets the request before it looks at the mode",
    source="kvm_make_vcpu_request(), Documentation/virt/kvm/vcpu-requests.rst",
    broken=True,
    grades=_ENTRY_GRADES,
)
def guest_entry_mode_first(bench: LitmusBench) -> Tasks:
    """The other half of the handshake turned round."""
    entry = _GuestEntry(bench)

    def vcpu() -> str:
        entry.announce()
        seen = "not entered" if entry.pending() else entry.guest()
        entry.leave()
        return seen

    def sender() -> None:
        outside = entry.state.mode.value == OUTSIDE_GUEST_MODE
        entry.state.requests.fetch_or(KVM_REQ_TLB_FLUSH)
        if not outside:
            entry.sender()
        entry.flushed.value = 1

    return Tasks(vcpu, sender)


@FAMILY.program(
    "two-senders",
    title="two senders, one kick",
    rule=(
        "every sender waits until the vCPU has left the guest, also the one who finds it leaving "
        "already"
    ),
    source="kvm_make_all_cpus_request(), EXITING_GUEST_MODE; kvm_vcpu_exiting_guest_mode()",
    grades={**_ENTRY_GRADES},
)
def two_senders(bench: LitmusBench) -> Tasks:
    """The second one finds EXITING_GUEST_MODE and must not take it for outside."""
    entry = _GuestEntry(bench)

    def vcpu() -> str:
        entry.announce()
        seen = "not entered" if entry.pending() else entry.guest()
        entry.leave()
        return seen

    def sender() -> None:
        entry.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH)

    def second_sender() -> None:
        entry.sender()

    return Tasks(vcpu, sender, second_sender)


@FAMILY.program(
    "flush-against-guest",
    title="KVM_RUN with a filled TLB against a remote flush",
    rule="after kvm_flush_remote_tlbs() no vCPU uses a translation that it had cached before",
    source="kvm_flush_remote_tlbs(), reference 1.8, 2.16 P20; oracle O1",
    grades={
        "old before": acceptable("the guest ran before the flush was over"),
        "new before": acceptable("the vCPU has flushed, the sender has not gone on yet"),
        "new after": acceptable("the vCPU has flushed first"),
        "old after": forbidden(
            "a stale translation after the flush: the page may be somebody else's by now"
        ),
        "deadlock": forbidden("the sender waits for an exit that nobody will make"),
    },
)
def flush_against_guest(bench: LitmusBench) -> Tasks:
    """The whole run loop."""
    tiny = bench.vm()
    tiny.slot()
    vcpu = tiny.vcpu()
    vcpu.tlb.entries[0] = tiny.map(vcpu, 0)
    flushed = bench.cell("flushed")
    guest = ProbingGuest(vcpu, flushed)

    def runner() -> str:
        vcpu.run(guest, 1)
        return guest.seen

    def sender() -> None:
        tiny.vm.requests.make_all_cpus_request(KVM_REQ_TLB_FLUSH)
        flushed.value = 1

    return Tasks(runner, sender)


@FAMILY.program(
    "obsolete-root-request",
    title="KVM_RUN against the invalidation of its root",
    rule="after the request to drop obsolete roots no guest runs on one",
    source="kvm_mmu_zap_all_fast() steps 4 and 5, reference 2.7; oracle O12",
    grades={
        "valid before": acceptable("the guest ran before the invalidation"),
        "obsolete before": interesting(
            "the root is invalid and the guest still in it: the request has not come back yet"
        ),
        "valid after": acceptable("the vCPU has loaded another root"),
        "obsolete after": forbidden("the guest runs on a root whose tables may be gone"),
        "map-in-obsolete-root": forbidden("a fault has gone on with a root that was invalid"),
        "deadlock": forbidden("the sender waits for an exit that nobody will make"),
    },
)
def obsolete_root_request(bench: LitmusBench) -> Tasks:
    """Invalidation and request are one critical section; the vCPU looks at the request after it has
    announced guest mode."""
    tiny = bench.vm()
    vcpu, kvm = tiny.vcpu(), tiny.kvm
    done = bench.cell("request is back")
    vcpu.immediate_exit.store(False)

    class LookingGuest:
        seen = "not run"

        def next_access(self) -> int:
            assert vcpu.root is not None
            self.seen = (
                f"{'obsolete' if vcpu.root.invalid.value else 'valid'} "
                f"{'after' if done.value else 'before'}"
            )
            vcpu.immediate_exit.store(True)
            return 15

    guest = LookingGuest()

    def runner() -> str:
        vcpu.run(guest, 1)
        return guest.seen

    def zapper() -> None:
        kvm.mmu_lock.write_lock()
        tiny.vm.zapper.obsolete_roots()
        kvm.mmu_lock.write_unlock()
        done.value = 1

    return Tasks(runner, zapper)


class _Writes:
    """A guest that writes to gfn 0."""

    def next_access(self) -> int:
        """The write."""
        return 1


@FAMILY.program(
    "pml-on-against-write",
    title="D bits are cleared for logging while a vCPU is in the guest with PML off",
    rule="no vCPU sets a D bit that is logged nowhere once D bits have been cleared",
    source="kvm_mmu_update_cpu_dirty_logging(), KVM_REQ_UPDATE_CPU_DIRTY_LOGGING; reference 2.11",
    grades={
        "logged": acceptable("the write came after D was cleared, and PML was on"),
        "clean": acceptable("the write came before: the next one will be logged"),
        "lost": forbidden("D is set, so that the next write is not logged, and neither was this"),
    },
)
def pml_on_against_write(bench: LitmusBench) -> Tasks:
    """The vCPU's first write to a page, while logging is switched on."""
    tiny = bench.vm(have_exported_tdp=False)
    tiny.slot(flags=KVM_MEM_LOG_DIRTY_PAGES)
    slot, dirty = tiny.slot_object(), tiny.vm.dirty
    vcpu = tiny.vcpu()
    tiny.map(vcpu, 0, write=True)
    tiny.kvm.nr_memslots_dirty_logging.fetch_add(-1)
    vcpu.update_cpu_dirty_logging()
    root, bitmap = vcpu.root, slot.dirty_bitmap
    assert root is not None
    assert bitmap is not None
    bitmap.store(0, 0)

    def guest() -> None:
        vcpu.run(_Writes(), 1)

    def logger() -> None:
        dirty.update_cpu_dirty_logging(True)
        tiny.kvm.mmu_lock.read_lock()
        dirty.clear_dirty_slot(root, slot)
        tiny.kvm.mmu_lock.read_unlock()

    def after() -> str:
        if bitmap[0]:
            return "logged"
        return "lost" if tiny.spte(root, 0) & SPTE_D else "clean"

    return Tasks(guest, logger, after=after)
