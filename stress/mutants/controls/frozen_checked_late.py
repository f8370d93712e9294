"""A fault makes its SPTE before it looks whether the entry is frozen."""

from mmu.parts import REMOVED_SPTE, Fault, FaultHandler, RetPf, ShadowPage
from stress.mutants.case import Case, Control


class MakeFirst(FaultHandler):
    """make_spte() and then is_removed_spte()."""

    def map_handle_target_level(self, sp: ShadowPage, index: int, fault: Fault, old: int) -> RetPf:
        """An SPTE too many where the entry is frozen; the page counts as dirty although nothing was
        written."""
        if old == REMOVED_SPTE and fault.pfn >= 0:
            self.make_spte(fault)
        return super().map_handle_target_level(sp, index, fault, old)


VARIANT = Control(
    name="frozen-checked-late",
    title="a fault makes its SPTE before it looks whether the entry is frozen",
    parts=(MakeFirst,),
    origin="B47 (58298b068137), the order before it",
    looks_wrong="make_spte() marks the page dirty in its slot, and then nothing is mapped.",
    right_because=(
        "A page too many in the dirty log is copied once too often; one too few would be lost. The "
        "SPTE itself was never visible."
    ),
    tried=(
        Case("explore/log-off-vs-fault"),
        Case("explore/log-off-vs-fetch"),
        Case(
            "explore/log-off-vs-fault", ('script.dirty-logger=["log-on", "read-log", "log-off"]',)
        ),
        Case("full"),
    ),
)
