"""What a kernel and the model are compared by: one vocabulary of happenings for both.

A `Happening` is a kind and its values. On the kernel's side it is made from a line of the
recording, on the model's by the recording parts (`conform_parts`). A value that a recording does
not have is None there, and fits everything. Roots are told apart by address; `Bindings` remembers
which address of the kernel is which root of the model.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from attrs import define, field

from mmu.paging import spte as words
from mmu.paging.spte import SpteLayout
from mmu.paging.table import RootPage
from stress.trace import layouts
from stress.trace.layouts import KernelLayout, Vendor

SPTE_CHANGES: Final = "SPTE changes"
ROOTS: Final = "root operations"
TABLES: Final = "page-table pages freed"
REQUESTS: Final = "requests"
FLUSHES: Final = "flushes"
FAULTS: Final = "faults"
MEMSLOTS: Final = "memslot steps"
INVALIDATIONS: Final = "invalidations"
LOGGING: Final = "dirty-log steps"

KINDS: Final[dict[str, str]] = {
    "spte": SPTE_CHANGES,
    "zap_page": SPTE_CHANGES,
    "fast": SPTE_CHANGES,
    "put": ROOTS,
    "walk": ROOTS,
    "zap_root": ROOTS,
    "zap_pass": ROOTS,
    "invalidate": ROOTS,
    "zap_all_fast": ROOTS,
    "zap_invalidated": ROOTS,
    "new_root": ROOTS,
    "loaded": ROOTS,
    "obsolete": ROOTS,
    "zap_all": ROOTS,
    "unload": ROOTS,
    "uninit": ROOTS,
    "freed": TABLES,
    "request": REQUESTS,
    "served": REQUESTS,
    "flush": FLUSHES,
    "stale": FAULTS,
    "is_stale": FAULTS,
    "map": FAULTS,
    "mapped": FAULTS,
    "fault_done": FAULTS,
    "mmio_check": FAULTS,
    "swap": MEMSLOTS,
    "generation": MEMSLOTS,
    "shadow": MEMSLOTS,
    "refused": MEMSLOTS,
    "unmap": INVALIDATIONS,
    "unmapped": INVALIDATIONS,
    "zap_leafs": INVALIDATIONS,
    "leafs_zapped": INVALIDATIONS,
    "invalidated": INVALIDATIONS,
    "split": LOGGING,
    "wrprot_slot": LOGGING,
    "wrprot": LOGGING,
    "wrprot_done": LOGGING,
    "collapse": LOGGING,
    "protect": LOGGING,
    "log_size": LOGGING,
}
"""Every kind and what it counts as. Values, in order, are given where the kind is made."""

ROOTED: Final = frozenset(
    {"put", "walk", "zap_root", "zap_pass", "zap_leafs", "wrprot", "loaded", "unload"}
)
"""Kinds whose first value is a root: in the recording its address, in the model the root."""

BEGIN: Final = "begin"
"""An operation begins: no happening, but where the two sides meet."""
SYNC: Final = "sync"
"""Something else that tells where the kernel is, and is not compared: its first value names the
`point` of the model."""
JUDGED, FAST, SLOT_FOUND, SEQ_TAKEN, FAULTED_IN, WRITING = (
    "MMIO judged",
    "fast path",
    "slot found",
    "seq taken",
    "faulted in",
    "writing",
)
"""Points of a fault: it has looked whether an MMIO SPTE holds; about to try the lockless path; it
has its slot; it has its mmu_invalidate_seq; it has its frame, and has looked for invalidations
before it takes mmu_lock; it has read an entry (gfn and level follow) and is about to replace it."""
PUBLISHED, REQUESTED, OVER = "published", "requested", "over"
"""A slot set is visible; every vCPU has its request; the call has returned."""


class Happening(NamedTuple):
    """One thing that was done; `line` is where the recording says so, 0 on the model's side."""

    kind: str
    values: tuple[Any, ...]
    line: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {' '.join(_text(value) for value in self.values)}".rstrip()


class EntryValue(NamedTuple):
    """An SPTE without what is this machine's own: `kind` is none, frozen, mmio, table or leaf. A
    leaf has its frame and its rights (`rwx`, then A and D, then h and m for host- and
    MMU-writable); an MMIO entry its gfn and generation."""

    kind: str
    frame: int = 0
    rights: str = ""

    def __str__(self) -> str:
        if self.kind == "leaf":
            return f"leaf({self.frame:#x} {self.rights})"
        return f"mmio({self.frame:#x} gen {self.rights})" if self.kind == "mmio" else self.kind


