"""A vCPU's PML buffer is flushed after its exit was acknowledged: meanwhile its slot may be moved,
and the logged gfns are in no slot any more.

By analysis of source, and in this model. No recording has PML in it, nobody has seen it happen, and
it takes a VMM that moves a memslot which logs dirty pages. Not confirmed by a maintainer.
"""

from mmu.machine.vcpu import Vcpu
from mmu.variant import Variant


class ExitFirst(Vcpu):
    """vcpu_enter_guest(): guest mode is left, interrupts and preemption come on, SRCU is taken, and
    then the exit is handled."""

    def leave_guest(self) -> None:
        """The exit, then the log."""
        self.acknowledge_exit()
        self._srcu_token = self.kvm.srcu.read_lock()
        if self.pml:
            self.flush_pml_buffer()


VARIANT = Variant(
    name="pml-flushed-after-exit",
    title=(
        "candidate: a slot that logs is moved between a vCPU's exit and the flush of its PML "
        "buffer: pages are in no log"
    ),
    parts=(ExitFirst,),
    expects=("O8",),
    rule=(
        "when the log is read, every page written since the previous read is in it or still "
        "flagged (I15)"
    ),
    origin=(
        "reference 2.11, vcpu_enter_guest() and vmx_flush_pml_buffer(); by analysis, not confirmed"
    ),
    story=(
        "vCPU: writes to gfn g: hardware logs g in the PML buffer",
        "memslot worker: moves the slot: the zap kicks the vCPU and waits for its exit",
        "vCPU: has left guest mode, and is preempted before it handles the exit",
        "memslot worker: the move is over",
        "vCPU: flushes its PML buffer: no slot covers g",
    ),
)
