"""What must be true of a VM when nobody is inside it (appendix A of the reference).

`check(vm)` is called at a quiescent point: every vCPU outside guest mode, no call in progress. Each invariant is a
function of its own that yields what is wrong; the names are the reference's I-numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

from mmu.machine.vm import VirtualMachine
from mmu.memory.host import MOVING, tag_of
from mmu.memory.memslots import Memslot
from mmu.memory.tlb import HardwareWalker, TranslationCache
from mmu.paging.spte import ADDR_MASK, HOST_WRITABLE, MMU_WRITABLE, REMOVED_SPTE, SPTE_W, pfn_of
from mmu.paging.table import RootPage, ShadowPage
from mmu.report import Report, section
from mmu.sync.poison import is_poisoned


@frozen
class Violation:
    """One thing that is wrong: the invariant's number, and what was found."""

    invariant: str
    found: str


@frozen
class _Entry:
    """A non-zero SPTE met by the full walk."""

    sp: ShadowPage
    index: int
    gfn: int
    spte: int


class Tree:
    """One full walk of a root: its tables and its non-zero entries."""

    def __init__(self, vm: VirtualMachine, root: RootPage) -> None:
        self.root = root
        self.tables: list[tuple[ShadowPage, ShadowPage, int]] = []
        self.leaves: list[_Entry] = []
        self.others: list[_Entry] = []
        self._vm = vm
        self._walk(root)

    def _walk(self, sp: ShadowPage) -> None:
        layout = self._vm.kvm.layout
        step = self._vm.kvm.geometry.pages(sp.level)
        for index, spte in enumerate(sp.spt):
            if not spte:
                continue
            entry = _Entry(sp, index, sp.gfn + index * step, spte)
            if layout.is_leaf(spte, sp.level):
                self.leaves.append(entry)
            elif layout.is_table(spte, sp.level):
                child = self._vm.kvm.tables.at(spte & ADDR_MASK)
                self.tables.append((child, sp, index))
                if not is_poisoned(child):
                    self._walk(child)
            else:
                self.others.append(entry)


class State:
    """Everything the invariants look at, collected once."""

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm
        self.roots = vm.roots.snapshot()
        self.trees = [Tree(vm, root) for root in self.roots]

    def slots(self, as_id: int) -> tuple[Memslot, ...]:
        """The active slots of an address space."""
        return self.vm.memslots.peek(as_id).index.value[1]


def i1_roots_are_referenced(state: State) -> Iterator[str]:
    """A linked root has at least one reference."""
    for root in state.roots:
        if root.refcount.read() < 1:
            yield f"{root.describe()} is linked without a reference"


def i3_refcounts_are_exact(state: State) -> Iterator[str]:
    """Refcount = the TDP MMU's own (until zapped) + one a vCPU that has it loaded + the exporter's."""
    for root in state.roots:
        own = 0 if root.zapped.value else 1
        loaded = sum(1 for vcpu in state.vm.vcpus() if vcpu.root is root)
        exporters = sum(1 for exported in state.vm.exported_tdps.all() if exported.root.value is root)
        if root.refcount.read() != own + loaded + exporters:
            yield f"{root.describe()}: expected {own} own + {loaded} vCPU + {exporters} exporter"


def i5_exported_roots_are_valid(state: State) -> Iterator[str]:
    """Exported implies valid, and exactly one exporter stands behind the flag."""
    exported = [item.root.value for item in state.vm.exported_tdps.all()]
    for root in state.roots:
        if root.exported.value and root.invalid.value:
            yield f"{root.describe()} is exported and invalid"
        if root.exported.value != (root in exported):
            yield f"{root.describe()}: the exported flag disagrees with the list of exported TDPs"


def i6_tables_hang_together(state: State) -> Iterator[str]:
    """Every linked table is reached from exactly one entry, and knows which."""
    seen: set[int] = set()
    for tree in state.trees:
        for child, parent, index in tree.tables:
            if is_poisoned(child):
                yield f"entry {index} of {parent.describe()} points to a freed page"
                continue
            if id(child) in seen:
                yield f"{child.describe()} is linked twice"
            seen.add(id(child))
            placed = (child.parent, child.parent_index, child.level, child.gfn, child.root)
            gfn = parent.gfn + index * state.vm.kvm.geometry.pages(parent.level)
            if placed != (parent, index, parent.level - 1, gfn, tree.root):
                yield f"{child.describe()} is linked at entry {index} of {parent.describe()} but says otherwise"


def i7_leaves_are_right(state: State) -> Iterator[str]:
    """A leaf maps the frame that the host maps there now, with no more rights than host and slot give."""
    host = state.vm.host
    for tree in state.trees:
        as_id = tree.root.role.as_id
        slots = state.slots(as_id)
        for leaf in tree.leaves:
            stamp = host.stamp[pfn_of(leaf.spte)]
            if stamp not in (tag_of(as_id, leaf.gfn), MOVING):
                yield f"leaf of {tree.root.describe()} at gfn {leaf.gfn:#x} maps frame {pfn_of(leaf.spte):#x}, which is not its own"
            slot = next((slot for slot in slots if slot.base_gfn <= leaf.gfn < slot.end_gfn), None)
            if leaf.spte & SPTE_W and slot is not None and not slot.host_writable:
                yield f"leaf at gfn {leaf.gfn:#x} is writable, {slot.describe()} is not"
            if (leaf.spte & SPTE_W and not leaf.spte & MMU_WRITABLE) or (leaf.spte & MMU_WRITABLE and not leaf.spte & HOST_WRITABLE):
                yield f"leaf at gfn {leaf.gfn:#x}: W without MMU-writable, or MMU-writable without host-writable"


