"""A fault keeps the invalidation sequence in a variable that is too narrow, and signed."""

from mmu.parts import Fault, FaultHandler, RetPf
from stress.mutants.case import Case, Mutant

BITS = 2
"""Width of the variable: 32 in the kernel, where it takes 2**31 invalidations to see it."""


class NarrowSnapshot(FaultHandler):
    """`int mmu_seq` for an unsigned long."""

    def faultin_pfn(self, fault: Fault) -> RetPf:
        """The snapshot loses its high bits, and what is left is sign-extended."""
        result = super().faultin_pfn(fault)
        sign = 1 << BITS - 1
        fault.mmu_seq = ((fault.mmu_seq & (1 << BITS) - 1) ^ sign) - sign
        return result


VARIANT = Mutant(
    name="notifier-seq-truncated",
    title="a fault's snapshot of mmu_invalidate_seq is truncated and sign-extended",
    parts=(NarrowSnapshot,),
    expects=("O10",),
    rule="every fault makes progress once no invalidation of its page is in progress",
    origin="B38: 6.1.y only, fixed upstream by ba6e3fe25543 (6.3)",
    story=(
        "host: invalidates so often that the sequence has its top bit set",
        "vCPU: takes a snapshot, which becomes negative",
        "vCPU: under mmu_lock the sequence differs from it, now and for ever: the fault is retried "
        "without end",
    ),
    confidence="V",
    tags=("faults", "notifier", "liveness"),
    controlled=Case(
        "explore/discard-vs-fault",
        (
            'script.host0=["discard 0 0 1", "discard 0 0 1"]',
            'script.vcpu0=["read 0x0"]',
            "explore.max_steps=2000",
        ),
    ),
    threads=Case(
        "quick",
        ("actors.host.threads=1", "limits.stall_s=1.0", "disturbances.stutter_every_s=30.0"),
    ),
)
