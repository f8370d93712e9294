"""O1 and O16 by obligation: what was removed from a valid root must be flushed before mmu_lock is
released."""

from __future__ import annotations

from mmu.export.importer import ExportedTdp
from mmu.machine.vm import VirtualMachine
from mmu.memory.tlb import WHOLE
from mmu.paging.spte import REMOVED_SPTE, SPTE_PS, describe
from mmu.paging.table import RootPage, ShadowPage
from mmu.probe import override
from stress.observe.oracles.base import Oracle
from stress.observe.oracles.caches import Kept, kept
from stress.scenario.types import Limits


class _Span:
    """Gfns [first, end) that were removed from a root, and which flush pays for them: one that
    starts at `latest` at the latest and does not end before `earliest`.

    A leaf is flushed by a range that touches it, since hardware drops it as a whole. A table goes
    with everything below it, so the range has to cover it.
    """

    __slots__ = ("earliest", "end", "first", "latest")

    def __init__(self, first: int, end: int, latest: int, earliest: int) -> None:
        self.first = first
        self.end = end
        self.latest = latest
        self.earliest = earliest

    def widen(self, first: int, end: int, latest: int, earliest: int) -> None:
        """Owe another flush as well. Called for every leaf of a zap, mostly in ascending order."""
        self.end = max(self.end, end)
        self.earliest = max(self.earliest, earliest)
        self.first = min(self.first, first)
        self.latest = min(self.latest, latest)

    def is_paid_by(self, gfn: int, pages: int) -> bool:
        """Whether a flush of the range is enough."""
        return pages == WHOLE or (gfn <= self.latest and self.earliest <= gfn + pages)


class _Debts:
    """What a task owes: the span of gfns removed from each valid root, for vCPUs and importers."""

    __slots__ = ("importers", "section", "vcpus")

    def __init__(self) -> None:
        self.section: int | None = None
        """The RCU read section in which the first table was removed since the last flush."""
        self.vcpus: dict[RootPage, _Span] = {}
        self.importers: dict[RootPage, _Span] = {}


