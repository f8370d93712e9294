"""A model of KVM's x86 TDP MMU with an exported root, its locking and RCU rules enforced. Knows nothing of the harness.

The public API reads like KVM's: a `VirtualMachine` with the operations of the ioctls, vCPUs, TDP FDs. Everything that
two threads share is made by a `Runtime`; broken rules are `Report` values that a `Reporter` collects.
"""

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
