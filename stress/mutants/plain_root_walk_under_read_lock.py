"""The plain walk of the roots is used with mmu_lock held for read."""

from collections.abc import Iterator

from mmu.parts import RootPage, Roots
from stress.mutants.case import Case, Mutant


class PlainForReaders(Roots):
    """Readers do not bother to take references."""

    def each_yield_safe(
        self, shared: bool, *, only_valid: bool = False, as_id: int | None = None
    ) -> Iterator[RootPage]:
        """for_each_tdp_mmu_root() where the lock is held for read."""
        if not shared:
            yield from super().each_yield_safe(shared, only_valid=only_valid, as_id=as_id)
            return
        for root in self.each():
            if as_id in (None, root.role.as_id) and not (only_valid and root.invalid.value):
                yield root


VARIANT = Mutant(
    name="plain-root-walk-under-read-lock",
    title="roots are walked without references although mmu_lock is held for read only",
    parts=(PlainForReaders,),
    expects=("O5",),
    rule="a walk of the roots without references needs mmu_lock held for write",
    origin="B20 (226b8c8f85e4)",
    story=(
        "memslot worker: walks the list of roots under mmu_lock(read), holding none of them",
        "another reader: puts the last reference of the root it stands on, which leaves the list",
        "memslot worker: goes on from there",
    ),
    confidence="Vt",
    tags=("roots", "locks"),
    controlled=Case("explore/obsolete-root"),
    threads=Case("vcpus-only"),
)
