"""The NX recovery worker zaps by a walk that may yield, and that knows nothing of the flush the
worker owes."""

from mmu.parts import NxHugePages, ShadowPage
from stress.mutants.case import Case, Mutant


class ZapByYieldingWalk(NxHugePages):
    """Empties a table through kvm_tdp_mmu_zap_gfn_range(), which yields, before it removes it."""

    def recover_page(self, sp: ShadowPage) -> bool:
        """The callee may drop mmu_lock; what earlier pages owe stays with the caller. There was no
        RCU section around it then."""
        assert sp.root is not None
        end = sp.gfn + self.kvm.geometry.pages(sp.level + 1)
        self.kvm.rcu.read_unlock()
        flush = self.zapper.zap_leafs(sp.root, sp.gfn, end, can_yield=True, flush=False)
        self.kvm.rcu.read_lock()
        if sp not in self.kvm.possible_nx_huge_pages.pages():
            return flush  # somebody else has removed it meanwhile
        return super().recover_page(sp) or flush


VARIANT = Mutant(
    name="nx-recovery-yields-in-zap",
    title="NX recovery zaps by a walk that yields while a flush is owed",
    parts=(ZapByYieldingWalk,),
    expects=("O1",),
    rule="who may drop mmu_lock must be told of every flush that is owed, and nobody else drops it",
    origin="B05 (33a3164161fc)",
    story=(
        "recovery worker: zaps the first table: a flush is owed",
        "recovery worker: zaps the second by a walk, which finds mmu_lock contended and drops it",
        "vCPU: goes on through the first table",
    ),
    confidence="V",
    tags=("flush", "nx", "yield"),
    controlled=Case("explore/nx-recovery-of-two"),
    threads=Case(
        "rfc-v1/R11-nx-recovery-warns",
        (
            "obligations={}",
            "actors.dirty_log.enabled=false",
            "vm.nx_recovery_ratio=1",
            "actors.vcpu.fetch_share=0.9",
        ),
    ),
)
