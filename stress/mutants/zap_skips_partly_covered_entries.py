"""Zapping everything stops at the end of host memory, and skips what sticks out."""

from mmu.parts import TdpIter, Zapper
from stress.mutants.case import Case, Mutant


class CoveredEntriesOnly(Zapper):
    """The range to zap ends with host memory, and an entry must lie in it altogether."""

    def is_zapped_by_pass(self, it: TdpIter, zap_level: int) -> bool:
        """Not if it maps more than the range has."""
        end = it.gfn + self.kvm.geometry.pages(it.level)
        return end <= self.kvm.config.frames and super().is_zapped_by_pass(it, zap_level)


VARIANT = Mutant(
    name="zap-skips-partly-covered-entries",
    title="zapping all of a root leaves the tables of entries that reach beyond the end of memory",
    parts=(CoveredEntriesOnly,),
    expects=("O11", "O4"),
    rule="zapping everything clears every top-level entry, whatever part of it can be used",
    origin="B75 (524a1e4e381f)",
    story=(
        "VM: zaps a root up to the last frame that there can be",
        "VM: skips a top-level entry that maps more than that",
        "VM: is destroyed; the entry's tables are still linked",
    ),
    confidence="Vt",
    tags=("iterator", "teardown"),
    controlled=Case("explore/wide-root-vs-delete"),
    threads=Case("quick"),
)
