"""Doing what a recording asks for with the model: one method for each kind of operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from mmu.errors import KvmError
from mmu.kvm import VmConfig
from mmu.machine.vcpu import Vcpu
from mmu.machine.vm import VirtualMachine
from mmu.memory.host import Region
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, MemoryRegion
from mmu.memory.requests import (
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TLB_FLUSH_CURRENT,
)
from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Geometry
from mmu.paging.spte import (
    ADDR_MASK,
    HOST_WRITABLE,
    MMU_WRITABLE,
    PFN_SHIFT,
    SPTE_A,
    SPTE_D,
    SPTE_R,
    SPTE_W,
    SPTE_X,
)
from mmu.paging.table import RootPage, RootRole, ShadowPage
from mmu.probe import Instrument, Probe, override
from mmu.report import Reporter
from mmu.tdp.fault import RetPf
from mmu.variant import Variant
from stress.trace.conform_parts import TELLING, RecordedHost, ReplayRuntime, TracedRole
from stress.trace.conform_script import PAGE, ConformScript, Operation
from stress.trace.conform_translate import INVALID_ROLE
from stress.trace.conform_values import BEGIN, JUDGED, EntryValue, Happening, model_entry

SIMPLE: Final = frozenset({"none", "leaf", "mmio"})
"""Entries that stand for themselves: no table hangs on them, and nobody has frozen them."""
RIGHTS: Final = {
    "r": SPTE_R,
    "w": SPTE_W,
    "x": SPTE_X,
    "A": SPTE_A,
    "D": SPTE_D,
    "h": HOST_WRITABLE,
    "m": MMU_WRITABLE,
}
"""The model's bits by the letters of `Entry.rights`."""
BLOCK: Final = 9
"""Frames keep their place in a block of 2^9, so that huge pages stay aligned."""
SMM_SHIFT: Final = 24
"""role.smm in the role word."""


class Frames:
    """The recorded machine's frames as frames of a small memory."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}
        self._recorded: list[int] = [0]  # block 0 stays unused

    def add(self, frame: int) -> int:
        """The model's frame for a recorded one."""
        block = frame >> BLOCK
        if block not in self._blocks:
            self._blocks[block] = len(self._recorded)
            self._recorded.append(block)
        return self._blocks[block] << BLOCK | frame & ((1 << BLOCK) - 1)

    def recorded(self, frame: int) -> int:
        """The recorded frame of one of the model's."""
        block = frame >> BLOCK
        return (
            self._recorded[block] << BLOCK | frame & ((1 << BLOCK) - 1)
            if block < len(self._recorded)
            else frame
        )

    def count(self) -> int:
        """How large the small memory is."""
        return len(self._recorded) << BLOCK


