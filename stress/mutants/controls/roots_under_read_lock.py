"""Roots are found, made and dropped with mmu_lock held for read."""

from mmu.kernels import RootsUnderReadLock
from stress.mutants.case import Case, Control

VARIANT = Control(
    name="roots-under-read-lock",
    title="vCPUs load and drop roots under mmu_lock(read)",
    parts=(RootsUnderReadLock,),
    origin="8ca983631f3c..576a15de8d29 (6.9) on an older kernel; reference 2.1, 2.15",
    looks_wrong=(
        "The list of roots changes, and the last reference of one goes, next to faults and to a "
        "zap that walks the list."
    ),
    right_because=(
        "tdp_mmu_pages_lock and a second look keep vCPUs from making two roots; walkers pin roots "
        "inside RCU or "
        "hold mmu_lock for write; only an invalid root can lose its last reference."
    ),
    tried=(
        Case("explore/obsolete-root"),
        Case("explore/two-deletes"),
        Case("explore/nested-roots-vs-delete"),
        Case("quick", ("actors.vcpu.smm_share=0.3", "actors.vcpu.nested_share=0.2")),
    ),
)
