"""A writable, clean leaf does not count as volatile."""

from mmu.parts import SPTE_A, SPTE_D, SPTE_W, SpteWriter
from stress.mutants.case import Case, Mutant


class WrongWayRound(SpteWriter):
    """Takes the D bit that is still missing for one that cannot come."""

    def has_volatile_bits(self, spte: int, level: int) -> bool:
        """Only a leaf without A, or one that is dirty already; and hardware does not wait while
        this is decided."""
        self.kvm.runtime.resched()
        return super().has_volatile_bits(spte, level) and (
            not spte & SPTE_A or spte & (SPTE_W | SPTE_D) == SPTE_W | SPTE_D
        )


VARIANT = Mutant(
    name="volatile-test-inverted",
    title="a writable and clean leaf does not count as one that hardware may change",
    parts=(WrongWayRound,),
    expects=("O8",),
    rule="a leaf is volatile as long as hardware or the lockless fault path can set a bit in it",
    origin="B57 (54eb3ef56f36, 706c9c55e5a3)",
    story=(
        "host: range_start; reads the leaf: writable and clean, so it is taken for stable",
        "vCPU: writes; its walker sets D",
        "host: plain store: the D bit is lost",
    ),
    confidence="V",
    tags=("dirty", "atomic"),
    controlled=Case("explore/dirty-log-vs-migrate"),
    threads=Case(
        "explore/dirty-log-vs-migrate",
        (
            "memory.fixed_pages=4",
            'script.vcpu0=["run w0x0 w0x1 w0x2 w0x3"]',
            'script.dirty-logger=["log-on", "read-log", "read-log", "read-log"]',
            'script.host0=["migrate 0 0 4", "age 0 0 4 clear"]',
            "disturbances.stutter_every_s=0.05",
        ),
    ),
)
