"""The zap of an invalidated root flushes what it removed."""

from mmu.parts import RootPage, Zapper
from stress.mutants.case import Case, Control


class FlushAnyway(Zapper):
    """Does not rely on the flush at the end of kvm_mmu_load()."""

    def zap_root(self, root: RootPage, shared: bool, *, flush: bool = False) -> None:  # noqa: ARG002 - always
        """With a flush, before every yield, too."""
        super().zap_root(root, shared, flush=True)


VARIANT = Control(
    name="invalid-roots-flushed",
    title="the zap of an invalidated root flushes, which nobody needs",
    parts=(FlushAnyway,),
    origin="reference 2.6 no-flush rule; B13",
    looks_wrong=(
        "Every vCPU is kicked out of the guest under mmu_lock, for translations of a root that "
        "none of them uses "
        "any more, and importers are told of gfns that their root still maps."
    ),
    right_because="A flush removes what may be walked again: too many cost time and break nothing.",
    tried=(
        Case("explore/obsolete-root"),
        Case("explore/delete-vs-dma"),
        Case("explore/exit-with-device"),
        Case("quick", ("actors.vcpu.nested_share=0.1",)),
    ),
)
