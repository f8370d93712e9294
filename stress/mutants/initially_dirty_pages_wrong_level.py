"""The log is cleared with only the largest leaves write-protected."""

from mmu.parts import PG_LEVEL_2M, DirtyLog, Memslot
from stress.mutants.case import Case, Mutant


class OneLevelUp(DirtyLog):
    """Protects from 1 GiB on."""

    def slot_gfn_write_protect(self, slot: Memslot, gfn: int, min_level: int) -> bool:
        """One level above the one that was asked for."""
        return super().slot_gfn_write_protect(slot, gfn, min_level + (min_level == PG_LEVEL_2M))


VARIANT = Mutant(
    name="initially-dirty-pages-wrong-level",
    title="with all pages initially dirty, clearing the log protects leaves from 1 GiB on",
    parts=(OneLevelUp,),
    expects=("O8",),
    rule=(
        "a huge leaf that was not protected when logging was switched on is write-protected "
        "before the log of its pages is cleared"
    ),
    origin="kvm_arch_mmu_enable_log_dirty_pt_masked(), reference 2.11, B62",
    story=(
        "dirty logger: switches logging on, all pages dirty: nothing is protected",
        "dirty logger: clears the log and protects no leaf of 2 MiB",
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
