"""A nested guest's writes are left to page modification logging, which does not log them."""

from mmu.parts import DirtyLog, RootPage
from stress.mutants.case import Case, Mutant


class PmlForAll(DirtyLog):
    """Trusts D bits wherever there are any."""

    def needs_write_protect(self, root: RootPage) -> bool:
        """Only what a device writes."""
        config = self.kvm.config
        return not (config.ad_bits and config.pml) or self.is_written_by_device(root)


VARIANT = Mutant(
    name="nested-writes-not-logged",
    title="a nested guest's writes are left to page modification logging",
    parts=(PmlForAll,),
    expects=("O8",),
    rule="writers whose writes no hardware logs are write-protected while dirty pages are logged",
    origin="B61 (2673dfb591a3, CVE-2024-26990)",
    story=(
        "dirty logger: reads the log, clears D bits only",
        "vCPU, in a nested guest: writes: hardware sets D and logs nothing",
        "dirty logger: reads the log again: the page is in neither",
    ),
    confidence="Vt",
    tags=("dirty", "nested"),
    controlled=Case("explore/dirty-log-vs-nested-write"),
    threads=Case(
        "quick",
        (
            "actors.dirty_log.enabled=true",
            "actors.vcpu.nested_share=0.3",
            "actors.vcpu.churn_share=0.1",
        ),
    ),
)
