"""An MMU notifier takes slots_lock."""

from mmu.parts import MmuNotifier, Region
from stress.mutants.case import Case, Mutant


class KeepSlotsStill(MmuNotifier):
    """Wants to see the slots that the start saw."""

    def invalidate_range_end(self, region: Region, first: int, last: int) -> None:
        """End it with slots_lock held."""
        with self.kvm.slots_lock:
            super().invalidate_range_end(region, first, last)


VARIANT = Mutant(
    name="notifier-takes-slots-lock",
    title="an MMU notifier takes slots_lock",
    parts=(KeepSlotsStill,),
    expects=("O10",),
    rule=(
        "a memslot update waits for invalidations with slots_lock and slots_arch_lock held, so no "
        "notifier may take either"
    ),
    origin="Documentation/virt/kvm/locking.rst on MMU notifiers; reference 2.1 rule 4",
    story=(
        "host: range_start",
        "memslot worker: takes slots_lock, waits until no invalidation is in progress",
        "host: range_end: waits for slots_lock",
    ),
    confidence="V",
    tags=("locks", "notifier", "memslots", "liveness"),
    controlled=Case("explore/discard-vs-delete"),
    threads=Case("quick", ("actors.host.threads=1", "limits.stall_s=1.0")),
)
