"""A fault reads the range of an invalidation without mmu_lock."""

from mmu.kernels import LookBeforeLocking
from stress.mutants.case import Case, Control

VARIANT = Control(
    name="look-before-locking",
    title="a fault decides to retry by what it has read without mmu_lock",
    parts=(LookBeforeLocking,),
    origin="d02c357e5bfa (6.8) on an older kernel; B48",
    looks_wrong=(
        "mmu_invalidate_in_progress and the range are two words that change under mmu_lock: what "
        "is read without "
        "it may fit no moment at all."
    ),
    right_because=(
        "A wrong yes only repeats the fault; after a wrong no the same question is asked again "
        "under mmu_lock."
    ),
    tried=(
        Case("explore/discard-vs-fault"),
        Case("explore/discard-vs-delete"),
        Case("quick", ("actors.host.threads=1",)),
    ),
)
