"""Any invalidation makes every fault retry, wherever it is."""

from mmu.parts import Fault, FaultHandler, RootPage
from stress.mutants.case import Case, Control


class AnyRange(FaultHandler):
    """mmu_invalidate_retry() without the address."""

    def is_page_fault_stale(self, root: RootPage, fault: Fault) -> bool:
        """Stale while anything is being invalidated."""
        return (
            super().is_page_fault_stale(root, fault) or self.kvm.invalidation.in_progress.value > 0
        )


VARIANT = Control(
    name="unrelated-faults-retried",
    title="any invalidation makes every fault retry",
    parts=(AnyRange,),
    origin="B49 (4a42d848db95), the state before it",
    looks_wrong=(
        "Faults are held off for pages that nobody is invalidating: with enough notifiers they "
        "might never get through."
    ),
    right_because=(
        "A retry maps nothing and is always allowed; invalidations end, and a fault that comes "
        "after them goes "
        "through. It costs time, which is why the range is looked at."
    ),
    tried=(
        Case("explore/discard-vs-fault"),
        Case("explore/discard-vs-delete"),
        Case("explore/split-vs-fault"),
        Case("quick", ("actors.host.threads=1",)),
    ),
)
