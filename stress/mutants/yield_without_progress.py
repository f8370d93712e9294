"""A walk may yield again where it has yielded before."""

from mmu.parts import TdpIter, Yielding
from stress.mutants.case import Case, Mutant


class NoGuard(Yielding):
    """Yields whenever mmu_lock is contended."""

    def must_advance(self, it: TdpIter) -> bool:  # noqa: ARG002 - where the walk stands is not looked at
        """Never."""
        return False


VARIANT = Mutant(
    name="yield-without-progress",
    title="a walk yields without having moved since its last yield",
    parts=(NoGuard,),
    expects=("O10",),
    rule="between two yields a walk moves its goal",
    origin="B07 (ed5e484b79e8)",
    story=(
        "host: walks under mmu_lock(write), which a memslot worker waits for: yields at its first "
        "entry",
        "memslot worker: walks, and the host waits: yields at its first entry",
        "both: hand the lock to each other for ever",
    ),
    confidence="Vt",
    tags=("yield", "liveness"),
    controlled=Case("explore/obsolete-root"),
    threads=Case("quick"),
)
