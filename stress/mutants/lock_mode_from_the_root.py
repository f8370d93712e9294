"""In which mode mmu_lock must be held to drop a root is read off the root itself, which may have
changed."""

from mmu.parts import RootPage, Roots
from stress.mutants.case import Case, Mutant


class ModeFromRole(Roots):
    """Takes an invalid root for one of those that readers drop."""

    def put_loaded(self, root: RootPage) -> None:
        """The mode follows from mutable state, not from what the caller has locked."""
        self.put_root(root, shared=root.invalid.value)


VARIANT = Mutant(
    name="lock-mode-from-the-root",
    title="the mode of mmu_lock for dropping a root is derived from the root's own state",
    parts=(ModeFromRole,),
    expects=("O5",),
    rule=(
        "the mode in which a lock is held is the caller's knowledge, and no property of what it "
        "protects"
    ),
    origin="B28 (1bc26cb90902, fixes 576a15de8d29)",
    story=(
        "vCPU: takes mmu_lock for write to drop its root",
        "vCPU: the root has become invalid meanwhile, so it is put as by a reader",
    ),
    confidence="V",
    tags=("roots", "locks"),
    controlled=Case("explore/obsolete-root"),
    threads=Case("vcpus-only"),
)
