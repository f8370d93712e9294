"""R8: one fault structure serves all attempts of an IO fault, so a goal level outlives its
reason."""

from mmu.export.tdp_fd import Exporter
from mmu.numbers.defects import titled
from mmu.tdp.fault import Fault
from mmu.variant import Variant


class OneFault(Exporter):
    """The fault is built once."""

    def next_fault(self, previous: Fault | None) -> Fault:
        """The same again, with everything that is in it."""
        return previous or Fault()


VARIANT = Variant(
    name="r8-stale-fault-state",
    title=titled("R8"),
    parts=(OneFault,),
    expects=("O7", "O6"),
    rule="a leaf's level and frame follow from one and the same look at the host",
    origin="reference 1.11 R8, kvm_mmu_fault_exported_tdp() (patch 37)",
    story=(
        "iopf worker: attempt 1 chooses 2M, then loses the compare-exchange",
        "host: splits the huge page and moves its pieces",
        "iopf worker: attempt 2 gets a 4K frame, the goal level is still 2M: a huge leaf with an "
        "unaligned frame",
    ),
)
