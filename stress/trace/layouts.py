"""SPTE layouts as data: what the values in a recording mean, by kernel and by vendor.

A recording does not say which kernel made it. What it holds does: the value of an entry that maps
nothing, the frozen value, and where leaves keep "the host lets me write". `Detector` collects that
evidence, with the line of each piece.

Source: arch/x86/kvm/mmu/spte.h of 6.1, 6.12 and 7.2; reference 0.1; the recordings that the tests
use.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import define, field, frozen

from stress.trace.events import Event

PRESENT: Final = 1 << 11
"""SPTE_MMU_PRESENT_MASK: the bit that means "maps something" to KVM, on both vendors, since
5.13."""
LARGE: Final = 1 << 7
WRITABLE: Final = 1 << 1
ADDRESS: Final = ((1 << 52) - 1) & ~0xFFF
NO_VE: Final = 1 << 63
"""EPT's "suppress #VE", which is the value of an entry that maps nothing since 6.10."""


@frozen
class Vendor:
    """Which bits of a present SPTE hardware and KVM use for what."""

    name: str
    accessed: int
    dirty: int
    host_writable: int
    mmu_writable: int
    mmio_mask: int
    """An MMIO SPTE: `spte & mmio_mask == mmio_value`, and not MMU-present."""
    mmio_value: int

    def is_mmio(self, spte: int) -> bool:
        """A cached "there is no slot here"."""
        return spte & self.mmio_mask == self.mmio_value and not spte & PRESENT


AMD: Final = Vendor(
    name="AMD",
    accessed=1 << 5,
    dirty=1 << 6,
    host_writable=1 << 9,
    mmu_writable=1 << 10,
    mmio_mask=1 << 51 | 1,
    mmio_value=1 << 51 | 1,
)
INTEL: Final = Vendor(
    name="Intel",
    accessed=1 << 8,
    dirty=1 << 9,
    host_writable=1 << 57,
    mmu_writable=1 << 58,
    mmio_mask=1 << 63 | 0b111,
    mmio_value=0b110,
)
VENDORS: Final = {vendor.name.lower(): vendor for vendor in (AMD, INTEL)}


@frozen
class KernelLayout:
    """What a kernel writes where nothing is mapped, and how it packs the generation into an MMIO
    SPTE."""

    name: str
    none: int
    """SHADOW_NONPRESENT_VALUE."""
    frozen: int
    """FROZEN_SPTE (REMOVED_SPTE until 6.10): written by whoever removes the entry, replaced by
    nobody else."""
    gen_fields: tuple[tuple[int, int], ...]
    """The (shift, width) pieces of an MMIO SPTE's generation, lowest first."""

    def generation(self, spte: int) -> int:
        """The memslot generation that an MMIO SPTE was made for."""
        value = shift = 0
        for at, width in self.gen_fields:
            value |= (spte >> at & (1 << width) - 1) << shift
            shift += width
        return value


LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        KernelLayout("6.1", none=0, frozen=0x5A0, gen_fields=((3, 8), (52, 11))),
        KernelLayout("6.12", none=NO_VE, frozen=NO_VE | 0x5A0, gen_fields=((3, 8), (52, 11))),
        KernelLayout("7.2", none=NO_VE, frozen=NO_VE | 0x1A0, gen_fields=((3, 7), (52, 11))),
    )
}
"""By the first kernel known to have it: 6.1 stands for 5.13 to 6.9, 6.12 for 6.10 to the change of
7.x."""

FUNCTION_KERNELS: Final = {
    "kvm_tdp_mmu_get_vcpu_root_hpa": frozenset({"6.1"}),
    "kvm_mmu_notifier_change_pte": frozenset({"6.1"}),
    "kvm_set_spte_gfn": frozenset({"6.1"}),
    "kvm_tdp_mmu_invalidate_roots": frozenset({"6.12", "7.2"}),
    "kvm_tdp_mmu_recover_huge_pages": frozenset({"6.12", "7.2"}),
    "kvm_mmu_invalidate_start": frozenset({"7.2"}),
}
"""Layouts of the kernels that have a function."""
_SYMBOLS: Final = re.compile(r"[A-Za-z_]\w{5,}")

INVALID_BIT: Final = {"6.1": 0x800, "6.12": 0x800, "7.2": 0x1000}
"""role.invalid in a root's role word: behind the access bits, of which 7.x has one more."""

ALIASES: Final = {
    "6.6": "6.1",
    "6.12-quirkoff": "6.12",
    "7.2-quirkoff": "7.2",
    "6.1-quirkoff": "6.1",
}
"""Other names for a layout: a quirk changes what KVM does, not how it writes."""

NONE_VALUES: Final = frozenset(layout.none for layout in LAYOUTS.values())
FROZEN_VALUES: Final = frozenset(layout.frozen for layout in LAYOUTS.values())


LEVELS: Final = range(1, 6)
"""Levels of tables: an event that names another one is illegal, and can be in none."""


