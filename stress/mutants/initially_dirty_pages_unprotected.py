"""The log is cleared without a look at huge leaves."""

from mmu.parts import DirtyLog, Memslot
from stress.mutants.case import Case, Mutant


class SmallPagesOnly(DirtyLog):
    """Only 4 KiB leaves are protected again."""

    def protect_huge_pages(self, slot: Memslot, first: int, last: int) -> None:
        """Do nothing, as if they had been protected when logging was switched on."""


VARIANT = Mutant(
    name="initially-dirty-pages-unprotected",
    title="with all pages initially dirty, clearing the log protects no huge leaf",
    parts=(SmallPagesOnly,),
    expects=("O8",),
    rule=(
        "a huge leaf that was not protected when logging was switched on is write-protected "
        "before the log of its pages is cleared"
    ),
    origin="kvm_arch_mmu_enable_log_dirty_pt_masked(), reference 2.11, B62",
    story=(
        "dirty logger: switches logging on, all pages dirty: nothing is protected",
        "dirty logger: clears the log of every page",
        "vCPU: writes through the huge leaf: the page is in no log",
    ),
    confidence="A",
    tags=("dirty", "huge"),
    controlled=Case("explore/log-initially-set"),
    threads=Case(
        "explore/log-initially-set",
        (
            'script.dirty-logger=["log-on", "read-log", "read-log", "read-log", "log-off"]',
            'script.vcpu0=["write 0x0", "write 0x1", "write 0x2", "write 0x3"]',
        ),
    ),
)
