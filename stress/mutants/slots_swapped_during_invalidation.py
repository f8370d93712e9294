"""Memslots are swapped between the start and the end of an invalidation."""

from collections.abc import Callable

from mmu.parts import Memslots
from stress.mutants.case import Case, Mutant


class SwapAtOnce(Memslots):
    """Does not look at mn_active_invalidate_count."""

    def wait_for_invalidations(self, then: Callable[[], None]) -> None:
        """No wait."""
        with self.kvm.mn_invalidate_lock:
            then()


VARIANT = Mutant(
    name="slots-swapped-during-invalidation",
    title="memslots are swapped between the start and the end of an invalidation",
    parts=(SwapAtOnce,),
    expects=("O9", "O10"),
    rule="start and end of an invalidation see the same memslots",
    origin="B64 (52ac8b358b0c)",
    story=(
        "host: range_start finds the slot: mmu_invalidate_in_progress is 1",
        "memslot worker: deletes the slot",
        "host: range_end finds none, so nothing is ended",
        "vCPU: every fault in the range is stale, for ever",
    ),
    confidence="Vt",
    tags=("notifier", "memslots", "liveness"),
    controlled=Case("explore/discard-vs-delete"),
    threads=Case(
        "quick",
        (
            "actors.host.threads=1",
            "actors.host.pause_s=0.0",
            "memory.fixed_pages=16",
            "memory.churn_pages=16",
            "limits.stall_s=1.0",
        ),
    ),
)
