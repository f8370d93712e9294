"""The lockless fault path makes a huge leaf writable while dirty pages are logged."""

from mmu.parts import Fault, FaultHandler, ShadowPage
from stress.mutants.case import Case, Mutant


class AnySize(FaultHandler):
    """Does not ask how large the leaf is."""

    def may_make_writable(self, sp: ShadowPage, fault: Fault) -> bool:  # noqa: ARG002 - of any level
        """Wherever there is a slot."""
        return fault.slot is not None


VARIANT = Mutant(
    name="fast-fault-makes-huge-writable",
    title="the lockless fault path makes a huge leaf writable while dirty pages are logged",
    parts=(AnySize,),
    expects=("O8",),
    rule=(
        "a huge leaf stays write-protected while dirty pages are logged: only the page that "
        "faulted would be in the log"
    ),
    origin="B62, a rule of fast_page_fault() without a commit of its own; reference 4e",
    story=(
        "dirty logger: logging on; the huge leaf is write-protected",
        "vCPU: writes page 1: the leaf becomes writable, page 1 is logged",
        "vCPU: writes page 2: nobody notices",
    ),
    confidence="V",
    tags=("dirty", "huge", "faults"),
    controlled=Case("explore/huge-page-log"),
    threads=Case(
        "explore/huge-page-log",
        (
            'script.dirty-logger=["log-on", "read-log", "read-log", "read-log", "log-off"]',
            'script.vcpu0=["write 0x0", "write 0x1", "write 0x2", "write 0x3"]',
        ),
    ),
)
