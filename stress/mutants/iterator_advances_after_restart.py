"""After a yield a walk restarts at its goal and then steps past it."""

from mmu.parts import TdpIter, Yielding
from stress.mutants.case import Case, Mutant


class RestartAtOnce(Yielding):
    """Restarts when it has yielded, and lets the caller's next step advance."""

    def iter_cond_resched(self, it: TdpIter, flush: bool, shared: bool) -> bool:
        """The entry at the goal is never visited."""
        if not super().iter_cond_resched(it, flush, shared):
            return False
        it.restart()
        return True


VARIANT = Mutant(
    name="iterator-advances-after-restart",
    title="a walk that has yielded skips the entry at which it goes on",
    parts=(RestartAtOnce,),
    expects=("O11", "O4"),
    rule="after a yield the walk visits its goal before it advances",
    origin="B16 (3a0f64de479c)",
    story=(
        "memslot worker: zaps an invalidated root; mmu_lock is contended at the second top-level "
        "entry: yields",
        "memslot worker: restarts at that entry and steps past it",
        "memslot worker: puts the last reference of a root that still has tables",
    ),
    confidence="Vt",
    tags=("yield", "iterator"),
    controlled=Case("explore/wide-root-vs-delete"),
    threads=Case(
        "vcpus-only", ("actors.vcpu.unmapped_share=0.2", "actors.memslot_worker.pause_s=0.0")
    ),
)
