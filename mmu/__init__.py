"""A model of KVM's x86 TDP MMU with an exported root, its locking and RCU rules enforced. Knows
nothing of the harness.

The public API reads like KVM's: a `VirtualMachine` with the operations of the ioctls, vCPUs, TDP
FDs. Everything that two threads share is made by a `Runtime`; broken rules are `Report` values that
a `Reporter` collects.

Names are imported when they are first used, so that `mmu.sync` on its own does not load the model.
What a variant is written with is in `mmu.parts`; docs/api.md says what is public.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmu.errors import KvmError, MmuError, SelfDeadlock
    from mmu.export.device import Dma
    from mmu.invariants import violations
    from mmu.kvm import VmConfig
    from mmu.machine.vcpu import Exit
    from mmu.machine.vm import VirtualMachine
    from mmu.memory.host import tag_of
    from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, MemoryRegion
    from mmu.paging.geometry import Geometry
    from mmu.probe import Instrument, Probe, override
    from mmu.report import Report, Reporter
    from mmu.runtime import Runtime
    from mmu.sync import Sync
    from mmu.variant import Variant

__all__ = [
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "Dma",
    "Exit",
    "Geometry",
    "Instrument",
    "KvmError",
    "MemoryRegion",
    "MmuError",
    "Probe",
    "Report",
    "Reporter",
    "Runtime",
    "SelfDeadlock",
    "Sync",
    "Variant",
    "VirtualMachine",
    "VmConfig",
    "override",
    "tag_of",
    "violations",
]

_HOMES = {
    "Dma": "mmu.export.device",
    "Exit": "mmu.machine.vcpu",
    "Geometry": "mmu.paging.geometry",
    "KVM_MEM_LOG_DIRTY_PAGES": "mmu.memory.memslots",
    "KVM_MEM_READONLY": "mmu.memory.memslots",
    "KvmError": "mmu.errors",
    "MemoryRegion": "mmu.memory.memslots",
    "MmuError": "mmu.errors",
    "Instrument": "mmu.probe",
    "Probe": "mmu.probe",
    "override": "mmu.probe",
    "Report": "mmu.report",
    "Reporter": "mmu.report",
    "Runtime": "mmu.runtime",
    "SelfDeadlock": "mmu.errors",
    "Sync": "mmu.sync",
    "Variant": "mmu.variant",
    "VirtualMachine": "mmu.machine.vm",
    "VmConfig": "mmu.kvm",
    "tag_of": "mmu.memory.host",
    "violations": "mmu.invariants",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmu' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
