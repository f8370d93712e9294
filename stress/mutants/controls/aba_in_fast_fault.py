"""The lockless fault path waits for its snapshot to come back: A, B, A."""

from mmu.parts import Fault, FaultHandler, ShadowPage
from stress.mutants.case import Case, Control


class WaitForTheOldValue(FaultHandler):
    """Does not read the entry again after a lost race."""

    def fast_pf_fix_direct_spte(
        self, sp: ShadowPage, index: int, fault: Fault, old: int, new: int
    ) -> bool:
        """Let others do what they like, and compare with the first snapshot until it fits, if only
        for the second time."""
        self.kvm.runtime.resched()
        for _ in range(4):
            if super().fast_pf_fix_direct_spte(sp, index, fault, old, new):
                return True
            self.kvm.runtime.resched()
        return False


VARIANT = Control(
    name="aba-in-fast-fault",
    title="the lockless fault path succeeds on an SPTE that was zapped and installed again",
    parts=(WaitForTheOldValue,),
    origin="B63, reference 4e: the ABA case of locking.rst",
    looks_wrong=(
        "The compare-exchange may succeed although the entry was zapped, and its frame may have "
        "been somebody else's, since it was read."
    ),
    right_because=(
        "In a direct root the place of an SPTE fixes its gfn and its value fixes frame and rights: "
        "if the very "
        "word stands there again, it is what should stand there now. (With indirect roots it is "
        "not, and KVM "
        "excludes them.)"
    ),
    tried=(
        Case("explore/write-protected-log"),
        Case(
            "explore/write-protected-log",
            (
                'script.setup=["vcpu0: write 0x0", "vcpu1: read 0x0", "dirty-logger: log-on"]',
                'script.dirty-logger=["read-log"]',
            ),
            strategy="preemption:1",
        ),
        Case("explore/age-vs-write", ("vm.ad_bits=false", "vm.pml=false")),
        Case(
            "quick",
            (
                "vm.ad_bits=false",
                "vm.pml=false",
                "actors.host.threads=1",
                "actors.dirty_log.enabled=true",
            ),
        ),
    ),
)
