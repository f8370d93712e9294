"""A root's zap is queued again while its flag still asks for it."""

from mmu.kernels import ZapByWorkqueue
from mmu.parts import RootPage
from stress.mutants.case import Case, Mutant


class FlagKept(ZapByWorkqueue):
    """The flag is not cleared when the work is queued, so the next memslot update queues it
    again."""

    def zap_scheduled_root(self, root: RootPage) -> None:
        """Whoever was told of the root once is told of it for ever."""
        super().zap_scheduled_root(root)
        root.scheduled.value = True


VARIANT = Mutant(
    name="zap-work-queued-twice",
    title="the zap of an invalidated root is queued once for every memslot update",
    parts=(FlagKept,),
    expects=("O4",),
    rule="the gifted reference of an invalidated root goes with one work item",
    origin="B21 (efd995dae5eb): a reference gifted to a work item that is queued twice",
    story=(
        "memslot worker: queues the zap of root R with the TDP MMU's reference; a resting vCPU "
        "holds R",
        "memslot worker: next update, R is still on the list: queues it again",
        "worker: puts the vCPU's reference; the vCPU drops R - underflow",
    ),
    confidence="Vt",
    tags=("roots",),
    controlled=Case("explore/two-deletes", ('vm.kernel="5.18"',)),
    threads=Case("BUSTED/double-put-of-invalid-root", ('vm.kernel="5.18"',)),
)
