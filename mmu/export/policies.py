"""What KVM does with an exported root when memslots change (reference 5.2)."""

from __future__ import annotations

from mmu.paging.table import RootPage
from mmu.tdp.roots import Roots
from mmu.tdp.zap import Zapper
from mmu.variant import Variant

KEEP_VALID = Variant(
    name="keep-valid",
    title="A, the seed: the exported root stays valid, all its leaves are zapped under mmu_lock(write)",
    parts=(),
    origin="RFC PATCH 36/42, reference 1.9",
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

POLICIES: dict[str, Variant] = {policy.name: policy for policy in (KEEP_VALID, INVALIDATE_IN_PLACE)}
"""Every policy by name."""
