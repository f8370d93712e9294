"""A vCPU's PML buffer is flushed after its exit was acknowledged. In between its slot may be moved,
and then no slot covers the logged gfns.

Found by reading source and shown in this model only. No recording has PML in it, it was not seen to
happen, and it takes a VMM that moves a memslot while it logs dirty pages. Not confirmed by a
maintainer.
"""

from mmu.machine.vcpu import Vcpu
from mmu.variant import Variant


class ExitFirst(Vcpu):
    """vcpu_enter_guest(): guest mode is left, interrupts and preemption come on, SRCU is taken, and
    then the exit is handled."""

    def leave_guest(self) -> None:
        """Acknowledge the exit, then empty the PML buffer."""
        self.acknowledge_exit()
        self.enter_srcu()
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
