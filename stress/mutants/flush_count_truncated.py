"""Whether a flush is owed is kept in a number that is too narrow for its count."""

from mmu.parts import Zapper
from stress.mutants.case import Case, Mutant

WIDTH = 2
"""Bits of the number: four leaves are none."""


class NarrowCount(Zapper):
    """Counts the leaves that were zapped, and keeps the low bits of the count."""

    def zap_roots_leafs(self, as_id: int, start: int, end: int, *, flush: bool = False) -> bool:
        """A flush is owed if any of the bits is set."""
        before = self.kvm.stat.leaves()
        super().zap_roots_leafs(as_id, start, end, flush=flush)
        zapped = before - self.kvm.stat.leaves()
        return flush or zapped & ((1 << WIDTH) - 1) != 0


VARIANT = Mutant(
    name="flush-count-truncated",
    title="four zapped leaves need no flush: the count has overflowed",
    parts=(NarrowCount,),
    expects=("O1",),
    rule="a zap that removed anything owes a flush, however much it was",
    origin="B08 (88bf56d04bc3), tlbs_dirty kept in an int",
    story=(
        "vCPU: uses four pages",
        "host: reclaims them: four leaves are zapped, 4 is 0 in two bits, nothing is flushed",
        "vCPU: writes to one of them through its TLB",
    ),
    confidence="Vt",
    tags=("flush", "notifier"),
    controlled=Case(
        "explore/discard-vs-fault",
        (
            "memory.fixed_pages=4",
            'script.setup=["vcpu0: run w0x0 w0x1 w0x2 w0x3"]',
            'script.vcpu0=["write 0x1"]',
            'script.host0=["discard 0 0 4"]',
        ),
    ),
    threads=Case("quick", ("actors.host.threads=1", "actors.vcpu.window_pages=16")),
)
