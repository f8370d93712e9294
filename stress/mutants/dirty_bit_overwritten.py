"""The exclusive setter stores, whatever hardware may have set meanwhile."""

from mmu.parts import SpteWriter
from stress.mutants.case import Case, Mutant


class PlainStore(SpteWriter):
    """No bit counts as volatile."""

    def has_volatile_bits(self, spte: int, level: int) -> bool:  # noqa: ARG002 - the mutant ignores both
        """Never; and hardware does not wait while this is decided."""
        self.kvm.runtime.resched()
        return False


VARIANT = Mutant(
    name="dirty-bit-overwritten",
    title="a writer replaces SPTEs by a plain store, over a D bit that hardware has just set",
    parts=(PlainStore,),
    expects=("O8",),
    rule=(
        "mmu_lock does not stop the hardware: a leaf that it can still mark is replaced by an "
        "exchange"
    ),
    origin="B56 (ba3a6120a4e7)",
    story=(
        "host: range_start; reads the leaf: writable and clean",
        "vCPU: writes; its walker sets D",
        "host: stores 0: the D bit is gone, and the frame is not reported dirty",
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
