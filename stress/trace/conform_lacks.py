"""What a recording lacks, so that the model cannot be held to it: inputs that were not recorded,
and things that the replay does not do.

`inputs` is known before a replay, which would show nothing without them. What an unknown order may
explain (`order`) only matters once there are differences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from stress.trace.conform_director import ReplayTally
from stress.trace.conform_script import ConformScript, Operation
from stress.trace.conform_values import OVER, PUBLISHED, REQUESTED, SEQ_TAKEN

NEEDS: Final = (
    ("spte", "SPTE changes", "the tracepoint kvmmmu:kvm_tdp_mmu_spte_changed"),
    (
        "swap",
        "memslot calls",
        "a probe on kvm_swap_active_memslots, and one on kvm_set_memslot with its arguments",
    ),
    ("put", "references of roots", "a probe on kvm_tdp_mmu_put_root with root, ref and role"),
)
"""Kinds without which nothing can be concluded: what they are, and how they are recorded."""

ARGUMENTS: Final = (
    ("unmap", 3, "start, end and slot of a probe on kvm_tdp_mmu_unmap_gfn_range"),
    ("shadow", 3, "id, gfn and n of a probe on kvm_arch_flush_shadow_memslot"),
    ("put", 3, "root, ref and role of a probe on kvm_tdp_mmu_put_root"),
    ("map", 1, "gfn of a probe on kvm_tdp_mmu_map"),
)
"""Kinds of which the model needs the first arguments: how many, and where they come from."""

GIVEN: Final = (
    (
        "range-start",
        ("start", "end"),
        "mmu_notifier invalidations without their ranges: it needs start and end of a probe on "
        "kvm_mmu_notifier_invalidate_range_start",
    ),
    (
        "set-region",
        ("slot", "gfn", "npages", "change"),
        "memslot calls without arguments: it needs change and the slots' id, gfn and n of a probe "
        "on kvm_set_memslot",
    ),
)
"""What operations of a kind have to be given, and what to say where it is not recorded."""

ORDER: Final = (
    (SEQ_TAKEN, "fault", "when a fault notes mmu_invalidate_seq", "the entry of kvm_faultin_pfn"),
    (
        PUBLISHED,
        "set-region",
        "when a slot set becomes visible",
        "the entry of synchronize_srcu_expedited",
    ),
    (
        OVER,
        "set-region",
        "when a swap of memslots is over",
        "a probe on the return of kvm_swap_active_memslots",
    ),
    (
        REQUESTED,
        "request",
        "when all vCPUs have a request",
        "a probe on the return of kvm_make_all_cpus_request",
    ),
)
"""What tells in which order tasks that run at the same time did things: the point, the operations
or happenings that pass it, and how it is recorded. Kernels from 6.9 on call kvm_faultin_pfn()
kvm_mmu_faultin_pfn()."""


def inputs(script: ConformScript) -> list[str]:
    """The inputs of the model that the recording does not have, in sentences."""
    return [
        *(
            f"no {what} in the recording: it needs {how}"
            for kind, what, how in NEEDS
            if not script.recorded[kind]
        ),
        *_ends(script),
        *(
            sentence
            for kind, names, sentence in GIVEN
            if any(each.kind == kind and _misses(each, names) for each in script.operations)
        ),
        *(
            f"{kind} without arguments: it needs {how}"
            for kind, count, how in ARGUMENTS
            if script.recorded[kind] and _is_bare(script, kind, count)
        ),
        *_beyond(script),
    ]


def _ends(script: ConformScript) -> Iterator[str]:
    kinds = Counter(operation.kind for operation in script.operations)
    if kinds["range-start"] and not kinds["range-end"]:
        yield (
            "no end of any mmu_notifier invalidation in the recording: it needs a probe on, or the "
            "entry of, kvm_mmu_notifier_invalidate_range_end"
        )


def _misses(operation: Operation, names: tuple[str, ...]) -> bool:
    """Whether it was not given all of these. Memslot calls that swap nothing do not matter."""
    if operation.kind == "set-region" and not any(done.kind == "swap" for done in operation.did):
        return False
    return any(operation.given.get(name) is None for name in names)


def _is_bare(script: ConformScript, kind: str, count: int) -> bool:
    return any(
        None in done.values[:count]
        for operation in script.operations
        for done in operation.did
        if done.kind == kind
    )


def _beyond(script: ConformScript) -> Iterator[str]:
    """What is no recording of one VM from its birth on, or of one that the replay does not do."""
    if script.vms > 1:
        yield f"the recording is of {script.vms} VMs: conform replays one, from birth to end"
    yield from script.beyond


def order(script: ConformScript, tally: ReplayTally) -> list[str]:
    """What differences may come from, if the first of them is of an operation that ran while others
    did: that the order of the two was not recorded."""
    different = [each for each in tally.outcomes.values() if each.difference is not None]
    kinds = {operation.kind for operation in script.operations}
    if not different or not different[0].operation.running:
        return []
    return [
        f"{len(different):,} operations differ, and may have run in another order: {what} was not "
        f"recorded; it needs {how}"
        for point, kind, what, how in ORDER
        if (kind in kinds or script.recorded[kind]) and not script.recorded[point]
    ]
