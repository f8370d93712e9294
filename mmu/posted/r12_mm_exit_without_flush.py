"""R12: the zap at mm exit relies on vCPUs being unable to run; a device is not stopped by that."""

from mmu.numbers.defects import titled
from mmu.paging.table import RootPage
from mmu.tdp.zap import Zapper
from mmu.variant import Variant


class NoFlushAtExit(Zapper):
    """The zap relies on KVM_RUN being unreachable."""

    def is_walked(self, root: RootPage) -> bool:  # noqa: ARG002 - nobody thinks of devices
        """By no vCPU."""
        return False


VARIANT = Variant(
    name="r12-mm-exit-without-flush",
    title=titled("R12"),
    parts=(NoFlushAtExit,),
    expects=("O1", "O16"),
    rule="before a process's memory is freed, every device that can reach it has been told",
    origin="reference 1.11 R12, kvm_mmu_zap_all() from mmu_notifier release",
    story=(
        "device: DMA through the exported root, IOTLB warm",
        "exiting process: exit_mmap runs notifier release: zap_all without a flush; the pages are "
        "freed; files are still open",
        "device: its next DMA reaches a freed page",
    ),
)
