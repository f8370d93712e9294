"""`struct kvm`: what every part of a VM shares - its locks, RCU and SRCU domains, sequence counts
and statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import evolve, field, frozen

from mmu.paging.geometry import PG_LEVEL_1G, Geometry
from mmu.paging.nxlist import PossibleNxHugePages
from mmu.paging.shadow import ShadowPages
from mmu.paging.spte import MMIO_GEN_BITS, PRESENT_HIGH, UPSTREAM, SpteLayout
from mmu.paging.table import PageTableMemory
from mmu.probe import Probe
from mmu.report import Report, Reporter, section, signature_of
from mmu.runtime import Cell, Runtime
from mmu.stack import capture, innermost, render
from mmu.sync import Sync
from mmu.sync.lockdep import describe_held
from mmu.task import current
from mmu.variant import Parts

ADDRESS_SPACES = 2
"""KVM_ADDRESS_SPACE_NUM on x86: 0 is normal, 1 is SMM."""


NOT_INVALIDATED = (0, 0)
"""The empty range of host page numbers."""

FailFunction = Callable[[str], bool]
"""Fault injection (fail_function): asked with the name of a step that may fail; true makes it
fail."""


@frozen
class VmConfig:
    """How a VM is built. The two bounds are in seconds.

    `frames` is the size of host memory in 4 KiB frames, of which `huge_2m` and `huge_1g` blocks are
    set aside for huge host pages; `max_level` is the largest leaf that KVM may install. `mmu_lock`
    picks `readerwriterlock`'s class (fair, reader, writer). `have_exported_tdp` builds the
    exported-root feature in. `ad_bits` says whether SPTEs have accessed and dirty bits (without
    them accesses are tracked by making leaves non-present), `pml` whether dirty bits are logged by
    hardware. `mmio_gen_bits` is how much of the memslot generation an MMIO SPTE keeps (19 in the
    kernel); `nx_huge_pages`, `eager_page_split`, `manual_protect` and `dirty_initially_set`
    (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, and its KVM_DIRTY_LOG_INITIALLY_SET) and `nx_recovery_ratio`
    are the kernel's knobs. `iommu_hint` says whether the VT-d driver hands the invalidation hint to
    the hardware (6b38a108eeb3).
    """

    geometry: Geometry = field(factory=Geometry)
    frames: int = 1 << 16
    huge_2m: int = 0
    huge_1g: int = 0
    max_level: int = PG_LEVEL_1G
    mmu_lock: str = "fair"
    have_exported_tdp: bool = True
    ad_bits: bool = True
    pml: bool = True
    mmio_caching: bool = True
    mmio_gen_bits: int = MMIO_GEN_BITS
    nx_huge_pages: bool = False
    nx_recovery_ratio: int = 60
    eager_page_split: bool = True
    manual_protect: bool = False
    dirty_initially_set: bool = False
    iommu_hint: bool = False
    pcpus: int = 0
    rcu_stall_seconds: float = 10.0

    @property
    def layout(self) -> SpteLayout:
        """CONFIG_HAVE_KVM_MMU_PRESENT_HIGH goes with the exported TDP (patch 24)."""
        return evolve(PRESENT_HIGH if self.have_exported_tdp else UPSTREAM, ad_bits=self.ad_bits)


class VmStats:
    """KVM's binary statistics of a VM that this model keeps (reference 3.2), all shared
    counters."""

    def __init__(self, runtime: Runtime) -> None:
        self.pages_4k = runtime.per_thread_counter("pages_4k")
        self.pages_2m = runtime.per_thread_counter("pages_2m")
        self.pages_1g = runtime.per_thread_counter("pages_1g")
        self.remote_tlb_flush = runtime.counter("remote_tlb_flush")
        self.remote_tlb_flush_requests = runtime.counter("remote_tlb_flush_requests")
        self.nx_lpage_splits = runtime.counter("nx_lpage_splits")
        self.tdp_mmu_pages = runtime.counter("tdp_mmu_pages")
        self.by_level = (None, self.pages_4k, self.pages_2m, self.pages_1g)

    def leaves(self) -> int:
        """Leaves of all sizes."""
        return self.pages_4k.value + self.pages_2m.value + self.pages_1g.value


class Invalidation:
    """What mmu_notifier invalidations leave behind for faults: the sequence, those in progress, and
    their range.

    `seq` and `in_progress` change under mmu_lock(write); the range is in host page numbers, [start,
    end).
    """

    STANDS_FOR: Final = "virt/kvm/kvm_main.c: kvm_mmu_invalidate_begin(), kvm_mmu_invalidate_end()"

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self.seq = kvm.runtime.counter("mmu_invalidate_seq")
        self.in_progress = kvm.runtime.counter("mmu_invalidate_in_progress")
        self.range: Cell[tuple[int, int]] = kvm.runtime.cell(
            "mmu_invalidate_range", NOT_INVALIDATED
        )

    def begin(self, start: int, end: int) -> None:
        """kvm_mmu_invalidate_begin(): faults in the range are stale from now on; the first sets it,
        others widen it."""
        self._kvm.mmu_lock.assert_held_write()
        if self.in_progress.fetch_add(1) == 0:
            self.range.value = (start, end)
        else:
            first, last = self.range.value
            self.range.value = (min(first, start), max(last, end))

    def end(self) -> None:
        """kvm_mmu_invalidate_end(): the sequence goes up first, so that no fault slips through
        between the two."""
        self._kvm.mmu_lock.assert_held_write()
        self.seq.add(1)
        if self.in_progress.fetch_add(-1) < 1:
            self._kvm.warn(
                "O9",
                "invalidate-underflow",
                "BUG: an invalidation ends that never began (mmu_invalidate_in_progress < 0)",
                "range_start and range_end must see the same memslots",
                "kvm_mmu_invalidate_end() KVM_BUG_ON; reference 2.9, 2.10, B64, invariant I12",
            )

    def retry(self, seq: int, hva: int) -> bool:
        """mmu_invalidate_retry_hva(): whether a fault that took `seq` before its pfn look-up may be
        out of date; needs mmu_lock. (is_page_fault_stale() has the same two comparisons in
        line, unless a variant replaces them.)"""
        self._kvm.mmu_lock.assert_held()
        return (self.in_progress.value > 0 and self.in_range(hva)) or self.seq.value != seq

    def retry_unsafe(self, seq: int, hva: int) -> bool:
        """mmu_invalidate_retry_gfn_unsafe(): the same question without mmu_lock, as a hint that
        saves taking it."""
        return self.in_range(hva) or self.seq.value != seq

    def in_range(self, hva: int) -> bool:
        """Whether an invalidation of this host page is in progress; without mmu_lock it is only a
        hint."""
        first, last = self.range.value
        return self.in_progress.value > 0 and first <= hva < last


class Kvm:
    """The VM's shared state. Parts get it first in their constructor and find each other through
    their own arguments. `parts` has the class of each part, for those made while the VM runs."""

    def __init__(
        self,
        config: VmConfig,
        runtime: Runtime,
        reporter: Reporter,
        probe: Probe,
        sync: Sync,
        parts: Parts,
        fail_function: FailFunction | None = None,
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.reporter = reporter
        self.probe = probe
        self.sync = sync
        self.parts = parts
        self.geometry = config.geometry
        self.layout = config.layout
        self.rcu = sync.rcu
        self.kvm_lock = sync.mutex("kvm_lock")
        self.slots_lock = sync.mutex("slots_lock")
        self.slots_arch_lock = sync.mutex("slots_arch_lock")
        self.mmu_lock = sync.rwlock("mmu_lock", config.mmu_lock)
        self.tdp_mmu_pages_lock = sync.spinlock("tdp_mmu_pages_lock")
        self.mn_invalidate_lock = sync.spinlock("mn_invalidate_lock")
        self.mn_active_invalidate_count = runtime.counter("mn_active_invalidate_count")
        self.srcu = sync.srcu("kvm->srcu")
        self.nr_memslots_dirty_logging = runtime.counter("nr_memslots_dirty_logging")
        self.created_vcpus = runtime.counter("kvm->created_vcpus")
        self.users_count = sync.refcount("kvm->users_count", 1)
        self.stat = VmStats(runtime)
        self.mmu_valid_gen = runtime.counter("mmu_valid_gen")
        self.shadow_pages = ShadowPages(runtime)
        self.invalidation = parts[Invalidation](self)
        self.nx_huge_pages: Cell[bool] = runtime.cell("nx_huge_pages", config.nx_huge_pages)
        self.dirty_clock = runtime.counter("dirty_clock", 1)
        self.pfn_dirtied = runtime.table(config.frames, "pfn_dirtied")
        """When a frame was last reported dirty to the host (kvm_set_pfn_dirty), in ticks of
        `dirty_clock`: hardware ticks before it sets a D bit, software reads the clock after it has
        taken one away."""
        self.fail_function = fail_function
        self.possible_nx_huge_pages = parts[PossibleNxHugePages](
            runtime, reporter, self.stat.nx_lpage_splits
        )
        self.mm_users = sync.refcount("mm->mm_users", 1)
        self.mm_gone: Cell[bool] = runtime.cell("kvm.mm_gone", False)
        self.dying: Cell[bool] = runtime.cell("kvm.dying", False)
        self.tables = parts[PageTableMemory](
            runtime,
            self.rcu,
            reporter,
            config.layout,
            config.geometry.entries,
            config.pcpus > 0,
        )

    def should_fail(self, step: str) -> bool:
        """should_fail(): whether fault injection makes this step fail."""
        return self.fail_function is not None and self.fail_function(step)

    def set_pfn_dirty(self, pfn: int) -> None:
        """kvm_set_pfn_dirty(): the host must write this frame back before it can drop it."""
        if pfn >= self.config.frames:
            return
        now = self.dirty_clock.value
        while True:
            seen = self.pfn_dirtied[pfn]
            if seen >= now or self.pfn_dirtied.cmpxchg(pfn, seen, now) == seen:
                return  # somebody who looked at the clock later may have been faster

    def warn(
        self,
        rule: str,
        code: str,
        headline: str,
        sentence: str,
        source: str,
        *,
        subject: str = "",
        extra: tuple[tuple[str, list[str]], ...] = (),
        gfn: int | None = None,
    ) -> None:
        """WARN_ON: report a broken rule with the caller's stack and go on."""
        here = capture(2)
        about = subject or innermost(here)
        if self.reporter.repeats(signature_of(rule, code, about)):
            return
        parts = [
            section("call trace", render(here)),
            *(section(title, lines) for title, lines in extra),
        ]
        parts.append(section(f"locks held by {current.task}", describe_held(current.task)))
        self.reporter.emit(
            Report(
                rule,
                code,
                headline,
                sentence,
                source,
                str(current.task),
                about,
                tuple(parts),
                gfn,
            )
        )
