"""PML is switched on by a request that is not waited for. A vCPU that is still in the guest sets D
bits with PML off after they were cleared.

Found by reading source and shown in this model only. It takes an interrupt that arrives after the
first leaf is cleared; no recording has PML in it, and it was not seen to happen. Not confirmed by a
maintainer.
"""

from mmu.memory.requests import KVM_REQ_UPDATE_CPU_DIRTY_LOGGING
from mmu.tdp.dirty import DirtyLog
from mmu.variant import Variant


class NotAwaited(DirtyLog):
    """KVM_REQ_UPDATE_CPU_DIRTY_LOGGING is made without KVM_REQUEST_WAIT."""

    def request_cpu_dirty_logging(self) -> None:
        """Kick the vCPUs without waiting for them."""
        self.requests.make_all_cpus_request(KVM_REQ_UPDATE_CPU_DIRTY_LOGGING, wait=False)


VARIANT = Variant(
    name="pml-request-not-awaited",
    title=(
        "candidate: PML is switched on by a request that is not waited for: a D bit is set "
        "meanwhile and logged nowhere"
    ),
    parts=(NotAwaited,),
    expects=("O8",),
    rule="when D bits are cleared for logging, no vCPU may set one without logging it",
    origin="reference 2.11, kvm_mmu_update_cpu_dirty_logging(); by analysis, not confirmed",
    story=(
        "vCPU: is in the guest, with PML off",
        "dirty logger: switches logging on: requests PML, does not wait, clears D of gfn g",
        "vCPU: writes to gfn g: its walk sets D, PML is off",
        "dirty logger: flushes; the vCPU exits and enters again with PML on",
        "vCPU: writes to gfn g: D is set already, so nothing is logged",
    ),
)
