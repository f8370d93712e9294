"""R14: HWPT destroy frees the IOMMU domain before it unregisters the importer."""

from mmu.export.iommu import KvmHwpt
from mmu.numbers.defects import titled
from mmu.variant import Variant


class DomainFirst(KvmHwpt):
    """Destroy in the posted order."""

    def destroy(self) -> None:
        """Free the domain, then unregister."""
        self.device.detach()
        self.drain()
        self.free_domain()
        if self.kvm.probe.point is not None:
            self.kvm.probe.point("P17")
        self.unbind()
        self.fd.put()


VARIANT = Variant(
    name="r14-teardown-order",
    title=titled("R14"),
    parts=(DomainFirst,),
    expects=("O16",),
    rule="a callback is unregistered before what it works on is freed (I18)",
    origin="reference 1.11 R14, HWPT destroy (patch 14)",
    story=(
        "consumer: destroys its HWPT: the domain is freed",
        "memslot worker: flushes; the importer is still registered: invalidate on the freed domain",
        "consumer: unregisters",
    ),
)
