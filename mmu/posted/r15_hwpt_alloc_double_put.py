"""R15: the error path of HWPT alloc puts the TDP FD twice."""

from mmu.export.iommu import KvmHwpt
from mmu.numbers.defects import titled
from mmu.variant import Variant


class PutTwice(KvmHwpt):
    """out_abort destroys (unregister and put) and falls through to another put."""

    def abort_alloc(self) -> None:
        """One put too many."""
        super().abort_alloc()
        self.fd.put()


VARIANT = Variant(
    name="r15-hwpt-alloc-double-put",
    title=titled("R15"),
    parts=(PutTwice,),
    expects=("O4",),
    rule="each reference is put once",
    origin="reference 1.11 R15, HWPT alloc error path",
    story=(
        "consumer: HWPT alloc fails after the importer was registered",
        "consumer: the error path puts its own reference, and then the VMM's",
        "VMM: closes its fd: the count is gone already",
    ),
)
