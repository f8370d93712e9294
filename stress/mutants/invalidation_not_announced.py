"""MMU notifiers unmap pages without telling faults that an invalidation is in progress."""

from mmu.parts import MmuNotifier
from stress.mutants.case import Case, Mutant


class UnmapOnly(MmuNotifier):
    """Zaps and flushes, and leaves mmu_invalidate_seq alone."""

    def invalidate_begin(self, start: int, end: int) -> None:
        """Nothing."""

    def invalidate_end(self) -> None:
        """Nothing."""


VARIANT = Mutant(
    name="invalidation-not-announced",
    title="pages of a live slot are unmapped outside an invalidation",
    parts=(UnmapOnly,),
    expects=("O5", "O6"),
    rule=(
        "a live slot's range is unmapped only while an invalidation is in progress: else a fault "
        "refills it behind the zap"
    ),
    origin="B72 (28cf49788107); reference 2.10, invariant I12",
    story=(
        "vCPU: finds the frame, waits for mmu_lock",
        "host: range_start: zaps, flushes, unlocks; frees the frame",
        "vCPU: maps the frame: nothing tells that it is stale",
    ),
    confidence="Vt",
    tags=("notifier", "faults"),
    controlled=Case("explore/discard-vs-fault"),
    threads=Case("quick", ("actors.host.threads=1",)),
)
