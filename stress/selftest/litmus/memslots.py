"""Memslots: two copies swapped under SRCU, invalidations that see one of them, and generations for
MMIO."""

from __future__ import annotations

from mmu.errors import KvmError
from mmu.memory.host import tag_of
from mmu.memory.memslots import MemoryRegion
from mmu.memory.requests import KVM_REQ_TLB_FLUSH
from mmu.paging.spte import SPTE_MMIO
from mmu.paging.table import RootPage
from mmu.tdp.fault import FaultHandler
from mmu.variant import Variant
from stress.selftest.litmus.base import (
    Family,
    LitmusBench,
    Tasks,
    acceptable,
    forbidden,
    interesting,
)
from stress.selftest.litmus.tinyvm import TinyVm

FAMILY = Family("memslots", "memslots")


@FAMILY.program(
    "slot-lookup-against-delete",
    title="a look-up under SRCU against the deletion of the slot",
    rule="a slot that was looked up inside an SRCU section lives until the section ends",
    source="kvm_swap_active_memslots() synchronize_srcu(); reference 2.9",
    grades={
        "slot of 1 page before": acceptable("the look-up came first; the deletion waits"),
        "invalid before": acceptable("the slot is on its way out: faults on it try again"),
        "none before": acceptable("the slot is gone, the ioctl has not returned yet"),
        "none after": acceptable("the slot is gone"),
        "slot of 1 page after": forbidden("the deletion has not waited for the reader"),
        "invalid after": forbidden("the deletion has not waited for the reader"),
        "use-after-free": forbidden("the slot was freed under its reader"),
    },
)
def slot_lookup_against_delete(bench: LitmusBench) -> Tasks:
    """The slot object is poisoned when it is freed."""
    tiny = bench.vm(have_exported_tdp=False)
    tiny.slot()
    deleted = bench.cell("deleted")

    def reader() -> str:
        token = tiny.kvm.srcu.read_lock()
        slot = tiny.vm.memslots.gfn_to_memslot(0, 0)
        when = "after" if deleted.value else "before"
        seen = (
            "none" if slot is None else "invalid" if slot.invalid else f"slot of {slot.npages} page"
        )
        tiny.kvm.srcu.read_unlock(token)
        return f"{seen} {when}"

    def deleter() -> None:
        tiny.vm.set_user_memory_region(MemoryRegion(0, 0, 0))
        deleted.value = 1

    return Tasks(reader, deleter)


@FAMILY.program(
    "fault-against-delete",
    title="a fault in an exported root against the deletion of its slot",
    rule=(
        "when a slot is deleted nothing of it stays mapped in a root that is kept valid: SRCU "
        "keeps late faults off"
    ),
    source="reference 2.9 guarantees, 1.9; RFC PATCH 36/42",
    grades={
        "FIXED, none": acceptable("mapped before the zap of the exported root"),
        "RETRY, none": acceptable("the slot was invalid by then"),
        "EMULATE, none": acceptable(
            "there was no slot any more, and while slots are in flux nothing is cached"
        ),
        "EMULATE, MMIO": acceptable("there was no slot any more"),
        "FIXED, mapped": forbidden("a page of the deleted slot is mapped in a valid root for ever"),
        "use-after-free": forbidden("the fault has used a freed slot"),
    },
)
def fault_against_delete(bench: LitmusBench) -> Tasks:
    """The seed's root: never invalid, so the stale check is no help."""
    tiny = bench.vm()
    region = tiny.slot()
    tiny.vm.host.fault_in(region, 0)
    tiny.export()
    vcpu = tiny.vcpu()
    root = vcpu.root
    assert root is not None

    def fault() -> str:
        return tiny.fault(vcpu, 0).name

    def deleter() -> None:
        tiny.vm.set_user_memory_region(MemoryRegion(0, 0, 0))

    def after() -> str:
        if tiny.spte(root, 0) & SPTE_MMIO:
            return "MMIO"
        return "none" if tiny.mapped(root, 0) == "none" else "mapped"

    return Tasks(fault, deleter, after=after)


@FAMILY.program(
    "two-creates",
    title="two slots for one gfn",
    rule="memslot updates are serialised by slots_lock; one of two overlapping slots is refused",
    source="kvm_set_memory_region(); reference 2.9",
    grades={
        "created, refused": acceptable("left was first"),
        "refused, created": acceptable("right was first"),
        "created, created": forbidden("two slots for one gfn"),
        "refused, refused": forbidden("refused without reason"),
    },
)
def two_creates(bench: LitmusBench) -> Tasks:
    """Check and insertion are one critical section."""
    tiny = bench.vm(have_exported_tdp=False)
    regions = [tiny.vm.host.mmap(1), tiny.vm.host.mmap(1)]

    def create(slot: int) -> str:
        try:
            tiny.vm.set_user_memory_region(MemoryRegion(slot, 0, 1, regions[slot]))
        except KvmError:
            return "refused"
        return "created"

    def left() -> str:
        return create(0)

    def right() -> str:
        return create(1)

    return Tasks(left, right)


