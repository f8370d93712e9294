"""Everything that a variant is written with: the parts that it may replace, what their methods take
and return, and the kernel's constants.

    from mmu import Variant
    from mmu.parts import RemoteTlb

`stress list parts` has the methods of each part; docs/api.md says what may be relied on.
"""

from __future__ import annotations

from mmu.export.device import Device, Dma
from mmu.export.importer import ExportedTdp, ExportedTdps, ImporterOps
from mmu.export.iommu import KvmHwpt, PageRequest
from mmu.export.tdp_fd import Exporter, TdpFd, TdpMetadata
from mmu.export.vtd import VtdDomain
from mmu.kvm import ADDRESS_SPACES, Invalidation, Kvm, VmConfig
from mmu.machine.vcpu import FETCH, Exit, Guest, Vcpu
from mmu.memory.host import Home, HostMemory, Move, Region, tag_of
from mmu.memory.memslots import (
    GEN_UPDATE_IN_PROGRESS,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMSLOT_INVALID,
    Change,
    MemoryRegion,
    Memslot,
    MemslotListener,
    Memslots,
    MemslotSet,
)
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
from mmu.memory.tlb import (
    WHOLE,
    FlushListener,
    HardwareWalker,
    RemoteTlb,
    TranslationCache,
    span_of,
)
from mmu.paging.geometry import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Geometry
from mmu.paging.nxlist import PossibleNxHugePages
from mmu.paging.spte import (
    ADDR_MASK,
    MISCONFIG,
    MMU_WRITABLE,
    PFN_SHIFT,
    REMOVED_SPTE,
    SPTE_A,
    SPTE_D,
    SPTE_MMIO,
    SPTE_PS,
    SPTE_R,
    SPTE_RWX,
    SPTE_W,
    SPTE_X,
    SpteLayout,
)
from mmu.paging.table import PageTableMemory, RootPage, RootRole, ShadowPage
from mmu.probe import Probe
from mmu.report import Reporter
from mmu.runtime import Cell, Counter, Queue, Runtime, Table
from mmu.sync.factory import Sync
from mmu.sync.lockdep import READ, WRITE, Hold, LockDep
from mmu.sync.poison import RcuHead
from mmu.sync.probe import SyncProbe
from mmu.sync.rcu import Rcu, RcuPointer, RcuReader, RcuSection, Snapshot, Srcu, SrcuSection
from mmu.task import Task, current
from mmu.tdp.age import Ageing
from mmu.tdp.dirty import DirtyLog
from mmu.tdp.fault import NO_SLOT, Fault, FaultHandler, PageCache, RetPf
from mmu.tdp.huge import HugePages
from mmu.tdp.iter import TdpIter
from mmu.tdp.notifier import MmuNotifier
from mmu.tdp.nx import NxHugePages
from mmu.tdp.roots import Roots
from mmu.tdp.write import SpteWriter
from mmu.tdp.yielding import Yielding
from mmu.tdp.zap import BATCH_ZAP_PAGES, Export, Exports, Importer, Zapper

__all__ = [
    "ADDRESS_SPACES",
    "ADDR_MASK",
    "BATCH_ZAP_PAGES",
    "EXITING_GUEST_MODE",
    "FETCH",
    "GEN_UPDATE_IN_PROGRESS",
    "IN_GUEST_MODE",
    "KVM_MEMSLOT_INVALID",
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "KVM_REQ_MMU_FREE_OBSOLETE_ROOTS",
    "KVM_REQ_TLB_FLUSH",
    "KVM_REQ_TLB_FLUSH_CURRENT",
    "KVM_REQ_UPDATE_CPU_DIRTY_LOGGING",
    "MISCONFIG",
    "MMU_WRITABLE",
    "NO_SLOT",
    "OUTSIDE_GUEST_MODE",
    "PFN_SHIFT",
    "PG_LEVEL_1G",
    "PG_LEVEL_2M",
    "PG_LEVEL_4K",
    "READ",
    "REMOVED_SPTE",
    "SPTE_A",
    "SPTE_D",
    "SPTE_MMIO",
    "SPTE_PS",
    "SPTE_R",
    "SPTE_RWX",
    "SPTE_W",
    "SPTE_X",
    "WHOLE",
    "WRITE",
    "Ageing",
    "Cell",
    "Change",
    "Counter",
    "Device",
    "DirtyLog",
    "Dma",
    "Exit",
    "Export",
    "ExportedTdp",
    "ExportedTdps",
    "Exporter",
    "Exports",
    "Fault",
    "FaultHandler",
    "FlushListener",
    "Geometry",
    "Guest",
    "HardwareWalker",
    "Hold",
    "Home",
    "HostMemory",
    "HugePages",
    "Importer",
    "ImporterOps",
    "Invalidation",
    "Kvm",
    "KvmHwpt",
    "LockDep",
    "MemoryRegion",
    "Memslot",
    "MemslotListener",
    "MemslotSet",
    "Memslots",
    "MmuNotifier",
    "Move",
    "NxHugePages",
    "PageCache",
    "PageRequest",
    "PageTableMemory",
    "PossibleNxHugePages",
    "Probe",
    "Queue",
    "Rcu",
    "RcuHead",
    "RcuPointer",
    "RcuReader",
    "RcuSection",
    "Region",
    "RemoteTlb",
    "Reporter",
    "Requests",
    "RetPf",
    "RootPage",
    "RootRole",
    "Roots",
    "RunState",
    "Runtime",
    "ShadowPage",
    "Snapshot",
    "SpteLayout",
    "SpteWriter",
    "Srcu",
    "SrcuSection",
    "Sync",
    "SyncProbe",
    "Table",
    "Task",
    "TdpFd",
    "TdpIter",
    "TdpMetadata",
    "TranslationCache",
    "Vcpu",
    "VmConfig",
    "VtdDomain",
    "Yielding",
    "Zapper",
    "current",
    "span_of",
    "tag_of",
]
