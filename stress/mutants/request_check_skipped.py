"""Guest entry without the last look at pending requests."""

from mmu.parts import Vcpu
from stress.mutants.case import Case, Mutant


class NoEntryCheck(Vcpu):
    """Announces guest mode and goes in."""

    def exit_request(self) -> bool:
        """Never."""
        return False


VARIANT = Mutant(
    name="request-check-skipped",
    title="a vCPU enters the guest without a last look at its requests",
    parts=(NoEntryCheck,),
    expects=("O12", "O1"),
    rule=(
        "requests are looked at after guest mode is announced, or the sender neither sees the vCPU "
        "nor is seen by it"
    ),
    origin="kvm_vcpu_exit_request(); reference 2.16 P20",
    story=(
        "vCPU: services its requests (none)",
        "memslot worker: invalidates the root, sets the request; the vCPU is not in guest mode, so "
        "nobody waits",
        "vCPU: enters the guest with an obsolete root and a stale TLB",
    ),
    confidence="V",
    tags=("faults", "notifier"),
    controlled=Case("explore/discard-vs-fault"),
    threads=Case("BUSTED/request-check-skipped"),
)
