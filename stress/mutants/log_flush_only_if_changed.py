"""Dirty logging goes on without a flush where there was nothing left to protect."""

from mmu.parts import DirtyLog, Memslot
from stress.mutants.case import Case, Mutant


class FlushIfChanged(DirtyLog):
    """Flushes what this very call has changed."""

    def flush_enabled(self, slot: Memslot, changed: bool) -> None:
        """Nothing was changed: nothing is flushed."""
        if changed:
            super().flush_enabled(slot, changed)


VARIANT = Mutant(
    name="log-flush-only-if-changed",
    title="enabling dirty logging flushes only if it has changed an SPTE itself",
    parts=(FlushIfChanged,),
    expects=("O8",),
    rule=(
        "when dirty logging is on, no TLB may hold a right that the tables do not give any more, "
        "whoever took it"
    ),
    origin="B15 (b64d740ea7dd), with ageing as the one who has taken the right before",
    story=(
        "host: ages the page without A bits: the leaf loses its rights; clear_young does not flush",
        "dirty logger: logging goes on; no leaf has W, so nothing is changed and nothing is "
        "flushed",
        "vCPU: writes through its TLB, which still has W: the page is in no log",
    ),
    confidence="Vt",
    tags=("flush", "dirty"),
    controlled=Case("explore/age-vs-log"),
    threads=Case(
        "quick",
        (
            "obligations={}",
            "vm.ad_bits=false",
            "vm.pml=false",
            "memory.fixed_pages=1",
            "memory.smm_pages=0",
            "memory.smm_churn_pages=0",
            "actors.memslot_worker.enabled=false",
            "actors.consumer.devices=0",
            "actors.vcpu.churn_share=0.0",
            "actors.dirty_log.enabled=true",
            "actors.dirty_log.reads=3",
            "actors.host.threads=1",
            "actors.host.pause_s=0.0",
            "actors.host.discard_weight=0.0",
            "actors.host.migrate_weight=0.0",
            "actors.host.split_weight=0.0",
            "actors.host.collapse_weight=0.0",
        ),
    ),
)
