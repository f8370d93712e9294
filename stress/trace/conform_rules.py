"""Differences that are known and meant: each rule has a name, a reason and a source, and fits as
little as possible."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from attrs import frozen

from stress.trace.conform_script import ConformScript, Operation
from stress.trace.conform_values import Happening


class Side(Enum):
    """Whose happening a rule explains away."""

    KERNEL = "kernel"
    MODEL = "model"
    BOTH = "both"


Test = Callable[[Operation, Happening | None, Happening | None, ConformScript], bool]


@frozen
class Rule:
    """One explained difference. `applies` sees the operation, and what each side does at that
    point."""

    name: str
    side: Side
    reason: str
    source: str
    applies: Test


def _inlined_invalidation(
    operation: Operation, kernel: Happening | None, model: Happening | None, _: ConformScript
) -> bool:
    return (
        operation.kind == "destroy"
        and model is not None
        and model.kind == "invalidate"
        and (kernel is None or kernel.kind != "invalidate")
    )


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "inlined-invalidation",
        Side.MODEL,
        "kvm_mmu_uninit_tdp_mmu() invalidates the roots, but the compiler has inlined the call, so "
        "no event says so; that the "
        "roots are invalid is seen in the role words that follow",
        "arch/x86/kvm/mmu/tdp_mmu.c, kvm_mmu_uninit_tdp_mmu(); reference 2.13",
        _inlined_invalidation,
    ),
)
"""In the order in which they are tried."""

FILTERED: Final = (
    "freeze-filtered",
    "the recording's set-up leaves out changes from empty to frozen (512 for each removed table); "
    "the table's own removal, "
    "and every entry that mapped something, are compared",
    "an ftrace event filter on kvm_tdp_mmu_spte_changed",
)
"""The one difference that is explained where it arises, for it is most of what the model says."""
