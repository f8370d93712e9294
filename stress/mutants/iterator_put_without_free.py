"""The root iteration drops its reference without looking whether it was the last one."""

from mmu.parts import RootPage, Roots
from stress.mutants.case import Case, Mutant


class BareDecrement(Roots):
    """Counts down, and no more."""

    def put_visited(self, root: RootPage, shared: bool) -> None:  # noqa: ARG002 - nothing is unlinked, so no lock matters
        """Never frees."""
        root.refcount.put()


VARIANT = Mutant(
    name="iterator-put-without-free",
    title="an iteration's last reference on a root does not free it",
    parts=(BareDecrement,),
    expects=("O11", "O4"),
    rule=(
        "whoever drops the last reference of a root unlinks and frees it: an iteration may be the "
        "last one"
    ),
    origin="B01 (a889ea54b3da)",
    story=(
        "memslot worker: stands on invalidated root R with a reference of its own, puts the gifted "
        "one",
        "vCPU: drops R; the iteration still holds it",
        "memslot worker: counts down to 0 and goes on; R stays on the list for ever",
    ),
    confidence="Vt",
    tags=("roots", "yield"),
    controlled=Case("explore/obsolete-root"),
    threads=Case("vcpus-only", ("budget.duration_s=3.0",)),
)