@FAMILY.program(
    "swap-against-invalidation",
    title="new slots are published while an invalidation is under way",
    rule=(
        "start and end of an invalidation see the same slots: new ones are published when none is "
        "active"
    ),
    source=(
        "kvm_swap_active_memslots() mn_active_invalidate_count; B64, reference 2.1 order rule 4, "
        "2.9"
    ),
    grades={
        "old, old": acceptable("the invalidation was first; the swap has waited for its end"),
        "new, new": acceptable("the swap was first"),
        "old, new": forbidden(
            "the end looks at other slots than the start: its counts get out of balance"
        ),
        "deadlock": forbidden("the swap waits for an end that has come"),
    },
)
def swap_against_invalidation(bench: LitmusBench) -> Tasks:
    """The counter, its spinlock and the wait, with a word for the slots."""
    tiny = bench.vm(have_exported_tdp=False)
    kvm, slots = tiny.kvm, bench.cell("slots", "old")

    def count(amount: int) -> None:
        with kvm.mn_invalidate_lock:
            kvm.mn_active_invalidate_count.add(amount)

    def notifier() -> str:
        count(1)
        at_start = slots.value
        at_end = slots.value
        count(-1)
        return f"{at_start}, {at_end}"

    def updater() -> None:
        tiny.vm.memslots.wait_for_invalidations(lambda: slots.store("new"))

    return Tasks(notifier, updater)


@FAMILY.program(
    "mmio-generation",
    title="an MMIO SPTE is looked at while a slot is created at its gfn",
    rule=(
        "when a slot is there no older MMIO SPTE is honoured: the generation that it keeps is not "
        "current any more"
    ),
    source="check_mmio_spte(), kvm_arch_memslots_updated(); B55, reference 2.9, oracle O13",
    grades={
        "before, emulated": acceptable("no slot yet"),
        "before, looked up": acceptable("slots are in flux, or the new one is there already"),
        "after, looked up": acceptable("the new slot is there"),
        "after, emulated": forbidden("the access is emulated although there is memory"),
    },
)
def mmio_generation(bench: LitmusBench) -> Tasks:
    """Begun after the ioctl has returned, the check must fail."""
    return _mmio(bench)


class GenerationIgnored(FaultHandler):
    """An MMIO SPTE holds for ever."""

    def is_current(self, made: int, generation: int) -> bool:  # noqa: ARG002 - nobody looks
        """Always."""
        return True


@FAMILY.program(
    "mmio-generation-ignored",
    title="an MMIO SPTE is honoured whatever its generation",
    rule="an MMIO SPTE holds for one generation of the memslots",
    source="check_mmio_spte(); B55",
    broken=True,
    variants=(Variant("generation-ignored", "MMIO SPTEs hold for ever", (GenerationIgnored,)),),
    grades=mmio_generation.grades,
)
def mmio_generation_ignored(bench: LitmusBench) -> Tasks:
    """Nobody compares."""
    return _mmio(bench)


def _mmio(bench: LitmusBench) -> Tasks:
    tiny = bench.vm(have_exported_tdp=False)
    kvm = tiny.kvm
    region = tiny.vm.host.mmap(1)
    tiny.vm.host.assign(region, tag_of(0, 0))
    vcpu = tiny.vcpu()
    tiny.fault(vcpu, 0)
    assert vcpu.root is not None
    spte = tiny.spte(vcpu.root, 0)
    assert spte & SPTE_MMIO
    created = bench.cell("created", False)

    def misconfig() -> str:
        when = "after" if created.value else "before"
        token = kvm.srcu.read_lock()
        honoured = tiny.vm.faults.check_mmio_spte(0, 0, spte, vcpu)
        kvm.srcu.read_unlock(token)
        return f"{when}, {'emulated' if honoured else 'looked up'}"

    def creator() -> None:
        tiny.vm.set_user_memory_region(MemoryRegion(0, 0, 1, region))
        created.value = True

    return Tasks(misconfig, creator)