def i8_leaves_have_slots(state: State) -> Iterator[str]:
    """No leaf for a gfn without a slot."""
    for tree in state.trees:
        slots = state.slots(tree.root.role.as_id)
        for leaf in tree.leaves:
            if not any(slot.base_gfn <= leaf.gfn < slot.end_gfn and not slot.invalid for slot in slots):
                yield f"leaf of {tree.root.describe()} at gfn {leaf.gfn:#x} has no memslot"


def i11_nothing_is_frozen(state: State) -> Iterator[str]:
    """At rest no entry is frozen, and nothing but present entries and zeros is left."""
    for tree in state.trees:
        for entry in tree.others:
            what = "frozen" if entry.spte == REMOVED_SPTE else f"{entry.spte:#x}"
            yield f"entry of {tree.root.describe()} at gfn {entry.gfn:#x} level {entry.sp.level} is {what} at rest"


def i13_statistics_agree(state: State) -> Iterator[str]:
    """tdp_mmu_pages and the page statistics equal a full walk."""
    stat = state.vm.kvm.stat
    tables = sum(len(tree.tables) for tree in state.trees)
    if tables != stat.tdp_mmu_pages.value:
        yield f"tdp_mmu_pages is {stat.tdp_mmu_pages.value}, a walk finds {tables}"
    leaves = sum(1 for tree in state.trees for leaf in tree.leaves if leaf.sp.level == 1)
    if leaves != stat.pages_4k.value:
        yield f"pages_4k is {stat.pages_4k.value}, a walk finds {leaves}"


def i2_zapped_roots_are_empty(state: State) -> Iterator[str]:
    """A root whose scheduled zap is complete holds nothing: whatever is there was put there behind the zapper."""
    for tree in state.trees:
        if tree.root.zapped.value and (tree.leaves or tree.tables):
            yield f"{tree.root.describe()} was zapped but holds {len(tree.leaves)} leaves and {len(tree.tables)} tables"


def i9_caches_are_justified(state: State) -> Iterator[str]:
    """A cached translation, whole or partial, that will be used without a flush is still what the tables say."""
    for vcpu in state.vm.vcpus():
        if vcpu.root is not None and not vcpu.state.requests.value:
            yield from _stale_caches(state, str(vcpu), vcpu.tlb, vcpu.root)
    for device in state.vm.devices():
        root = device.root.value
        if root is not None:
            yield from _stale_caches(state, device.name, device.iotlb, root)


def _stale_caches(state: State, who: str, cache: TranslationCache, root: RootPage) -> Iterator[str]:
    walker = HardwareWalker(state.vm.kvm)
    for table in cache.tables.values():
        if is_poisoned(table):
            yield f"{who} caches a partial walk into a freed table"
            return
    for gfn, spte in cache.entries.items():
        now = walker.walk(TranslationCache(), root, gfn)
        if now != spte:
            yield f"{who} caches gfn {gfn:#x} -> {spte:#x}, no flush is pending, and the tables say {now:#x}"
            return


INVARIANTS: dict[str, Callable[[State], Iterator[str]]] = {
    "I1": i1_roots_are_referenced,
    "I2": i2_zapped_roots_are_empty,
    "I3": i3_refcounts_are_exact,
    "I5": i5_exported_roots_are_valid,
    "I6": i6_tables_hang_together,
    "I7": i7_leaves_are_right,
    "I8": i8_leaves_have_slots,
    "I9": i9_caches_are_justified,
    "I11": i11_nothing_is_frozen,
    "I13": i13_statistics_agree,
}
"""Each invariant that can be read off a VM at rest."""


def violations(vm: VirtualMachine) -> list[Violation]:
    """Everything that is wrong with `vm` now; it must be at rest."""
    state = State(vm)
    return [Violation(name, found) for name, holds in INVARIANTS.items() for found in holds(state)]


def check(vm: VirtualMachine) -> int:
    """Report every violation through the VM's reporter; returns how many there were."""
    found = violations(vm)
    by_name: dict[str, list[str]] = {}
    for violation in found:
        by_name.setdefault(violation.invariant, []).append(violation.found)
    for name, texts in by_name.items():
        sentence = (INVARIANTS[name].__doc__ or "").strip()
        vm.kvm.reporter.emit(
            Report(
                "INV",
                name,
                f"WARNING: invariant {name} does not hold at a quiescent point: {texts[0]}",
                sentence,
                f"reference, appendix A {name}",
                subject=name,
                sections=(section(f"{len(texts)} found", texts[:20]),),
            )
        )
    return len(found)
