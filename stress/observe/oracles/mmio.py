"""O13: an MMIO SPTE is honoured only where no memslot is."""

from __future__ import annotations

from mmu.memory.memslots import GEN_UPDATE_IN_PROGRESS, MemslotSet
from mmu.paging.spte import describe
from mmu.probe import override
from stress.observe.oracles.base import Oracle


class MmioOracle(Oracle):
    """Looks up what an MMIO SPTE says, in the very set of slots by which it was found current."""

    rules = ("O13",)
    title = "no access is emulated as MMIO where a memslot is"

    @override
    def mmio_honoured(self, vcpu: object, gfn: int, spte: int, slots: MemslotSet) -> None:
        self.judged["O13"].add(1)
        slot = slots.at(gfn)
        if slot is not None:
            self.kvm.warn(
                "O13",
                "stale-mmio-honoured",
                f"BUG: {vcpu} emulates an access to gfn {gfn:#x} as MMIO, although "
                f"{slot.describe()} covers it",
                "an MMIO SPTE is honoured only if its generation is the current stable one and no "
                "slot covers the gfn",
                "check_mmio_spte(), kvm_mmu_invalidate_mmio_sptes(); R9 MMIO SPTEs survive; B55, "
                "invariant I16",
                subject="mmio",
                extra=(("SPTE", [describe(spte, self.kvm.layout), self._generation(slots)]),),
                gfn=gfn,
            )

    def _generation(self, slots: MemslotSet) -> str:
        """What the SPTE's generation was compared with."""
        generation = slots.generation.value
        bits = self.kvm.config.mmio_gen_bits
        number = generation & ~GEN_UPDATE_IN_PROGRESS
        state = ", an update is in progress" if generation & GEN_UPDATE_IN_PROGRESS else ""
        return (
            f"the memslots are of generation {number}{state}: {number & (1 << bits) - 1} in {bits} "
            "bits"
        )
