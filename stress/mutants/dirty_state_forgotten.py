"""A dirty leaf that goes is not reported dirty."""

from mmu.parts import SPTE_D, ShadowPage, SpteWriter
from stress.mutants.case import Case, Mutant


class ForgetDirty(SpteWriter):
    """Does not look at the D bit of what was there."""

    def handle_changed_spte(
        self, sp: ShadowPage, gfn: int, old: int, new: int, shared: bool
    ) -> None:
        """As if the leaf had been clean."""
        super().handle_changed_spte(sp, gfn, old & ~SPTE_D, new, shared)


VARIANT = Mutant(
    name="dirty-state-forgotten",
    title="the host is not told that the page of a removed leaf is dirty",
    parts=(ForgetDirty,),
    expects=("O8",),
    rule="whoever takes a D bit away reports the frame dirty",
    origin="reference 2.6 handle_changed_spte(), kvm_set_pfn_dirty()",
    story=(
        "vCPU: writes; hardware sets D",
        "host: range_start: zaps the leaf and says nothing",
        "host: drops the page as clean",
    ),
    confidence="V",
    tags=("dirty",),
    controlled=Case("explore/dirty-log-vs-migrate"),
    threads=Case(
        "explore/dirty-log-vs-migrate",
        (
            'script.dirty-logger=["log-on", "read-log", "read-log"]',
            "disturbances.stutter_every_s=0.1",
        ),
    ),
)
