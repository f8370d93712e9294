"""A VM small enough to look at: the VMM's duties done for it, its guests scripted, and nothing it
reports overlooked.

`Machine` wraps a `VirtualMachine`. A test says what it provokes with `expect`; whatever else the VM
reports, and every access that met the wrong memory, fails the test when the machine is closed.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmu.errors import KvmError
from mmu.export.device import Device
from mmu.export.iommu import KvmHwpt
from mmu.export.tdp_fd import TdpFd
from mmu.invariants import CheckedTree, violations
from mmu.kvm import VmConfig
from mmu.machine.vcpu import FETCH, Exit, Vcpu
from mmu.machine.vm import VirtualMachine
from mmu.memory.host import Region, tag_of
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, Change, MemoryRegion, Memslot
from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_4K, Geometry
from mmu.paging.spte import pfn_of
from mmu.paging.table import RootPage, RootRole
from mmu.probe import HOOKS, Listeners, Probe
from mmu.report import Reporter
from mmu.runtime import Queue
from mmu.tdp.fault import Fault, PageCache, RetPf
from mmu.variant import Variant
from tests.conftest import forget_held_locks, rcu_section, reading, srcu_section, writing
from tests.patience import PATIENCE

SMALL = Geometry(levels=3, entries=4)
"""64 frames under three levels: every walk fits on a page."""

REAL = Geometry()
"""What the hardware has: four levels of 512."""


def round_down(geometry: Geometry, gfn: int, level: int) -> int:
    """`gfn` aligned to what an entry at `level` maps."""
    return gfn & ~(geometry.pages(level) - 1)


class Recorder(Listeners):
    """Writes down what happens, in order, as (hook, arguments). By default it listens to every
    hook."""

    def __init__(self, *hooks: str) -> None:
        super().__init__({hook: self._note(hook) for hook in hooks or HOOKS})
        self.events: list[tuple[str, tuple[Any, ...]]] = []

    def names(self) -> list[str]:
        """The hooks that fired, in order."""
        return [name for name, _ in self.events]

    def args(self, hook: str) -> list[tuple[Any, ...]]:
        """The arguments of every event of one hook."""
        return [args for name, args in self.events if name == hook]

    def _note(self, hook: str) -> Callable[..., None]:
        return lambda *args: self.events.append((hook, args))


class Script:
    """A guest that makes the given accesses, one after the other: a gfn to read, `w(gfn)` to write,
    `x(gfn)` to execute."""

    def __init__(self, *accesses: int) -> None:
        self._left = iter(accesses)

    def next_access(self) -> int:
        """The next line of the script."""
        access = next(self._left)
        if access < 0:
            return ~access << 1 | 1
        return (access & ~FETCH) << 1 | access & FETCH


def w(gfn: int) -> int:
    """A write to `gfn`, in a `Script`."""
    return ~gfn


def x(gfn: int) -> int:
    """An instruction fetch from `gfn`, in a `Script`."""
    return gfn | FETCH


class ParkedGuest:
    """A guest that stands still in guest mode: `inside` is set when it is there, `leave` lets its
    access to `gfn` go on."""

    def __init__(self, gfn: int = 0) -> None:
        self.gfn = gfn
        self.inside = threading.Event()
        self.leave = threading.Event()

    def next_access(self) -> int:
        """Wait in the guest; then one read."""
        self.inside.set()
        assert self.leave.wait(PATIENCE)
        return self.gfn << 1


class Machine:
    """A VM with the VMM around it. `close` takes everything down and complains about what was not
    expected."""

    def __init__(
        self,
        geometry: Geometry = SMALL,
        variants: Iterable[Variant] = (),
        *,
        frames: int = 256,
        **config: Any,
    ) -> None:
        self.reporter = Reporter(sink=None)
        self.probe = Probe()
        config.setdefault("rcu_stall_seconds", 10 * PATIENCE)
        fail_function = config.pop("fail_function", None)
        self.vm = VirtualMachine(
            VmConfig(geometry=geometry, frames=frames, **config),
            variants,
            reporter=self.reporter,
            probe=self.probe,
            fail_function=fail_function,
        )
        self.kvm = self.vm.kvm
        self.runtime = self.kvm.runtime
        self.mmu_lock = self.kvm.mmu_lock
        self.wrong: list[tuple[Any, ...]] = []
        """Every access that reached memory that is not the gfn's, as the hook `bad_translation`
        tells it."""
        self.regions: dict[tuple[int, int], Region] = {}
        self._deadlines: dict[Vcpu, float] = {}
        self.on(
            bad_translation=lambda *args: self.wrong.append(args), guest_enter=self._check_progress
        )
        self._cache = PageCache(self.kvm)
        self._fds: list[TdpFd] = []
        self._hwpts: list[KvmHwpt] = []
        self._seen: set[str] = set()
        self._abandoned = False

    # Watching.

    def on(self, **hooks: Callable[..., None]) -> None:
        """Call these functions at these hooks."""
        self.probe.attach(Listeners(hooks))

    def record(self, *hooks: str) -> Recorder:
        """Start to write down what happens."""
        recorder = Recorder(*hooks)
        self.probe.attach(recorder)
        return recorder

    def at(self, point: str, action: Callable[[], object]) -> None:
        """Do `action` the next time that the preemption point is reached."""
        left = [action]

        def reached(name: str) -> None:
            if name == point and left:
                left.pop()()

        self.on(point=reached)

    # What the VMM does.

    def add_slot(
        self,
        gfn: int,
        npages: int,
        *,
        slot: int = 0,
        as_id: int = 0,
        flags: int = 0,
        writable: bool = True,
        max_level: int = PG_LEVEL_4K,
        userfaults: Queue[Any] | None = None,
    ) -> Region:
        """Map fresh memory, aligned as the gfn is where huge pages are wanted, and give it to the
        VM as a memslot."""
        offset = gfn % self.kvm.geometry.pages(PG_LEVEL_1G) if max_level > PG_LEVEL_4K else 0
        region = self.vm.host.mmap(
            npages, writable=writable, max_level=max_level, offset=offset, userfaults=userfaults
        )
        self.vm.host.assign(region, tag_of(as_id, gfn))
        self.vm.set_user_memory_region(MemoryRegion(slot, gfn, npages, region, flags, as_id))
        self.regions[as_id, slot] = region
        return region

    def delete_slot(self, slot: int = 0, as_id: int = 0) -> Change:
        """Delete a memslot; its memory is released as soon as the call returns, as a VMM may."""
        change = self.vm.set_user_memory_region(MemoryRegion(slot, 0, 0, as_id=as_id))
        self.vm.host.munmap(self.regions.pop((as_id, slot)))
        return change

    def move_slot(self, gfn: int, *, slot: int = 0, as_id: int = 0) -> Change:
        """Move a memslot to `gfn`."""
        region = self.regions[as_id, slot]
        move = self.vm.host.begin_move(region, tag_of(as_id, gfn))
        flags = self.slot(slot, as_id).flags
        try:
            change = self.vm.set_user_memory_region(
                MemoryRegion(slot, gfn, region.pages, region, flags, as_id)
            )
        except KvmError:
            self.vm.host.abort_move(move)
            raise
        self.vm.host.end_move(move)
        return change

    def set_flags(self, flags: int, slot: int = 0, as_id: int = 0) -> Change:
        """Change the flags of a memslot."""
        found = self.slot(slot, as_id)
        return self.vm.set_user_memory_region(
            MemoryRegion(slot, found.base_gfn, found.npages, found.region, flags, as_id)
        )

    def log_dirty_pages(self, slot: int = 0, as_id: int = 0) -> Change:
        """Switch dirty logging on."""
        return self.set_flags(KVM_MEM_LOG_DIRTY_PAGES, slot, as_id)

    def slot(self, slot: int = 0, as_id: int = 0) -> Memslot:
        """The active slot object."""
        found = self.vm.memslots.peek(as_id).by_id(slot)
        assert found is not None
        return found

    def export(self) -> TdpFd:
        """A TDP FD; still open when the machine is closed, it is closed too."""
        fd = self.vm.create_tdp_fd()
        self._fds.append(fd)
        return fd

    def attach(
        self, fd: TdpFd, name: str = "device0", *, ats: bool = False
    ) -> tuple[Device, KvmHwpt]:
        """A new device whose stage-2 root is the exported one."""
        device = self.vm.create_device(name, ats=ats)
        hwpt = self.vm.attach(device, fd)
        self._hwpts.append(hwpt)
        return device, hwpt

    # What the host does.

    @contextmanager
    def invalidating(
        self, region: Region, first: int = 0, last: int | None = None
    ) -> Iterator[None]:
        """Between the start and the end of an mmu_notifier invalidation of pages [first, last)."""
        last = region.pages if last is None else last
        self.vm.notifier.invalidate_range_start(region, first, last)
        yield
        self.vm.notifier.invalidate_range_end(region, first, last)

    def discard(self, region: Region, first: int = 0, last: int | None = None) -> int:
        """The host takes pages back, as it should: with KVM told before and after."""
        with self.invalidating(region, first, last):
            return self.vm.host.discard(region, first, region.pages if last is None else last)

    # What the guest does.

    def vcpu(self) -> Vcpu:
        """A vCPU that has its root loaded and has not yet run."""
        vcpu = self.vm.create_vcpu()
        vcpu.load_root()
        return vcpu

    def fault(
        self,
        vcpu: Vcpu,
        gfn: int,
        write: bool = False,
        *,
        present: bool = False,
        fetch: bool = False,
    ) -> RetPf:
        """One EPT violation, handled."""
        with srcu_section(self.kvm.srcu):
            return vcpu.page_fault(gfn, write, present, fetch)

    def run(self, vcpu: Vcpu, *accesses: int) -> Exit:
        """KVM_RUN until the guest has made these accesses."""
        self._deadlines[vcpu] = time.monotonic() + PATIENCE
        return vcpu.run(Script(*accesses), len(accesses))

    def _check_progress(self, vcpu: Vcpu) -> None:
        """A guest that faults for ever ends the test that runs it, instead of all tests."""
        assert time.monotonic() < self._deadlines.get(vcpu, math.inf), (
            f"{vcpu} makes no progress: {vcpu.stat.pf_taken} faults"
        )

    # The tables, by hand and by eye.

    def root(self, as_id: int = 0) -> RootPage:
        """The valid root of an address space, made if needed. Nobody keeps the reference: the TDP
        MMU's own is enough."""
        with writing(self.mmu_lock):
            root = self.vm.roots.get_vcpu_root(RootRole(as_id))
            self.vm.roots.put_root(root, shared=False)
        return root

    def plant(self, root: RootPage, *gfns: int, pfn: int | None = None) -> None:
        """Map each gfn, to a frame of the same number unless `pfn` says otherwise: slots and host
        are not asked."""
        for gfn in gfns:
            self._cache.topup()
            fault = Fault()
            fault.gfn, fault.pfn, fault.host_writable = gfn, gfn + 1 if pfn is None else pfn, True
            with reading(self.mmu_lock):
                assert self.vm.faults.map(root, self._cache, fault) is RetPf.FIXED

    def leaves(self, root: RootPage) -> dict[int, int]:
        """What a root maps: gfn to frame."""
        return {leaf.gfn: pfn_of(leaf.spte) for leaf in CheckedTree(self.vm, root).leaves}

    def tables(self, root: RootPage) -> list[tuple[int, int]]:
        """The linked tables below a root as (gfn, level), in pre-order."""
        return [(child.gfn, child.level) for child, _, _ in CheckedTree(self.vm, root).tables]

    def entry(self, root: RootPage, gfn: int, level: int = 1) -> tuple[Any, int]:
        """The table and index of the SPTE for `gfn` at `level`; the tables above must be there."""
        sp: Any = root
        while sp.level > level:
            sp = self.kvm.tables.by_spte[sp.spt[self.kvm.geometry.index(gfn, sp.level)]]
        return sp, self.kvm.geometry.index(gfn, level)

    def spte(self, gfn: int, level: int = 1, root: RootPage | None = None) -> int:
        """The word for `gfn` at `level`, in the root of address space 0 unless another is named."""
        sp, index = self.entry(root or self.root(), gfn, level)
        word: int = sp.spt[index]
        return word

    def huge_leaves(self, root: RootPage | None = None) -> list[tuple[int, int]]:
        """The leaves above 4 KiB as (gfn, level)."""
        return [
            (leaf.gfn, leaf.sp.level)
            for leaf in CheckedTree(self.vm, root or self.root()).leaves
            if leaf.sp.level > PG_LEVEL_4K
        ]

    def spare_tables(self) -> list[Any]:
        """The pages that `plant` has set aside and not used."""
        return self._cache.pages

    @contextmanager
    def zapping(self) -> Iterator[None]:
        """mmu_lock for write and an RCU section: where SPTEs are changed."""
        with writing(self.mmu_lock), rcu_section(self.kvm.rcu):
            yield

    # What was reported.

    def news(self) -> set[str]:
        """What was reported and not yet asked for, as `rule code`."""
        found = {f"{report.rule} {report.code}" for report in self.reporter.reports} - self._seen
        self._seen |= found
        return found

    def expect(self, *reports: str) -> None:
        """Exactly these were reported since the last look; each a `rule code`."""
        assert self.news() == set(reports)

    def splats(self) -> str:
        """Every report in full, for a failing assertion."""
        return "\n".join(report.render() for report in self.reporter.reports)

    def assert_sound(self) -> None:
        """At rest: every invariant holds and nobody saw wrong memory."""
        assert violations(self.vm) == []
        assert self.wrong == []

    # The end.

    def abandon(self) -> None:
        """The test broke the VM on purpose: do not take it down, and let its wrong accesses
        pass."""
        self._abandoned = True
        self.wrong.clear()

    def destroy(self) -> None:
        """Close every fd; the VM is gone afterwards."""
        self._cache.drain()
        for hwpt in self._hwpts:
            if hwpt.live.value:
                hwpt.destroy()
        for fd in self._fds:
            if fd.count.read():
                fd.put()
        if not self.vm.destroyed.value:
            self.vm.put()

    def close(self) -> None:
        """Take the VM down, unless abandoned, and fail for whatever was not expected."""
        try:
            if not self._abandoned:
                self.destroy()
                assert self.vm.destroyed.value, "a reference on the VM was left"
            assert self.news() == set(), self.splats()
            assert self._abandoned or self.wrong == []
        finally:
            self.kvm.rcu.shutdown()


@contextmanager
def machine_of(
    geometry: Geometry = SMALL, variants: Iterable[Variant] = (), **config: Any
) -> Iterator[Machine]:
    """A machine for the block. When the block fails, its own error is what is seen."""
    forget_held_locks()
    machine = Machine(geometry, variants, **config)
    try:
        yield machine
    except BaseException:
        machine.kvm.rcu.shutdown()
        forget_held_locks()
        raise
    machine.close()
