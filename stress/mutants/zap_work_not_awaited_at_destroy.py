"""The VM is destroyed without waiting for the zaps that are still queued."""

from mmu.kernels import ZapByWorkqueue
from stress.mutants.case import Case, Mutant


class NoFlushAtUninit(ZapByWorkqueue):
    """Waits for the work that memslot updates have queued, but not for that of the VM's end."""

    def flush_workqueue(self) -> None:
        """Nothing once the VM is being destroyed."""
        if not self.kvm.dying.value:
            super().flush_workqueue()


VARIANT = Mutant(
    name="zap-work-not-awaited-at-destroy",
    title="a VM is destroyed before its zap workqueue has run",
    parts=(NoFlushAtUninit,),
    expects=("O11",),
    rule=(
        "when the TDP MMU is torn down, the work that holds references on roots has been waited for"
    ),
    origin="B21 (22b94c4b63eb), kvm_mmu_uninit_tdp_mmu() without flush_workqueue()",
    story=(
        "VM: is destroyed; every root is invalidated, its zap is queued with the gifted reference",
        "VM: finds roots on the list and pages that are not freed, and goes away",
        "worker: zaps the first of them",
    ),
    confidence="Vt",
    tags=("roots", "teardown"),
    controlled=Case(
        "explore/obsolete-root",
        ('vm.kernel="5.18"', "actors.exit.enabled=true", "actors.exit.vm_first=true"),
    ),
    threads=Case(
        "vcpus-only",
        (
            "obligations={fast_zaps=3}",
            "expect.at_the_end=true",
            'vm.kernel="5.18"',
            'disturbances.points=["P10"]',
            "disturbances.delay_share=1.0",
            "disturbances.delay_s=0.1",
            "budget.duration_s=1.0",
        ),
    ),
)
