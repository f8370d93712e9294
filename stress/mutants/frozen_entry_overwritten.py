"""A fault installs its SPTE over a frozen one."""

from mmu.parts import Fault, FaultHandler
from stress.mutants.case import Case, Mutant


class FrozenIsFree(FaultHandler):
    """Takes REMOVED_SPTE for an entry that is merely not present."""

    def leaves_frozen_alone(self, fault: Fault) -> bool:
        """It does not."""
        super().leaves_frozen_alone(fault)
        return False


VARIANT = Mutant(
    name="frozen-entry-overwritten",
    title="a fault installs its SPTE over a frozen one",
    parts=(FrozenIsFree,),
    expects=("O7",),
    rule="a frozen entry is changed by nobody but whoever froze it",
    origin="B41 (f5d16bb9be68), B47 (58298b068137); reference 2.6",
    story=(
        "dirty logger: logging goes off; freezes a table's entry under mmu_lock(read) and is about "
        "to flush",
        "vCPU: fault in that range, stands before the frozen entry, and exchanges it for its own",
        "dirty logger: flushes, and stores 0 over what the vCPU has linked: it is lost",
    ),
    confidence="Vt",
    tags=("faults", "atomic", "huge"),
    controlled=Case("explore/log-off-vs-fault"),
    threads=Case(
        "explore/log-off-vs-fault",
        (
            'script.dirty-logger=["log-on", "log-off"]',
            'script.vcpu0=["write 0x0", "write 0x1", "write 0x2"]',
            'disturbances.points=["P6"]',
            "disturbances.delay_share=0.5",
        ),
    ),
)
