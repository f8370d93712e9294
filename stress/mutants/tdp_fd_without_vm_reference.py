"""A TDP FD does not keep the VM alive."""

from mmu.parts import Exporter
from stress.mutants.case import Case, Mutant


class NoVmReference(Exporter):
    """The VM fd is taken to outlive every TDP FD."""

    def get_vm(self) -> bool:
        """Only look whether the VM is there."""
        return self.kvm.users_count.read() > 0

    def put_vm(self) -> None:
        """Nothing was taken."""


VARIANT = Mutant(
    name="tdp-fd-without-vm-reference",
    title="a TDP FD holds no reference on its VM",
    parts=(NoVmReference,),
    expects=("O11", "O2"),
    rule="whoever hands out a VM's tables keeps the VM, whichever fd is closed first",
    origin="shape of B29 (5f6de5cbebee): a holder without a reference of its own",
    story=(
        "process: exits; the VM fd is closed first: the last reference, the VM is destroyed",
        "VM: finds the exported root on its list, which nobody will free any more",
        "device: still walks it",
    ),
    confidence="Vt",
    tags=("export", "teardown"),
    controlled=Case("explore/exit-with-device", ("actors.exit.vm_first=true",)),
    threads=Case(
        "quick",
        (
            "actors.exit.enabled=true",
            "actors.exit.vm_first=true",
            "budget.duration_s=0.5",
            "obligations={device_accesses=10}",
            "expect.at_the_end=true",
        ),
    ),
)
