"""A root is zapped in a single pass from the top."""

from mmu.parts import RootPage, Zapper
from stress.mutants.case import Case, Mutant


class OnePass(Zapper):
    """Each top-level entry goes with everything below it."""

    def zap_levels(self, root: RootPage) -> tuple[int, ...]:
        """The root's level only."""
        return (root.level,)


VARIANT = Mutant(
    name="root-zapped-in-one-pass",
    title="one step of a zap removes everything below a top-level entry",
    parts=(OnePass,),
    expects=("O10",),
    rule="no recursive removal is larger than 1 GiB",
    origin="B34 (1b6043e8e584), after B35 (0103098fb4f1) had made every step the largest possible",
    story=(
        "memslot worker: clears a top-level entry of an invalidated root: 512 GiB of tables are "
        "removed at once",
        "everybody else: waits for a grace period, or for mmu_lock, until all of it is done (RCU "
        "stall)",
    ),
    confidence="Vt",
    tags=("rcu", "liveness"),
    controlled=Case("explore/wide-root-vs-delete"),
    threads=Case("quick"),
)
