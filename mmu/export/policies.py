"""What KVM does with an exported root when memslots change (reference 5.2): five policies, and one
that is wrong."""

from __future__ import annotations

from mmu.export.republish import REPUBLISH
from mmu.export.separate_root import SEPARATE_ROOT
from mmu.memory.memslots import Memslot
from mmu.paging.table import RootPage
from mmu.tdp.roots import Roots
from mmu.tdp.zap import Zapper
from mmu.variant import Variant

KEEP_VALID = Variant(
    name="keep-valid",
    title=(
        "A, the seed: the exported root stays valid, all its leaves are zapped under "
        "mmu_lock(write)"
    ),
    parts=(),
    origin="RFC PATCH 36/42, reference 1.9",
)


class _YieldingExportedZap(Zapper):
    """The exported zap pins each root, so it may yield; what it owes is flushed before every
    yield."""

    def zap_exported_roots(self) -> None:
        """Every exported root, with a reference held on it."""
        self.kvm.mmu_lock.assert_held_write()
        if not self.kvm.config.have_exported_tdp:
            return
        for root in self.roots.each_yield_safe(shared=False):
            if root.exported.value:
                self.zap_exported_root(root)

    def zap_exported_leafs(self, root: RootPage) -> bool:
        """All leaves, yielding when mmu_lock is contended."""
        return self.zap_leafs(root, 0, self.kvm.geometry.max_gfn + 1, can_yield=True, flush=False)


KEEP_VALID_YIELDING = Variant(
    name="keep-valid-yielding",
    title=(
        "A', the seed with yielding: each exported root is pinned, and flushed before mmu_lock is "
        "dropped"
    ),
    parts=(_YieldingExportedZap,),
    origin="reference 5.2 A'",
)


class _InvalidateExported(Roots):
    """The exported root is invalidated like any other."""

    def keeps_valid(self, root: RootPage) -> bool:  # noqa: ARG002 - no root is special
        """No root is spared."""
        return False


class _NoExportedZap(Zapper):
    """Nothing is left to zap: the invalidated roots' own zap follows, without a flush."""

    def zap_exported_roots(self) -> None:
        """Nothing."""


INVALIDATE_IN_PLACE = Variant(
    name="invalidate-in-place",
    title="C, the negative control: the exported root is invalidated like any other",
    parts=(_InvalidateExported, _NoExportedZap),
    expects=("O12", "O1"),
    rule="an importer cannot be kicked off a root, so its root must not become invalid",
    origin="reference 1.10, 5.2 C",
    story=(
        "consumer: holds the exported root, IOTLB warm",
        "memslot worker: invalidates the root, zaps it under the read lock without a flush",
        "consumer: DMA through the old root reaches released memory",
    ),
)


class _SlotLeavesOnly(Zapper):
    """KVM_X86_QUIRK_SLOT_ZAP_ALL disabled: roots stay, whatever happens to memslots."""

    def flush_shadow_memslot(self, slot: Memslot) -> None:
        """Zap the slot's leaves in every root, exported ones like the others."""
        before = self.kvm.stat.leaves()
        self.zap_memslot_leafs(slot)
        for export in self.exports.all():
            root = export.root.value
            if root is not None:
                self.exported_zapped(root, before)


SLOT_LEAVES = Variant(
    name="slot-leaves",
    title=(
        "D: roots stay valid, only the slot's leaves are zapped (the slot-zap quirk of 6.12 "
        "switched off)"
    ),
    parts=(_SlotLeavesOnly,),
    origin="aa8d1f48d353, reference 5.2 D",
)

POLICIES: dict[str, Variant] = {
    policy.name: policy
    for policy in (
        KEEP_VALID,
        KEEP_VALID_YIELDING,
        REPUBLISH,
        INVALIDATE_IN_PLACE,
        SLOT_LEAVES,
        SEPARATE_ROOT,
    )
}
"""Every policy by name."""
