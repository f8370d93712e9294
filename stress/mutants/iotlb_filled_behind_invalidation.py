"""A device fills its IOTLB with what it walked before an invalidation."""

from mmu.parts import Device
from stress.mutants.case import Case, Mutant


class WalkUnserialised(Device):
    """A consumer that caches translations and forgets that they may be invalidated while it looks
    them up."""

    def walk(self, gfn: int) -> int:
        """The walk is not part of the transaction that an invalidation waits for."""
        self.hardware.release()
        spte = super().walk(gfn)
        self.kvm.runtime.resched()
        self.hardware.acquire()
        return spte


VARIANT = Mutant(
    name="iotlb-filled-behind-invalidation",
    title="a device caches a translation that was invalidated while it was walked",
    parts=(WalkUnserialised,),
    expects=("O1", "O6"),
    rule=(
        "who caches a translation has to notice an invalidation between the look-up and the "
        "insertion"
    ),
    origin="B68 (58cd407ca4c6), for a device's cache",
    story=(
        "device: walks the exported root, finds gfn G",
        "memslot worker: zaps G, invalidates the IOTLB, returns, releases the page",
        "device: puts G into its IOTLB, and uses it",
    ),
    confidence="Vt",
    tags=("export", "flush"),
    controlled=Case(
        "explore/migrate-vs-dma", ('script.setup=["vcpu0: write 0x0"]', "script.vcpu0=[]")
    ),
    threads=Case(
        "explore/migrate-vs-dma",
        (
            "memory.fixed_pages=4",
            "script.setup=[]",
            'script.vcpu0=["run w0x0 w0x1 w0x2 w0x3"]',
            'script.device0=["dma-write 0x0", "dma-write 0x1", "dma-write 0x2", "dma-write 0x3"]',
            'script.host0=["migrate 0 0 4"]',
        ),
    ),
)
