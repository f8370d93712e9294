"""R24: page requests are not drained when a device is detached."""

from mmu.export.iommu import KvmHwpt
from mmu.numbers.defects import titled
from mmu.variant import Variant


class NoDrain(KvmHwpt):
    """iommu_detach_group() of the base: only domains of a PASID are drained."""

    def drain(self) -> None:
        """Whoever handles a request may find the domain gone."""


VARIANT = Variant(
    name="r24-detach-without-drain",
    title=titled("R24"),
    parts=(NoDrain,),
    expects=("O2",),
    rule=(
        "a domain is freed when its device can ask for no more pages, and what it has asked for "
        "has been handled"
    ),
    origin="reference 1.11 R24, patches 15 and 16; c43e1ccdebf2",
    story=(
        "device: requests a page and does not wait for the response",
        "consumer: detaches it, and destroys the HWPT",
        "IOPF worker: takes the request, and asks the freed HWPT for its TDP FD",
    ),
)
