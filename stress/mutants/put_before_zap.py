"""The TDP MMU's own reference is dropped when a root is invalidated, not after it was zapped."""

from mmu.parts import RootPage, Roots, Zapper
from stress.mutants.case import Case, Mutant


class PutAtInvalidation(Roots):
    """Drops the gifted reference too early."""

    def invalidate(self, root: RootPage) -> None:
        """Invalidate, and put at once."""
        super().invalidate(root)
        self.put_root(root, shared=False)


class ZapWithoutPut(Zapper):
    """The zap finds the reference gone."""

    def zap_scheduled_root(self, root: RootPage) -> None:
        """Zap only."""
        self.zap_root(root, shared=True)
        root.zapped.value = True


VARIANT = Mutant(
    name="put-before-zap",
    title="the reference of an invalidated root is put before the zap",
    parts=(PutAtInvalidation, ZapWithoutPut),
    expects=("O4",),
    rule=(
        "the TDP MMU's reference is put after the zap, so that the last put never meets a root "
        "with mappings"
    ),
    origin="B21 (22b94c4b63eb), reference 2.2",
    story=(
        "memslot worker: invalidates root R and puts the TDP MMU's reference",
        "vCPU: drops R; the last reference is gone, R is unlinked and freed",
        "memslot worker: R is not on the list any more, so its tables are never zapped",
    ),
    confidence="Vt",
    tags=("roots",),
    controlled=Case("explore/obsolete-root"),
    threads=Case("BUSTED/put-before-zap"),
)