def is_frozen(spte: int) -> bool:
    """The frozen value of any kernel; they are distinct from everything else that any kernel
    writes."""
    return spte in FROZEN_VALUES


def is_present(spte: int) -> bool:
    """is_shadow_present_pte()."""
    return bool(spte & PRESENT)


def is_leaf(spte: int, level: int) -> bool:
    """A present entry that maps memory."""
    return bool(spte & PRESENT) and (level == 1 or bool(spte & LARGE))


def is_table(spte: int, level: int) -> bool:
    """A present entry that points to a lower table."""
    return bool(spte & PRESENT) and level > 1 and not spte & LARGE


def span(level: int) -> int:
    """How many guest frames one entry of a table at `level` covers."""
    return 1 << 9 * (level - 1)


@frozen
class Clue:
    """Something that only some kernels have."""

    line: int
    what: str
    kernels: frozenset[str]

    @property
    def text(self) -> str:
        """The clue in words."""
        order = sorted(self.kernels, key=lambda name: [int(part) for part in name.split(".")])
        return f"{self.what} of {' or '.join(order)}"


@define
class Detector:
    """Which layouts are still possible, and why. Give it every SPTE; it stops looking once there is
    nothing to learn."""

    kernels: set[str] = field(factory=lambda: set(LAYOUTS))
    vendors: set[str] = field(factory=lambda: set(VENDORS))
    clues: list[Clue] = field(factory=list)
    _seen: set[int] = field(factory=set)

    def see(self, line: int, spte: int) -> str:
        """Learn from one value; returns what contradicts everything seen before, or ""."""
        if spte & PRESENT:
            if len(self.vendors) > 1:
                self._see_leaf(spte)
            return ""
        if spte in self._seen or (spte not in NONE_VALUES and spte not in FROZEN_VALUES):
            return ""
        self._seen.add(spte)
        meaning = "non-present value" if spte in NONE_VALUES else "frozen value"
        kernels = {
            layout.name for layout in LAYOUTS.values() if spte in (layout.none, layout.frozen)
        }
        return self._learn(Clue(line, f"{spte:#x} is the {meaning}", frozenset(kernels)))

    def _learn(self, clue: Clue) -> str:
        left = self.kernels & clue.kernels
        if not left:
            return f"{clue.text}; this recording is of {' or '.join(sorted(self.kernels))}"
        self.clues.append(clue)
        self.kernels = left
        return ""

    def see_event(self, event: Event) -> None:
        """Learn from an event of which only some kernels, or one vendor, have the function or the
        field."""
        text = event.text
        symbols = (event.name.removesuffix("()"), *_SYMBOLS.findall(text[:120]))
        for symbol in symbols:
            kernels = FUNCTION_KERNELS.get(symbol)
            if kernels and not self.kernels <= kernels:
                self._learn(Clue(event.line, f"{symbol}() is a function", kernels))
            vendor = {"svm": "amd", "vmx": "intel"}.get(symbol[:3])
            if vendor and symbol[3:4] == "_" and vendor in self.vendors:
                self.vendors = {vendor}

    def see_access(self, line: int) -> None:
        """Learn from a field that kvm_mmu_spte_requested has since 7.x."""
        if self.kernels != {"7.2"}:
            self._learn(
                Clue(line, "kvm_mmu_spte_requested with access= is an event", frozenset({"7.2"}))
            )

    def see_role(self, line: int, before: int, after: int) -> None:
        """The role word of a root before and after it became invalid: one bit more, and that bit
        has moved in 7.x."""
        kernels = {
            bit: frozenset(name for name, at in INVALID_BIT.items() if at == bit)
            for bit in INVALID_BIT.values()
        }
        found = kernels.get(before ^ after)
        if found and not self.kernels <= found:
            self._learn(Clue(line, f"{before ^ after:#x} is the role.invalid", found))

    @property
    def invalid_bit(self) -> int:
        """role.invalid, 0 while two are possible."""
        bits = {INVALID_BIT[name] for name in self.kernels}
        return bits.pop() if len(bits) == 1 else 0

    def _see_leaf(self, spte: int) -> None:
        """Bits 57 and 58 are Intel's; a present AMD entry has bit 9 or 10, or the user bit with
        accessed, without a memory type."""
        if spte & (INTEL.host_writable | INTEL.mmu_writable):
            self.vendors &= {"intel"}
        elif spte & (1 << 10) and not spte & 0b011000:
            self.vendors &= {"amd"}

    @property
    def kernel(self) -> KernelLayout:
        """The layout, or the likeliest where several fit: the one in the middle of what is
        possible."""
        order = [name for name in ("6.12", "6.1", "7.2") if name in self.kernels]
        return LAYOUTS[order[0]]

    @property
    def vendor(self) -> Vendor | None:
        """The vendor, once a writable leaf has shown it."""
        return VENDORS[next(iter(self.vendors))] if len(self.vendors) == 1 else None