@FAMILY.program(
    "mmio-fault-against-create",
    title="a fault without a slot while one is created there",
    rule="an MMIO SPTE that was made from the old slots does not hold for the new ones",
    source="mark_mmio_spte(), ddfd1730fd82; B55, oracle O13",
    grades={
        "EMULATE, nothing": interesting("slots were in flux: emulated, and nothing is cached"),
        "EMULATE, old MMIO SPTE": acceptable(
            "made before the update, and of an older generation now"
        ),
        "FIXED, page": acceptable("the fault has found the new slot"),
        "EMULATE, current MMIO SPTE": forbidden(
            "the new slot is hidden behind an MMIO SPTE that holds"
        ),
        "RETRY, nothing": forbidden("nothing was in the way"),
    },
)
def mmio_fault_against_create(bench: LitmusBench) -> Tasks:
    """The generation that goes into the SPTE is read after the look-up, in one SRCU section with
    it."""
    tiny = bench.vm(have_exported_tdp=False)
    region = tiny.vm.host.mmap(1)
    tiny.vm.host.assign(region, tag_of(0, 0))
    tiny.vm.host.fault_in(region, 0)
    vcpu = tiny.vcpu()
    root = vcpu.root
    assert root is not None

    def fault() -> str:
        return tiny.fault(vcpu, 0).name

    def creator() -> None:
        tiny.vm.set_user_memory_region(MemoryRegion(0, 0, 1, region))

    return Tasks(fault, creator, after=lambda: _what_stands(tiny, root))


def _what_stands(tiny: TinyVm, root: RootPage) -> str:
    """What the entry for gfn 0 is."""
    spte = tiny.spte(root, 0)
    if not spte & SPTE_MMIO:
        return "page" if tiny.mapped(root, 0) != "none" else "nothing"
    generation = tiny.vm.memslots.peek(0).generation.value
    current = tiny.vm.faults.is_current(tiny.kvm.layout.mmio_generation(spte), generation)
    return f"{'current' if current else 'old'} MMIO SPTE"


@FAMILY.program(
    "mmio-generation-wraps",
    title="a fault without a slot while the generations wrap",
    rule=(
        "nothing is cached while slots are in flux: what is made between the wrap's zap and the "
        "new generation would survive"
    ),
    source="kvm_mmu_invalidate_mmio_sptes(), ddfd1730fd82, 152482580a1b; B55, R9, oracle O13",
    grades={
        "EMULATE, nothing": acceptable("in flux, or zapped at the wrap"),
        "EMULATE, old MMIO SPTE": acceptable("made under a generation that is over"),
        "FIXED, page": acceptable("the fault has found the new slot"),
        "EMULATE, current MMIO SPTE": forbidden(
            "an SPTE of before the wrap holds again and hides the new slot"
        ),
    },
)
def mmio_generation_wraps(bench: LitmusBench) -> Tasks:
    """Two bits of generation: the second of the two updates brings back what the first has begun
    with."""
    tiny = bench.vm(mmio_gen_bits=2)
    tiny.slot(gfn=8, slot=2)
    regions = [tiny.vm.host.mmap(1), tiny.vm.host.mmap(1)]
    for number, region in enumerate(regions):
        tiny.vm.host.assign(region, tag_of(0, number * 4))
        tiny.vm.host.fault_in(region, 0)
    tiny.export()
    vcpu = tiny.vcpu()
    root = vcpu.root
    assert root is not None

    def fault() -> str:
        return tiny.fault(vcpu, 0).name

    def creator() -> None:
        tiny.vm.set_user_memory_region(MemoryRegion(1, 4, 1, regions[1]))
        tiny.vm.set_user_memory_region(MemoryRegion(0, 0, 1, regions[0]))

    return Tasks(fault, creator, after=lambda: _what_stands(tiny, root))


@FAMILY.program(
    "two-slots-one-mapping",
    title="a range behind two slots is unmapped while another thread takes a page of the first",
    rule=("when a notifier finds a page unmapped, no TLB has a translation of it any more"),
    source="kvm_handle_hva_range(), kvm_unmap_gfn_range(); reference 2.10, oracle O1",
    grades={
        "flushed": acceptable("the task that zapped the page has flushed"),
        "owed": forbidden("the page is taken before the flush that it is owed"),
    },
)
def two_slots_one_mapping(bench: LitmusBench) -> Tasks:
    """The walk of the second slot may yield before it zaps a leaf."""
    tiny = bench.vm(have_exported_tdp=False)
    vm = tiny.vm
    region = vm.host.mmap(4)
    for slot, first in ((0, 0), (1, 2)):
        vm.host.assign(region, tag_of(0, first), first, 2)
        vm.set_user_memory_region(MemoryRegion(slot, first, 2, region, first_page=first))
    vcpu = tiny.vcpu()
    for gfn in (0, 3):
        tiny.map(vcpu, gfn)
    vcpu.state.requests.fetch_and(0)
    notifier = vm.notifier

    def whole_range() -> None:
        notifier.invalidate_range_start(region, 0, 4)
        notifier.invalidate_range_end(region, 0, 4)

    def one_page() -> str:
        notifier.invalidate_range_start(region, 0, 1)
        flushed = vcpu.state.requests.value & KVM_REQ_TLB_FLUSH
        notifier.invalidate_range_end(region, 0, 1)
        return "flushed" if flushed else "owed"

    return Tasks(whole_range, one_page)
