"""A fault that has lost the race for a table goes on in the table above."""

from mmu.parts import Fault, FaultHandler, PageCache, ShadowPage
from stress.mutants.case import Case, Mutant


class GoOn(FaultHandler):
    """Does not notice that it has not reached its level."""

    def link_child(
        self, sp: ShadowPage, old: int, cache: PageCache, fault: Fault, level: int
    ) -> ShadowPage | None:
        """Where there is no child, stay where we are."""
        return super().link_child(sp, old, cache, fault, level) or sp


VARIANT = Mutant(
    name="lost-link-race-ignored",
    title="a leaf is installed at another level than it was made for",
    parts=(GoOn,),
    expects=("O2", "O7"),
    rule="a walk may end above its goal: nothing is mapped then, and the fault comes again",
    origin="B43 (50a9ac25985c)",
    story=(
        "vCPU 0: links a table",
        "vCPU 1: loses the race, and takes the parent for the child",
        "vCPU 1: puts a 4 KiB leaf into an upper table, where it is a pointer to a table",
    ),
    confidence="Vt",
    tags=("faults", "atomic"),
    controlled=Case("explore/same-page-twice"),
    threads=Case(
        "quick",
        (
            "vm.vcpus=4",
            "vm.have_exported_tdp=false",
            "actors.vcpu.smm_share=0.0",
            "memory.fixed_pages=8",
            "memory.churn_pages=8",
            'disturbances.points=["P4"]',
            "disturbances.delay_share=0.5",
        ),
    ),
)