NONE: Final = EntryValue("none")
FROZEN: Final = EntryValue("frozen")
TABLE: Final = EntryValue("table")


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, RootPage):
        return f"root {value.address:#x}"
    return f"{value:#x}" if isinstance(value, int) and value > 9 else str(value)


def _rights(**bits: bool) -> str:
    return "".join(name if on else "-" for name, on in bits.items())


def kernel_entry(spte: int, level: int, kernel: KernelLayout, vendor: Vendor) -> EntryValue:
    """What an SPTE of the recording means."""
    if spte == kernel.frozen:
        return FROZEN
    if vendor.is_mmio(spte):
        return EntryValue(
            "mmio", (spte & layouts.ADDRESS & ~(1 << 51)) >> 12, f"{kernel.generation(spte):#x}"
        )
    if not layouts.is_present(spte):
        return NONE if spte == kernel.none else EntryValue(f"unknown {spte:#x}")
    if layouts.is_table(spte, level):
        return TABLE
    amd = vendor is layouts.AMD
    rights = _rights(
        r=bool(spte & 1),
        w=bool(spte & layouts.WRITABLE),
        x=not spte >> 63 if amd else bool(spte & 4),
        A=bool(spte & vendor.accessed),
        D=bool(spte & vendor.dirty),
        h=bool(spte & vendor.host_writable),
        m=bool(spte & vendor.mmu_writable),
    )
    address = spte & layouts.ADDRESS & ~(layouts.span(level) * 4096 - 1)
    return EntryValue("leaf", address >> 12, rights)


def model_entry(spte: int, level: int, layout: SpteLayout) -> EntryValue:
    """What an SPTE of the model means."""
    if spte == words.REMOVED_SPTE:
        return FROZEN
    if spte & words.SPTE_MMIO:
        return EntryValue("mmio", words.pfn_of(spte), f"{layout.mmio_generation(spte):#x}")
    if not layout.is_present(spte):
        return NONE if spte == 0 else EntryValue(f"unknown {spte:#x}")
    if layout.is_table(spte, level):
        return TABLE
    rights = _rights(
        r=bool(spte & words.SPTE_R),
        w=bool(spte & words.SPTE_W),
        x=bool(spte & words.SPTE_X),
        A=bool(spte & words.SPTE_A),
        D=bool(spte & words.SPTE_D),
        h=bool(spte & words.HOST_WRITABLE),
        m=bool(spte & words.MMU_WRITABLE),
    )
    return EntryValue("leaf", words.pfn_of(spte), rights)


@define
class Bindings:
    """Which address of the kernel is which root of the model. An address may come again once its
    root is gone."""

    _roots: dict[int, object] = field(factory=dict)
    _addresses: dict[int, int] = field(factory=dict)

    def same(self, address: int, root: object) -> bool:
        """Whether they are the same root; two that nobody has seen yet are from now on."""
        known = self._roots.get(address)
        if known is None and id(root) not in self._addresses:
            self._roots[address] = root
            self._addresses[id(root)] = address
            return True
        return known is root

    def forget(self, address: int) -> object | None:
        """The root has gone; returns it."""
        root = self._roots.pop(address, None)
        self._addresses.pop(id(root), None)
        return root

    def forget_root(self, root: object) -> None:
        """The same, by the model's root."""
        address = self._addresses.pop(id(root), None)
        if address is not None:
            self._roots.pop(address, None)

    def root(self, address: int) -> object | None:
        """The model's root of an address."""
        return self._roots.get(address)


def fits(kernel: Happening, model: Happening, pointers: Bindings, physical: Bindings) -> bool:
    """Whether both sides say the same."""
    if kernel.kind != model.kind or len(kernel.values) != len(model.values):
        return False
    start = 0
    if kernel.kind in ROOTED:
        start = 1
        mine, theirs = model.values[0], kernel.values[0]
        bindings = physical if kernel.kind in ("loaded", "unload") else pointers
        if theirs is not None and (
            (mine is None) != (theirs == 0)
            or (mine is not None and not bindings.same(theirs, mine))
        ):
            return False
    pairs = zip(kernel.values[start:], model.values[start:], strict=True)
    return all(theirs is None or theirs == mine for theirs, mine in pairs)
