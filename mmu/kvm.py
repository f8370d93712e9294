"""`struct kvm`: what every part of a VM shares - its locks, RCU and SRCU domains, sequence counts and statistics."""

from __future__ import annotations

from attrs import field, frozen

from mmu.paging.geometry import Geometry
from mmu.paging.spte import PRESENT_HIGH, UPSTREAM, SpteLayout
from mmu.paging.table import PageTableMemory
from mmu.probe import Probe
from mmu.report import Report, Reporter, section
from mmu.runtime import Cell, Runtime
from mmu.stack import capture, render
from mmu.sync import Sync
from mmu.sync.lockdep import describe_held
from mmu.task import current

ADDRESS_SPACES = 2
"""KVM_ADDRESS_SPACE_NUM on x86: 0 is normal, 1 is SMM."""


@frozen
class VmConfig:
    """How a VM is built.

    `frames` is the size of host memory in 4 KiB frames; `mmu_lock` picks `readerwriterlock`'s class (fair, reader,
    writer); `have_exported_tdp` builds the exported-root feature in; `ad_bits` says whether SPTEs have accessed and
    dirty bits (without them every fault tries the lockless path first); the two bounds are in seconds; `poisoning`
    turns freed pages into reporters; `checked` false leaves out every rule of `mmu.sync`, to measure what they cost.
    """

    geometry: Geometry = field(factory=Geometry)
    frames: int = 1 << 16
    mmu_lock: str = "fair"
    have_exported_tdp: bool = True
    ad_bits: bool = True
    rcu_stall_seconds: float = 10.0
    poisoning: bool = True
    checked: bool = True

    @property
    def layout(self) -> SpteLayout:
        """CONFIG_HAVE_KVM_MMU_PRESENT_HIGH goes with the exported TDP (patch 24)."""
        return PRESENT_HIGH if self.have_exported_tdp else UPSTREAM


class VmStats:
    """KVM's binary statistics of a VM that this model keeps (reference 3.2), all shared counters."""

    def __init__(self, runtime: Runtime) -> None:
        self.pages_4k = runtime.per_thread_counter("pages_4k")
        self.pages_2m = runtime.per_thread_counter("pages_2m")
        self.pages_1g = runtime.per_thread_counter("pages_1g")
        self.remote_tlb_flush = runtime.counter("remote_tlb_flush")
        self.remote_tlb_flush_requests = runtime.counter("remote_tlb_flush_requests")
        self.tdp_mmu_pages = runtime.counter("tdp_mmu_pages")
        self.by_level = (None, self.pages_4k, self.pages_2m, self.pages_1g)


class Kvm:
    """The VM's shared state. Parts get it first in their constructor and find each other through their own arguments."""

    def __init__(
        self,
        config: VmConfig,
        runtime: Runtime,
        reporter: Reporter,
        probe: Probe,
        sync: Sync,
        table_memory: type[PageTableMemory] = PageTableMemory,
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.reporter = reporter
        self.probe = probe
        self.sync = sync
        self.geometry = config.geometry
        self.layout = config.layout
        self.rcu = sync.rcu
        self.slots_lock = sync.mutex("slots_lock")
        self.slots_arch_lock = sync.mutex("slots_arch_lock")
        self.mmu_lock = sync.rwlock("mmu_lock", config.mmu_lock)
        self.tdp_mmu_pages_lock = sync.spinlock("tdp_mmu_pages_lock")
        self.srcu = sync.srcu("kvm->srcu")
        self.users_count = sync.refcount("kvm->users_count", 1)
        self.mmu_valid_gen = runtime.counter("mmu_valid_gen")
        self.mmu_invalidate_seq = runtime.counter("mmu_invalidate_seq")
        self.mmu_invalidate_in_progress = runtime.counter("mmu_invalidate_in_progress")
        self.dying: Cell[bool] = runtime.cell("kvm.dying", False)
        self.stat = VmStats(runtime)
        self.tables = table_memory(runtime, self.rcu, reporter, config.layout, config.geometry.entries, poisoning=config.poisoning)

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
        parts = [section("call trace", render(here)), *(section(title, lines) for title, lines in extra)]
        parts.append(section(f"locks held by {current.task}", describe_held(current.task)))
        self.reporter.emit(
            Report(rule, code, headline, sentence, source, str(current.task), subject or here[0][0].co_qualname, tuple(parts), gfn)
        )