class FlushOracle(Oracle):
    """Keeps a ledger of removed translations a thread, settled by flushes, due when mmu_lock(write)
    is released.

    A root that only an IOMMU walks owes vCPUs nothing, nor does any once the process is gone.
    """

    rules = ("O1", "O16")
    title = (
        "removals from a valid root are flushed, and importers told, before mmu_lock is released"
    )

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._debts = self.kvm.runtime.local(_Debts)
        self._write_sections = 0
        """How many times mmu_lock was held for write; counted by who holds it."""
        self._pages = tuple(
            self.kvm.geometry.pages(level) for level in range(1, self.kvm.geometry.levels + 2)
        )

    @override
    def spte_zapped(
        self, sp: ShadowPage, gfn: int, level: int, old: int, new: int, shared: bool
    ) -> None:
        root = sp.root
        if root is None or root.invalid.value or self.kvm.dying.value:
            return
        if shared and new != REMOVED_SPTE and not self.kvm.layout.is_present(new):
            self._not_frozen(root, gfn, level, old, new)
        debts = self._debts.mine
        end = gfn + self._pages[level - 1]
        whole = level > 1 and not old & SPTE_PS
        latest, earliest = (gfn, end) if whole else (end - 1, gfn + 1)
        to_vcpus = not root.role.iommu and not self.kvm.mm_gone.value
        to_importers = root.exported.value or self._is_walked(root)
        if to_vcpus:
            _owe(debts.vcpus, root, gfn, end, latest, earliest)
        if to_importers:
            _owe(debts.importers, root, gfn, end, latest, earliest)
        if debts.section is None and whole and (to_vcpus or to_importers):
            debts.section = self.kvm.rcu.local.mine.sections

    def _is_walked(self, root: RootPage) -> bool:
        """Whether a device walks the root, whoever knows of it."""
        return any(device.root.value is root for device in self.vm.devices())

    def _not_frozen(self, root: RootPage, gfn: int, level: int, old: int, new: int) -> None:
        """Others hold mmu_lock for read, too: they could map another frame before anybody has
        flushed this one."""
        layout = self.kvm.layout
        self.kvm.warn(
            "O1",
            "removed-without-freezing",
            f"BUG: a mapping of valid {root.describe()} was removed under mmu_lock(read) without "
            "freezing the entry",
            "under the read lock an entry is frozen first, then flushed, and only then cleared: "
            "nobody may refill it in between",
            "tdp_mmu_zap_spte_atomic(); reference 2.6, B06",
            extra=(
                (
                    "SPTE",
                    [f"old {describe(old, layout, level)}", f"new {describe(new, layout, level)}"],
                ),
            ),
            gfn=gfn,
        )

    @override
    def flush_begin(self, reason: str, gfn: int, pages: int) -> None:
        debts, reader = self._debts.mine, self.kvm.rcu.local.mine
        section, debts.section = debts.section, None
        if section is None or (reader.depth and reader.sections == section):
            return
        self.kvm.warn(
            "O1",
            "flush-after-rcu-section",
            f"WARNING: the flush for {reason} comes after the RCU section in which tables of a "
            "valid root were removed",
            "tables that were removed are flushed from every paging-structure cache inside the RCU "
            "section that keeps them from being freed: a hardware walker takes no RCU lock",
            "kvm_recover_nx_huge_pages(), tdp_mmu_iter_cond_resched(); reference 2.12, B03",
            subject=reason,
        )

    @override
    def flush_end(self, reason: str, gfn: int, pages: int, ns: int) -> None:
        owed = self._debts.mine.vcpus
        if owed:
            self.judged["O1"].add(1)
            _settle(owed, gfn, pages)

    @override
    def importers_notified(self, exported: ExportedTdp, gfn: int, pages: int, ns: int) -> None:
        debts = self._debts.mine.importers
        if not debts:
            return
        # while importers switch to another root, their devices walk either
        told = (getattr(importer, "device", None) for importer in exported.importers())
        walked = {device.root.value for device in told if device is not None}
        for root in [root for root in debts if root is exported.root.value or root in walked]:
            span = debts[root]
            self.judged["O16"].add(1)
            if span.is_paid_by(gfn, pages):
                del debts[root]
                self._check_caches(root, span)

    def _check_caches(self, root: RootPage, span: _Span) -> None:
        """The importers have returned: what was removed must be gone from the hardware by now.
        Without mmu_lock that can be told only if nobody else has held it for write meanwhile: a
        writer flushes in the end what it has removed."""
        mmu_lock, sections = self.kvm.mmu_lock, self._write_sections
        is_alone = bool(mmu_lock.held_mode())
        if not is_alone and mmu_lock.has_writer():
            return
        for device in self.vm.devices():
            if device.root.value is not root:
                continue
            self.judged["O1"].add(1)
            found = next(kept(self.kvm, device, root, span.first, span.end), None)
            if found is None or not (
                is_alone or (sections == self._write_sections and not mmu_lock.has_writer())
            ):
                continue
            self._warn_kept(found, span)

    def _warn_kept(self, found: Kept, span: _Span) -> None:
        name, gfn, what = found
        self.kvm.warn(
            "O1",
            "kept-after-invalidation",
            f"BUG: {name} still has {what} for gfn {gfn:#x} after the invalidation",
            "an invalidation is complete when neither the IOTLB, nor its partial walks, nor a "
            "device TLB behind it has what was removed",
            "reference 1.8, 8.3, R23; iommu_flush_iotlb_psi(), qi_desc_iotlb()",
            extra=(_owing(span),),
            gfn=gfn,
        )

    @override
    def memslot_end(self, change: object, slot: object, parts: object) -> None:
        # What the call removed under mmu_lock(read) is due, too.
        self._judge_debts()

    @override
    def mmu_write_unlocking(self) -> None:
        self._write_sections += 1
        self._judge_debts()

    def _judge_debts(self) -> None:
        debts = self._debts.mine
        if not (debts.vcpus or debts.importers):
            return
        self.judged["O1"].add(len(debts.vcpus))
        for root, span in debts.vcpus.items():
            self.kvm.warn(
                "O1",
                "missing-flush",
                f"WARNING: mmu_lock released although {root.describe()} lost entries that nobody "
                "flushed",
                "what was removed from a valid root must be flushed from every TLB before mmu_lock "
                "is released",
                "reference 2.7 tdp_mmu_zap_leafs() return value, 2.10; B03, B11",
                extra=(_owing(span),),
                gfn=span.first,
            )
        for root, span in debts.importers.items():
            if not self._is_walked(root):
                continue
            self.kvm.warn(
                "O16",
                "importer-not-told",
                f"WARNING: mmu_lock released although {root.describe()} lost entries that no "
                "importer was told of",
                "an importer must be told between the removal of an SPTE and the completion of the "
                "operation",
                "reference 1.8 (patch 42), invariant I18",
                extra=(_owing(span),),
                gfn=span.first,
            )
        debts.vcpus.clear()
        debts.importers.clear()
        debts.section = None


def _owing(span: _Span) -> tuple[str, list[str]]:
    """The section that says what was removed, from the first gfn to the last."""
    first, end = span.first, span.end
    return "removed", [f"gfn {first:#x}" + (f"..{end - 1:#x}" if end > first + 1 else "")]


def _owe(
    owed: dict[RootPage, _Span], root: RootPage, first: int, end: int, latest: int, earliest: int
) -> None:
    """Add what was removed to the root's span."""
    span = owed.get(root)
    if span is None:
        owed[root] = _Span(first, end, latest, earliest)
    else:
        span.widen(first, end, latest, earliest)


def _settle(owed: dict[RootPage, _Span], gfn: int, pages: int) -> None:
    """A flush of the given range has happened; what it covers is paid."""
    for root in [root for root, span in owed.items() if span.is_paid_by(gfn, pages)]:
        del owed[root]
