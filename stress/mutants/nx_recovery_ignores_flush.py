"""The NX recovery worker takes no notice that the zap of a table asks for a flush."""

from mmu.parts import NxHugePages, ShadowPage
from stress.mutants.case import Case, Mutant


class ResultDropped(NxHugePages):
    """Zaps, and forgets what that owes."""

    def recover_page(self, sp: ShadowPage) -> bool:
        """Nothing is ever owed."""
        super().recover_page(sp)
        return False


VARIANT = Mutant(
    name="nx-recovery-ignores-flush",
    title="the NX recovery worker zaps a table and does not flush",
    parts=(ResultDropped,),
    expects=("O1",),
    rule=(
        "what was removed from a valid root must be flushed before the RCU section and mmu_lock "
        "that protect it are left"
    ),
    origin="B03 (048f49809c52)",
    story=(
        "vCPU: executes from a small page under the mitigation: its walker has cached the table",
        "recovery worker: zaps the table, releases mmu_lock, leaves RCU",
        "vCPU: goes on through the table, which is freed",
    ),
    confidence="Vt",
    tags=("flush", "nx"),
    controlled=Case("explore/nx-recovery-vs-fetch"),
    threads=Case(
        "rfc-v1/R11-nx-recovery-warns", ("obligations={}", "actors.dirty_log.enabled=false")
    ),
)