class Watcher(Instrument):
    """What the model says through its probe."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @override
    def spte_changed(
        self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool
    ) -> None:
        machine = self._machine
        assert sp.root is not None
        machine.runtime.tell(
            "spte",
            sp.root.role.as_id,
            gfn,
            level,
            machine.entry(old, level),
            machine.entry(new, level),
        )

    @override
    def prepare_zap_page(self, sp: ShadowPage, shared: bool) -> None:
        self._machine.runtime.tell("zap_page", sp.gfn, sp.level)

    @override
    def root_allocated(self, root: RootPage) -> None:
        self._machine.runtime.tell("new_root", root.level)


class Machine:
    """The model of the recorded machine, and how it does each operation."""

    def __init__(
        self,
        script: ConformScript,
        runtime: ReplayRuntime,
        reporter: Reporter,
        variants: Iterable[Variant],
        wants: Callable[[Happening], bool],
    ) -> None:
        self.script = script
        self.runtime = runtime
        self.frames = Frames()
        for operation in script.operations:
            if operation.given.get("pfn") is not None:
                self.frames.add(operation.given["pfn"])
        runtime.host = RecordedHost(self.frames.add, self.run)
        runtime.wants = wants
        runtime.mmio = {}
        runtime.entry = self.entry
        probe = Probe()
        self.layout = self._config().layout
        self.generation_mask = (1 << self._config().mmio_gen_bits) - 1
        """The part of the memslots' generation that MMIO SPTEs keep."""
        probe.attach(Watcher(self))
        self.vm = VirtualMachine(
            self._config(), (*variants, TELLING), runtime=runtime, reporter=reporter, probe=probe
        )
        self._process = Region(runtime, 0, 0, True, PG_LEVEL_4K, None)
        """All of the process's addresses: notifier ranges are in pages of it."""
        self._regions: dict[tuple[int, int], Region] = {}
        if not script.marked_vcpus:
            self.create_vcpus(script.vcpus)

    def _config(self) -> VmConfig:
        script = self.script
        return VmConfig(
            geometry=Geometry(levels=script.levels),
            frames=self.frames.count(),
            have_exported_tdp=False,
            pml=False,
            mmio_gen_bits=sum(width for _, width in script.kernel.gen_fields),
            manual_protect=script.manual_protect,
            dirty_initially_set=script.initially_set,
            max_level=PG_LEVEL_1G if script.huge else PG_LEVEL_4K,
        )

    def freed_pages(self) -> int:
        """Page-table pages that were in use and that RCU has freed."""
        tables = self.vm.kvm.tables
        return tables.released.value - tables.discarded.value

    def entry(self, spte: int, level: int) -> Any:
        """An SPTE of the model, with the recorded machine's frame."""
        entry = model_entry(spte, level, self.layout)
        if entry.kind != "leaf":
            return entry
        return entry._replace(frame=self.frames.recorded(entry.frame))

    def hardware_sets(self, root: RootPage, gfn: int, level: int, seen: EntryValue) -> bool:
        """The CPU has set A or D in a leaf if that is all that the recorded one has more; whether
        it was so."""
        place = self._entry_at(root, gfn, level)
        if place is None:
            return False
        sp, index = place
        mine = self.entry(sp.spt[index], level)
        more = {"A": SPTE_A, "D": SPTE_D if "w" in seen.rights else 0}
        missing = [
            name
            for name, theirs, own in zip("rwxADhm", seen.rights, mine.rights, strict=False)
            if theirs != own
        ]
        if mine.kind != "leaf" or mine.frame != seen.frame or not missing:
            return False
        if not all(more.get(name) and name in seen.rights for name in missing):
            return False
        sp.spt.store(index, sp.spt[index] | sum(more[name] for name in missing))
        return True

    def adopt(self, root: RootPage, gfn: int, new: EntryValue) -> None:
        """Put into a 4 KiB entry what the kernel has there, after they parted over it: one
        difference must not become many."""
        place = self._entry_at(root, gfn, PG_LEVEL_4K)
        if place is None:
            return
        sp, index = place
        mine = self.entry(sp.spt[index], PG_LEVEL_4K)
        if mine != new and mine.kind in SIMPLE and new.kind in SIMPLE:
            self.vm.kvm.stat.pages_4k.add((new.kind == "leaf") - (mine.kind == "leaf"))
            sp.spt.store(index, self._encode(new))

    def _encode(self, entry: EntryValue) -> int:
        """The model's SPTE for a 4 KiB entry of the recording."""
        if entry.kind == "mmio":
            return self.layout.mmio(
                entry.frame, int(entry.rights, 16), self.vm.faults.mmio_rights()
            )
        if entry.kind == "none":
            return 0
        bits = sum(bit for name, bit in RIGHTS.items() if name in entry.rights)
        return self.layout.present | bits | self.frames.add(entry.frame) << PFN_SHIFT

    def looks(self, root: RootPage, gfn: int, level: int) -> EntryValue | None:
        """What a root has for a gfn at a level; None where it has no such table."""
        place = self._entry_at(root, gfn, level)
        return None if place is None else self.entry(place[0].spt[place[1]], level)

    def _entry_at(self, root: RootPage, gfn: int, level: int) -> tuple[ShadowPage, int] | None:
        """Where a root has its entry for a gfn at a level."""
        geometry, sp = self.vm.kvm.geometry, root
        at: ShadowPage = sp
        while at.level > level:
            spte = at.spt[geometry.index(gfn, at.level)]
            if not self.layout.is_table(spte, at.level):
                return None
            at = self.vm.kvm.tables.at(spte & ADDR_MASK)
        return at, geometry.index(gfn, level)

    def create_vcpus(self, count: int) -> None:
        """KVM_CREATE_VCPU until there are so many."""
        while len(self.vm.vcpus()) < count:
            self.vm.create_vcpu()

    def vcpu(self, number: int) -> Vcpu:
        """A vCPU, made if the recording did not say when."""
        self.create_vcpus(number + 1)
        return self.vm.vcpus()[number]

    # Operations.

    def run(self, operation: Operation) -> None:
        """Do one operation, in the thread of the task that did it."""
        self.runtime.lockstep.emit(Happening(BEGIN, (operation,)))
        worker = self.runtime.lockstep.running()
        before = getattr(worker, "operation", None)
        worker.operation = operation  # type: ignore[union-attr]
        getattr(self, f"_do_{operation.kind.replace('-', '_')}")(operation)
        worker.operation = before  # type: ignore[union-attr]

    def _do_set_region(self, operation: Operation) -> None:
        given = operation.given
        key = given.get("as_id", 0), given["slot"]
        region = self._regions.get(key)
        if region is None:
            region = Region(
                self.runtime,
                given.get("hva", 0),
                given["npages"],
                True,
                PG_LEVEL_1G if self.script.huge else PG_LEVEL_4K,
                None,
            )
        flags = given.get("flags", 0) & (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)
        wanted = MemoryRegion(key[1], given["gfn"], given["npages"], region, flags, key[0])
        try:
            self.vm.set_user_memory_region(wanted)
        except KvmError as error:
            self.runtime.tell("refused", error.errno)
            return
        if given["npages"]:
            self._regions[key] = region
        else:
            self._regions.pop(key, None)

    def _do_fault(self, operation: Operation) -> None:
        vcpu, given = self.vcpu(operation.vcpu), operation.given
        token = self.vm.kvm.srcu.read_lock()
        vcpu.vcpu_load()
        self._note_level(vcpu, given)
        judged = self._judge_mmio(vcpu, operation) if given["reserved"] else RetPf.INVALID
        self.runtime.reach(JUDGED)
        if judged is RetPf.INVALID:
            result = vcpu.page_fault(given["gfn"], given["write"], given["present"], given["fetch"])
            self.runtime.tell("fault_done", result.name)
        vcpu.vcpu_put()
        self.vm.kvm.srcu.read_unlock(token)

    def _judge_mmio(self, vcpu: Vcpu, operation: Operation) -> RetPf:
        """handle_mmio_page_fault()."""
        if self.is_mmio_cached(operation):
            return RetPf.EMULATE
        return vcpu.handle_mmio_page_fault(operation.given["gfn"])

    def is_mmio_cached(self, operation: Operation) -> bool:
        """mmio_info_in_cache(): the vCPU knows the access from the last time, and does not look at
        the SPTE, as the kernel did not."""
        cached = operation.given["gfn"], self.vm.memslots.peek(0).generation.value
        return operation.given["unseen"] and self.runtime.mmio.get(operation.vcpu) == cached

    def looks_stale(self, operation: Operation) -> bool:
        """Whether an invalidation of the fault's page is under way just now."""
        slot = self.vm.memslots.peek(self.vcpu(operation.vcpu).role.as_id).at(
            operation.given["gfn"]
        )
        invalidation = self.vm.kvm.invalidation
        return slot is not None and invalidation.retry_unsafe(
            invalidation.seq.value, slot.hva(operation.given["gfn"])
        )

    def _note_level(self, vcpu: Vcpu, given: dict[str, Any]) -> None:
        """How large the host's page is: as large as the kernel could map, unless the log kept it
        from trying."""
        slot = self.vm.memslots.peek(vcpu.role.as_id).at(given["gfn"])
        level = given.get("level", 0)
        if slot is None or not level or (level == PG_LEVEL_4K and slot.dirty_bitmap is not None):
            return
        index = given["gfn"] - slot.base_gfn
        pages = self.vm.kvm.geometry.pages(level) if level > PG_LEVEL_4K else 1
        first = index & -pages
        for page in range(first, min(first + pages, slot.npages)):
            slot.region.levels[page] = level

    def _do_free_obsolete(self, operation: Operation) -> None:
        vcpu = self.vcpu(operation.vcpu)
        if (
            vcpu.state.requests.fetch_and(~KVM_REQ_MMU_FREE_OBSOLETE_ROOTS)
            & KVM_REQ_MMU_FREE_OBSOLETE_ROOTS
        ):
            self.runtime.tell("served", "MMU_FREE_OBSOLETE_ROOTS")
            vcpu.free_obsolete_roots()

    def _do_flush_tlb(self, operation: Operation) -> None:
        vcpu = self.vcpu(operation.vcpu)
        if (
            vcpu.state.requests.fetch_and(~(KVM_REQ_TLB_FLUSH | KVM_REQ_TLB_FLUSH_CURRENT))
            & KVM_REQ_TLB_FLUSH
        ):
            self.runtime.tell("served", "TLB_FLUSH")
            vcpu.flush_local()

    def _do_load_root(self, operation: Operation) -> None:
        vcpu = self.vcpu(operation.vcpu)
        if vcpu.root is not None:
            return  # kvm_mmu_reload() has nothing to do
        vcpu.role = self._role(operation)
        vcpu.load_root()
        self.runtime.tell("loaded", vcpu.root, vcpu.number)

    def _role(self, operation: Operation) -> RootRole:
        """The role of the root that the vCPU needs now, which comes from its registers."""
        word = operation.given.get("role")
        if word is None:
            return RootRole(1 if operation.given["smm"] else 0)
        return TracedRole(
            word & ~INVALID_ROLE[self.script.kernel.name], 1 if word >> SMM_SHIFT & 0xFF else 0
        )

    def _do_reset_context(self, operation: Operation) -> None:
        if operation.vcpu >= 0:
            self.vcpu(operation.vcpu).unload()

    def _do_range_start(self, operation: Operation) -> None:
        first, last = _pages(operation)
        for region in self._regions.values():
            _forget_levels(region, first - region.hva, last - region.hva)
        self.vm.notifier.invalidate_range_start(self._process, first, last)

    def _do_range_end(self, operation: Operation) -> None:
        self.vm.notifier.invalidate_range_end(self._process, *_pages(operation))

    def _do_get_log(self, operation: Operation) -> None:
        found = self._logged(operation)
        if found is not None:
            size = len(self.vm.get_dirty_log(found[1], found[0]))
            if operation.given.get("set") is not None:
                self.runtime.tell("log_size", size)

    def _do_clear_log(self, operation: Operation) -> None:
        found = self._logged(operation)
        if found is None:
            return
        slot = self.vm.memslots.peek(found[0]).by_id(found[1])
        assert slot is not None
        pages = {
            args["gfn"] - slot.base_gfn + bit
            for args in operation.given.get("clear_dirty_pt", ())
            for bit in range(64)
            if args["mask"] >> bit & 1
        }
        self.vm.clear_dirty_log(found[1], pages, found[0])

    def _logged(self, operation: Operation) -> tuple[int, int] | None:
        """The slot that a dirty-log ioctl is about: the one that its gfns lie in, else the only one
        that logs."""
        gfns = [args["gfn"] for args in operation.given.get("clear_dirty_pt", ())]
        for as_id in (0, 1):
            for slot in self.vm.memslots.peek(as_id).index.value[1]:
                if slot.dirty_bitmap is not None and all(
                    slot.base_gfn <= gfn < slot.end_gfn for gfn in gfns
                ):
                    return as_id, slot.id
        return None

    def _do_release(self, _: Operation) -> None:
        self.vm.exit_mm()

    def _do_destroy(self, _: Operation) -> None:
        self.vm.put()


def _pages(operation: Operation) -> tuple[int, int]:
    start, end = operation.given["start"], operation.given["end"]
    return start >> PAGE, -(-end >> PAGE)


def _forget_levels(region: Region, first: int, last: int) -> None:
    """The host has changed something: how large its pages are is not known any more."""
    size = len(region.levels)
    if last <= 0 or first >= size:
        return
    block = 1 << BLOCK * (PG_LEVEL_2M - 1)
    for page in range(max(0, first & -block), min(size, last + block - 1 & -block)):
        region.levels[page] = 0
