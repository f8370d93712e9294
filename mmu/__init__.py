"""A model of KVM's x86 TDP MMU with an exported root, its locking and RCU rules enforced. Knows
nothing of the harness.

The public API reads like KVM's: a `VirtualMachine` with the operations of the ioctls, vCPUs, TDP
FDs. Everything that two threads share is made by a `Runtime`; broken rules are `Report` values that
a `Reporter` collects.

Names are imported when they are first used, so that `mmu.sync` on its own does not load the model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmu.errors import KvmError as KvmError
    from mmu.errors import MmuError as MmuError
    from mmu.errors import SelfDeadlock as SelfDeadlock
    from mmu.kvm import VmConfig as VmConfig
    from mmu.machine.vm import VirtualMachine as VirtualMachine
    from mmu.memory.memslots import MemoryRegion as MemoryRegion
    from mmu.paging.geometry import Geometry as Geometry
    from mmu.probe import Probe as Probe
    from mmu.report import Report as Report
    from mmu.report import Reporter as Reporter
    from mmu.runtime import Runtime as Runtime
    from mmu.sync import Sync as Sync
    from mmu.variant import Variant as Variant

_HOMES = {
    "KvmError": "mmu.errors",
    "MmuError": "mmu.errors",
    "SelfDeadlock": "mmu.errors",
    "VmConfig": "mmu.kvm",
    "VirtualMachine": "mmu.machine.vm",
    "MemoryRegion": "mmu.memory.memslots",
    "Geometry": "mmu.paging.geometry",
    "Probe": "mmu.probe",
    "Report": "mmu.report",
    "Reporter": "mmu.report",
    "Runtime": "mmu.runtime",
    "Sync": "mmu.sync",
    "Variant": "mmu.variant",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmu' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
