"""A vCPU: the run loop, requests, guest mode, and the roots that it holds (arch/x86/kvm/x86.c,
mmu.c)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

from mmu.errors import KvmError
from mmu.kvm import Kvm
from mmu.machine.pcpu import OwnCpu
from mmu.memory.host import HostMemory, tag_of
from mmu.memory.requests import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_REQ_MMU_FREE_OBSOLETE_ROOTS,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TLB_FLUSH_CURRENT,
    KVM_REQ_UPDATE_CPU_DIRTY_LOGGING,
    OUTSIDE_GUEST_MODE,
    Requests,
    RunState,
)
from mmu.memory.tlb import walker
from mmu.paging.geometry import PG_LEVEL_4K
from mmu.paging.spte import ADDR_MASK, PFN_SHIFT, SPTE_D, SPTE_MMIO, SPTE_R, SPTE_W, SPTE_X
from mmu.paging.table import RootPage, RootRole
from mmu.sync.lockdep import Hold
from mmu.tdp.fault import (
    EMULATE,
    FIXED,
    INVALID,
    RETRY,
    SPURIOUS,
    Fault,
    FaultHandler,
    PageCache,
    RetPf,
)
from mmu.tdp.fault_rules import warn_invalid, warn_without_root
from mmu.tdp.roots import Roots

NO_ACCESS = -1
FETCH: Final = 1 << 62
"""Marks an access as an instruction fetch."""
NUM_PREV_ROOTS: Final = 3
"""KVM_MMU_NUM_PREV_ROOTS: roots that a vCPU keeps for when it switches back."""

Miss = tuple[int, int]
"""An access without a translation: the access, and the word that the walk found."""


class Exit(Enum):
    """Why KVM_RUN returned to user space."""

    INTR = "interrupted"
    MMIO = "mmio"


class Guest(Protocol):
    """What runs in the guest: the next memory access, as gfn << 1 | is_write, with `FETCH` added
    for an instruction."""

    def next_access(self) -> int:
        """Decide on the next access."""
        ...


class VcpuStats:
    """Counters that only the vCPU's own thread writes."""

    __slots__ = (
        "accesses",
        "entries",
        "kicks",
        "migrations",
        "mmio_exits",
        "pf_emulate",
        "pf_fixed",
        "pf_mmio",
        "pf_retry",
        "pf_spurious",
        "pf_taken",
        "pml_logged",
        "prev_root_hits",
        "root_loads",
        "shadow_pages",
        "tlb_flush",
        "walks",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    accesses: int
    entries: int
    kicks: int
    migrations: int
    mmio_exits: int
    pf_emulate: int
    pf_fixed: int
    pf_mmio: int
    pf_retry: int
    pf_spurious: int
    pf_taken: int
    pml_logged: int
    prev_root_hits: int
    root_loads: int
    shadow_pages: int
    tlb_flush: int
    walks: int


class Vcpu:
    """One virtual CPU, run by one thread. `state` is what other threads see of it; the rest is the
    thread's own."""

    STANDS_FOR: Final = (
        "arch/x86/kvm/x86.c: vcpu_enter_guest(); arch/x86/kvm/mmu/mmu.c: kvm_mmu_load(), "
        "kvm_mmu_unload(); arch/x86/kvm/vmx/vmx.c: vmx_vcpu_load_vmcs()"
    )

    def __init__(
        self,
        kvm: Kvm,
        number: int,
        requests: Requests,
        roots: Roots,
        faults: FaultHandler,
        host: HostMemory,
        mmput: Callable[[], None],
        cpu: OwnCpu,
    ) -> None:
        self.kvm = kvm
        self.number = number
        self.state = RunState(kvm.runtime, f"vcpu{number}")
        self.stat = VcpuStats()
        self.cpu = cpu
        """The physical CPU that the thread runs on."""
        self.loaded_cpu: OwnCpu | None = None if cpu.tagged else cpu
        """The one that has the vCPU's VMCS (loaded_vmcs->cpu)."""
        self.tlb = cpu.cache_of(None)
        """The cache of its CPU for the root that is loaded."""
        self.root: RootPage | None = None
        self.prev_roots: list[RootPage] = []
        self.role = RootRole(0)
        self.dirtied: dict[int, int] = {}
        """Frames whose D bit this CPU has set, with the dirty clock's time before it did: somebody
        must have kept it."""
        self.cache = PageCache(kvm)
        self.immediate_exit = kvm.runtime.cell("vcpu.immediate_exit", False)
        self._requests = requests
        self._roots = roots
        self._faults = faults
        self._host = host
        self._mmput = mmput
        self._pending = NO_ACCESS
        self._fault = Fault()
        self._srcu_token = Hold(kvm.srcu.lock_class)
        self._nx = kvm.nx_huge_pages
        self.pml: list[int] = []
        """Gfns that hardware has logged and nobody has seen yet."""
        self._walker = walker(kvm, self._set_dirty_bit)
        self._needed = (SPTE_R, SPTE_W | SPTE_D if kvm.config.ad_bits else SPTE_W)
        requests.add(self.state)
        self.update_cpu_dirty_logging()

    def __str__(self) -> str:
        return self.state.name

    # KVM_RUN.

    def run(self, guest: Guest, accesses: int = 64) -> Exit:
        """KVM_RUN: let the guest make up to `accesses` memory accesses. SRCU is held except while
        in the guest."""
        if not self.kvm.mm_users.inc_not_zero():
            raise KvmError(
                errno.EIO,
                "the process that owns the VM has exited: KVM_RUN is not possible any more",
            )
        self.vcpu_load()
        srcu = self.kvm.srcu
        left = accesses
        self._srcu_token = srcu.read_lock()
        try:
            while left > 0 and not self.immediate_exit.value:
                self.sched_in()
                try:
                    self.service_requests()
                    left, miss = self._enter_guest(guest, left)
                finally:
                    self.cpu.leave()
                if miss is not None and not self._handle_violation(*miss):
                    return Exit.MMIO
        finally:
            srcu.read_unlock(self._srcu_token)
            self.vcpu_put()
            self._mmput()
        return Exit.INTR

    def _enter_guest(self, guest: Guest, left: int) -> tuple[int, Miss | None]:
        """vcpu_enter_guest(): announce guest mode, look at the requests once more, run, and leave -
        whatever happens."""
        if self.kvm.probe.point is not None:
            self.kvm.probe.point("P20")
        self.state.mode.store(IN_GUEST_MODE)
        self.kvm.srcu.read_unlock(self._srcu_token)
        try:
            if self.exit_request():
                return left, None
            self.cpu.enter(self.root)
            return self._run_guest(guest, left)
        finally:
            self.leave_guest()

    def leave_guest(self) -> None:
        """Empty the PML buffer, acknowledge the exit, then take SRCU. A memslot update that waits
        for the exit finds every logged gfn in the slots that it was logged for (a mend: kernels
        acknowledge the exit first)."""
        if self.pml:
            self.enter_srcu()
            self.flush_pml_buffer()
            self.kvm.srcu.read_unlock(self._srcu_token)
        self.acknowledge_exit()
        self.enter_srcu()

    def enter_srcu(self) -> None:
        """kvm_vcpu_srcu_read_lock(), held until the guest is entered again."""
        self._srcu_token = self.kvm.srcu.read_lock()

    def shadow(self, pages: int) -> None:
        """Faults of a nested guest whose `pages` page tables its hypervisor keeps: KVM shadows
        those that it does not have yet. Raises `KvmError` as KVM_RUN does."""
        kvm = self.kvm
        if not kvm.mm_users.inc_not_zero():
            raise KvmError(
                errno.EIO,
                "the process that owns the VM has exited: KVM_RUN is not possible any more",
            )
        kvm.mmu_lock.write_lock()
        made = kvm.shadow_pages.fill(pages, kvm.mmu_valid_gen.value)
        kvm.mmu_lock.write_unlock()
        self.stat.shadow_pages += made
        self._mmput()

    def interrupt(self) -> None:
        """A signal for the thread that runs the vCPU: KVM_RUN returns soon, also from inside the
        guest."""
        self.immediate_exit.store(True)
        self.state.mode.cmpxchg(IN_GUEST_MODE, EXITING_GUEST_MODE)

    def vcpu_load(self) -> None:
        """vcpu_load(): the calling thread runs this vCPU from now on."""
        self._fault.hold = self.kvm.mmu_lock.local.mine
        self._fault.reader = self.kvm.rcu.local.mine
        self._fault.srcu_reader = self.kvm.srcu.local.mine

    def vcpu_put(self) -> None:
        """vcpu_put(): the calling thread is done with it; another one may run it."""
        self._fault.hold = None
        self._fault.reader = None
        self._fault.srcu_reader = None

    def sched_in(self) -> None:
        """kvm_sched_in(): run on the physical CPU as soon as no other vCPU does."""
        self.cpu.occupy()
        if self.loaded_cpu is not self.cpu:
            self.stat.migrations += self.loaded_cpu is not None
            self.loaded_cpu = self.cpu
            self.flush_migrated()

    def flush_migrated(self) -> None:
        """The request of vmx_vcpu_load_vmcs(): the CPU may have stale translations from when the
        vCPU was there last, whatever it has flushed elsewhere since."""
        self.state.requests.fetch_or(KVM_REQ_TLB_FLUSH)

    def move_to(self, cpu: OwnCpu) -> None:
        """The scheduler has the vCPU's thread continue on another physical CPU. Called by that
        thread, outside `run`."""
        self.cpu = cpu
        self.tlb = cpu.cache_of(self.root)

    def exit_request(self) -> bool:
        """kvm_vcpu_exit_request(): after guest mode is announced, is there anything to do first?"""
        return bool(self.state.requests.value) or self.state.mode.value == EXITING_GUEST_MODE

    def service_requests(self) -> None:
        """The request checks of vcpu_enter_guest(), and kvm_mmu_reload()."""
        if self.state.requests.value:
            pending = self.state.requests.fetch_and(0)
            if pending & KVM_REQ_MMU_FREE_OBSOLETE_ROOTS:
                self.free_obsolete_roots()
            if pending & KVM_REQ_UPDATE_CPU_DIRTY_LOGGING:
                self.update_cpu_dirty_logging()
            if pending & KVM_REQ_TLB_FLUSH:
                self.flush_local()
            elif pending & KVM_REQ_TLB_FLUSH_CURRENT:
                self.flush_current()
        if self.root is None:
            self.load_root()

    def acknowledge_exit(self) -> None:
        """Leave guest mode, so that tasks that wait for the exit of this vCPU continue."""
        state = self.state
        if state.mode.value == EXITING_GUEST_MODE:
            self.stat.kicks += 1
        state.exits.value += 1
        state.mode.store(OUTSIDE_GUEST_MODE)
        if self.kvm.probe.guest_exit is not None:
            self.kvm.probe.guest_exit(self)

    # In the guest.

    def _run_guest(self, guest: Guest, left: int) -> tuple[int, Miss | None]:
        """Accesses until the budget ends, a kick arrives, or a translation is missing: (budget
        left, the miss)."""
        stat = self.stat
        stat.entries += 1
        probe = self.kvm.probe
        if probe.guest_enter is not None:
            probe.guest_enter(self)
        mode = self.state.mode
        entries = self.tlb.entries
        access = self._host.access
        as_tag = tag_of(self.role.as_id, 0)
        kinds = self._needed
        while left > 0 and mode.value == IN_GUEST_MODE:
            wanted = self._pending
            if wanted == NO_ACCESS:
                wanted = guest.next_access()
            write = wanted & 1
            needed = kinds[write]
            gfn = wanted >> 1
            if wanted >= FETCH:
                gfn = (wanted ^ FETCH) >> 1
                needed = SPTE_X
            spte = entries.get(gfn, 0)
            if spte & needed != needed:
                spte = self.walk(gfn, bool(write))
                if spte & needed != needed or spte & SPTE_MMIO:
                    self._pending = wanted
                    self.cpu.drop_violated(self.root, gfn)
                    return left, (wanted, spte)
                entries[gfn] = spte
            self._pending = NO_ACCESS
            left -= 1
            stat.accesses += 1
            pfn = (spte & ADDR_MASK) >> PFN_SHIFT
            if not access(pfn, as_tag | gfn, bool(write)) and probe.bad_translation is not None:
                probe.bad_translation(
                    str(self), gfn, pfn, bool(write), self._walker.look(self.root, gfn)
                )
        return left, None

    def walk(self, gfn: int, write: bool = False) -> int:
        """The hardware walk of the loaded root: the leaf's word, or one without rights."""
        self.stat.walks += 1
        return self._walker.walk(self.tlb, self.root, gfn, write)

    def _set_dirty_bit(self, gfn: int, pfn: int, tick: int) -> None:
        """The walker has set a D bit: page modification logging, but for a nested guest, whose
        addresses it would get wrong."""
        self.dirtied[pfn] = tick
        if self._logs and not self.role.guest_mode:
            self.pml.append(gfn)

    def update_cpu_dirty_logging(self) -> None:
        """vmx_update_cpu_dirty_logging(): page modification logging is on while any slot logs."""
        self._logs = self.kvm.config.pml and self.kvm.nr_memslots_dirty_logging.value > 0

    def unlogged(self) -> list[int]:
        """Gfns whose write is on its way into the dirty log: logged by hardware, or being made
        writable just now."""
        return [*self.pml, self._fault.fixing]

    def flush_pml_buffer(self) -> None:
        """vmx_flush_pml_buffer(): on every exit; SRCU is held for read."""
        self.stat.pml_logged += len(self.pml)
        for gfn in self.pml:
            self._faults.mark_page_dirty(self.role.as_id, gfn)
        self.pml.clear()

    # Exits.

    def _handle_violation(self, wanted: int, spte: int) -> bool:
        """An EPT violation or misconfiguration. False when user space must emulate the access (it
        is then done with)."""
        probe = self.kvm.probe
        timed = probe.fault_done is not None
        start = self.kvm.runtime.now() if timed else 0
        fetch = wanted >= FETCH
        gfn = (wanted ^ FETCH if fetch else wanted) >> 1
        result = self.handle_mmio_page_fault(gfn) if spte & SPTE_MMIO else INVALID
        if result is INVALID:
            result = self.page_fault(gfn, bool(wanted & 1), bool(spte & SPTE_R), fetch)
            if result is INVALID:
                warn_invalid(self.kvm, gfn)
        if timed and probe.fault_done is not None:
            probe.fault_done(self, result, self.kvm.runtime.now() - start)
        if result is EMULATE:
            self.stat.mmio_exits += 1
            self._pending = NO_ACCESS
            return False
        if result is RETRY:
            self.kvm.runtime.relax()
        return True

    def handle_mmio_page_fault(self, gfn: int) -> RetPf:
        """handle_mmio_page_fault(): EMULATE without a look-up when the MMIO SPTE still holds,
        INVALID when it is out of date and a page fault must find out what is there now, RETRY when
        it is no MMIO SPTE any more.

        The entry is read again (get_mmio_spte): what the walk has met was read outside SRCU, and
        the generation may have gone all the way round since.
        """
        if self.root is None:
            warn_without_root(self.kvm, gfn)
            return RETRY
        spte = self._faults.get_mmio_spte(self.root, gfn)
        if not spte & SPTE_MMIO:
            return RETRY
        if not self._faults.check_mmio_spte(gfn, self.role.as_id, spte, self):
            return INVALID
        self.stat.pf_mmio += 1
        return EMULATE

    def page_fault(
        self, gfn: int, write: bool, present: bool = False, fetch: bool = False
    ) -> RetPf:
        """kvm_mmu_do_page_fault() with its statistics; the caller holds SRCU for read and has a
        root loaded."""
        stat = self.stat
        stat.pf_taken += 1
        root = self.root
        if root is None:
            warn_without_root(self.kvm, gfn)
            return RETRY
        fault = self._fault
        fault.gfn = gfn
        fault.write = write
        fault.fetch = fetch
        fault.present = present
        fault.as_id = self.role.as_id
        fault.goal_level = PG_LEVEL_4K
        fault.nx_workaround = self._nx.value
        fault.req_level = PG_LEVEL_4K
        fault.huge_page_disallowed = False
        result = self._faults.page_fault(root, self.cache, fault, self)
        if result is FIXED:
            stat.pf_fixed += 1
        elif result is RETRY:
            stat.pf_retry += 1
        elif result is SPURIOUS:
            stat.pf_spurious += 1
        else:
            stat.pf_emulate += 1
        return result

    # Roots.

    def load_root(self) -> None:
        """kvm_mmu_load(): find or make the root of the vCPU's role, then flush what its CPU has for
        that root."""
        start = self.kvm.runtime.now()
        self.cache.topup()
        self._roots.load_lock()
        self.root = self._roots.get_vcpu_root(self.role)
        self._roots.load_unlock()
        self.tlb = self.cpu.cache_of(self.root)
        self.stat.root_loads += 1
        self.flush_loaded()
        if self.kvm.probe.root_loaded is not None:
            self.kvm.probe.root_loaded(self, self.kvm.runtime.now() - start)

    def flush_loaded(self) -> None:
        """The flush at the end of kvm_mmu_load(): it is why zapping an invalid root needs none."""
        self.flush_current()

    def switch_role(self, role: RootRole) -> None:
        """kvm_mmu_new_pgd(): run on another root, one from the cache of previous roots if it is
        there and still valid; the current one goes into the cache. Nothing is flushed, where TLBs
        are tagged."""
        if role == self.role:
            return
        if self.root is not None:
            self.prev_roots.insert(0, self.root)
        self.role = role
        self._pending = NO_ACCESS
        self.root = self.cached_root(role)
        if self.root is not None:
            self.stat.prev_root_hits += 1
        if len(self.prev_roots) > NUM_PREV_ROOTS:
            self._drop([self.prev_roots.pop()])
        self.tlb = self.cpu.cache_of(self.root)
        if not self.cpu.tagged:
            self.flush_local()

    def cached_root(self, role: RootRole) -> RootPage | None:
        """cached_root_find_without_current(): an invalid root never matches, because `invalid` is
        part of a role."""
        for root in self.prev_roots:
            if root.role == role and not root.invalid.value:
                self.prev_roots.remove(root)
                return root
        return None

    def free_obsolete_roots(self) -> None:
        """kvm_mmu_free_obsolete_roots(): drop the current and every previous root that was
        invalidated (B26)."""
        obsolete = [root for root in self.prev_roots if root.invalid.value]
        self.prev_roots = [root for root in self.prev_roots if root not in obsolete]
        if self.root is not None and self.root.invalid.value:
            obsolete.append(self.root)
            self.root = None
        self._drop(obsolete)

    def unload(self) -> None:
        """kvm_mmu_unload(): drop every root, the previous ones too (B25)."""
        roots, self.prev_roots = self.prev_roots, []
        if self.root is not None:
            roots.append(self.root)
            self.root = None
        self._drop(roots)

    def loaded_roots(self) -> list[RootPage]:
        """Every root that this vCPU holds a reference on."""
        return [*self.prev_roots, *([self.root] if self.root is not None else [])]

    def _drop(self, roots: list[RootPage]) -> None:
        """kvm_mmu_free_roots()."""
        if roots:
            self._roots.load_lock()
            for root in roots:
                self._roots.put_loaded(root)
            self._roots.load_unlock()

    def set_smm(self, smm: bool) -> None:
        """Enter or leave system management mode: another address space, hence another root
        (kvm_mmu_reset_context)."""
        self.unload()
        self.role = RootRole(1 if smm else 0)
        self._pending = NO_ACCESS

    def set_guest_mode(self, nested: bool) -> None:
        """Enter or leave a nested guest: the same memory through another root."""
        self.switch_role(RootRole(self.role.as_id, guest_mode=nested))

    def flush_local(self) -> None:
        """kvm_vcpu_flush_tlb_all(): everything that this vCPU's CPU has cached, below any root."""
        self.stat.tlb_flush += 1
        self.cpu.flush_all()

    def flush_current(self) -> None:
        """kvm_vcpu_flush_tlb_current(): what this vCPU's CPU has cached below the loaded root."""
        self.stat.tlb_flush += 1
        self.cpu.flush_context(self.root)

    def destroy(self) -> None:
        """kvm_arch_vcpu_destroy(): off the VM's list, roots dropped, caches emptied."""
        self._requests.remove(self.state)
        self.unload()
        self.cpu.flush_all()
        self.cache.drain()
