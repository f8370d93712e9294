"""R19: dirty logging by D bits does not see what a device writes."""

from mmu.numbers.defects import titled
from mmu.paging.table import RootPage
from mmu.tdp.dirty import DirtyLog
from mmu.variant import Variant


class DevicesForgotten(DirtyLog):
    """An exported root is logged like any other."""

    def is_written_by_device(self, root: RootPage) -> bool:  # noqa: ARG002 - no root is special
        """Nobody thinks of devices."""
        return False


VARIANT = Variant(
    name="r19-device-writes-not-logged",
    title=titled("R19"),
    parts=(DevicesForgotten,),
    expects=("O8",),
    rule=(
        "when the log is read, every page written since the previous read is in it or still "
        "flagged (I15)"
    ),
    origin="reference 1.11 R19",
    story=(
        "dirty logger: logging goes on: D is cleared, W stays",
        "device: writes through the writable leaf; an IOMMU's walker sets no D bit, PML logs "
        "nothing",
        "dirty logger: reads the log: the page is not in it",
    ),
)
