"""The lock order of KVM as it is documented (reference 2.1; Documentation/virt/kvm/locking.rst).

lockdep learns it when a VM is made, as the kernel teaches its own in places with might_lock(): an
acquisition in the wrong order is reported the first time, although nobody has taken the locks in
the right one. Locks that the model has not (kvm->lock, vcpu->mutex, irq_lock) are left out.
"""

from __future__ import annotations

from typing import Final

from mmu.sync.lockdep import READ, WRITE, LockDep

ANY: Final = (READ, WRITE)
ONE: Final = (WRITE,)
SHARED: Final = (READ,)
Held = tuple[str, tuple[int, ...]]

DOCUMENTED: Final[tuple[tuple[int, Held, Held], ...]] = (
    (1, ("kvm_lock", ONE), ("slots_lock", ONE)),
    (2, ("slots_lock", ONE), ("slots_arch_lock", ONE)),
    (2, ("slots_lock", ONE), ("kvm->srcu", ONE)),
    (3, ("kvm->srcu", SHARED), ("slots_arch_lock", ONE)),
    (5, ("kvm->srcu", SHARED), ("mmu_lock", ANY)),
    (5, ("mmu_lock", ANY), ("tdp_mmu_pages_lock", ONE)),
    (7, ("slots_lock", ONE), ("exported_tdp_cache_lock", ONE)),
    (7, ("exported_tdp_cache_lock", ONE), ("mmu_lock", ANY)),
    (7, ("mmu_lock", ANY), ("exported_tdplist_lock", ONE)),
    (7, ("exported_tdplist_lock", ONE), ("importer_lock", ONE)),
)
"""The number of the rule, the outer lock, the inner lock; of SRCU, ONE is synchronize_srcu()."""
SOURCE: Final = "Documentation/virt/kvm/locking.rst; reference 2.1 rule "


def document(lockdep: LockDep) -> None:
    """Teach `lockdep` the order."""
    for rule, (outer, outer_modes), (inner, inner_modes) in DOCUMENTED:
        # Every lock is there but those of single exported TDPs, which spin.
        before, after = (lockdep.register(name, sleeping=False) for name in (outer, inner))
        for outer_mode in outer_modes:
            for inner_mode in inner_modes:
                lockdep.document(before, outer_mode, after, inner_mode, f"{SOURCE}{rule}")
