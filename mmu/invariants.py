"""What must be true of a VM when nobody is inside it (appendix A of the reference).

`check(vm)` is called at a quiescent point: every vCPU outside guest mode, no call in progress. Each
invariant is a function of its own that yields what is wrong; the names are the reference's
I-numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

from mmu.machine.vcpu import Vcpu
from mmu.machine.vm import VirtualMachine
from mmu.memory.host import tag_of
from mmu.memory.memslots import GEN_UPDATE_IN_PROGRESS, Memslot
from mmu.memory.tlb import HardwareWalker, TranslationCache, span_of
from mmu.numbers import invariants as numbered
from mmu.numbers.oracles import RULES
from mmu.paging.spte import (
    ADDR_MASK,
    HOST_WRITABLE,
    MMU_WRITABLE,
    REMOVED_SPTE,
    SPTE_D,
    SPTE_MMIO,
    SPTE_W,
    SPTE_X,
    pfn_of,
)
from mmu.paging.table import RootPage, ShadowPage
from mmu.report import Report, Section, section
from mmu.sync.poison import is_poisoned

Found = str | tuple[str, int]
"""What an invariant finds wrong, with the guest frame it is about where there is one."""

MOST_SHOWN = 20
"""So many things that are wrong are shown of one invariant."""


@frozen
class Violation:
    """One thing that is wrong: the invariant's number, what was found, and the guest frame it is
    about, if any."""

    invariant: str
    found: str
    gfn: int | None = None


@frozen
class _CheckedEntry:
    """A non-zero SPTE met by the full walk."""

    sp: ShadowPage
    index: int
    gfn: int
    spte: int


class CheckedTree:
    """One full walk of a root: its tables and its non-zero entries."""

    def __init__(self, vm: VirtualMachine, root: RootPage) -> None:
        self.root = root
        self.tables: list[tuple[ShadowPage, ShadowPage, int]] = []
        self.leaves: list[_CheckedEntry] = []
        self.others: list[_CheckedEntry] = []
        self._vm = vm
        self._walk(root)

    def _walk(self, sp: ShadowPage) -> None:
        layout = self._vm.kvm.layout
        step = self._vm.kvm.geometry.pages(sp.level)
        for index, spte in enumerate(sp.spt):
            if not spte:
                continue
            entry = _CheckedEntry(sp, index, sp.gfn + index * step, spte)
            if layout.is_leaf(spte, sp.level):
                self.leaves.append(entry)
            elif layout.is_table(spte, sp.level):
                child = self._vm.kvm.tables.at(spte & ADDR_MASK)
                self.tables.append((child, sp, index))
                # else I6 reports it, and it may lead round in a circle
                if not is_poisoned(child) and child.level < sp.level:
                    self._walk(child)
            else:
                self.others.append(entry)


class State:
    """Everything the invariants look at, collected once."""

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm
        self.roots = vm.roots.snapshot()
        self.trees = [CheckedTree(vm, root) for root in self.roots]

    def slots(self, as_id: int) -> tuple[Memslot, ...]:
        """The active slots of an address space."""
        return self.vm.memslots.peek(as_id).index.value[1]

    def slot(self, as_id: int, gfn: int) -> Memslot | None:
        """The slot that covers `gfn`."""
        return self.vm.memslots.peek(as_id).at(gfn)

    def pages(self, leaf: _CheckedEntry) -> int:
        """How many frames a leaf maps."""
        return self.vm.kvm.geometry.pages(leaf.sp.level)


def i1_roots_are_referenced(state: State) -> Iterator[Found]:
    """A linked root has at least one reference."""
    for root in state.roots:
        if root.refcount.read() < 1:
            yield f"{root.describe()} is linked without a reference"


def i3_refcounts_are_exact(state: State) -> Iterator[Found]:
    """Refcount = the TDP MMU's own (until zapped) + one a vCPU that has it loaded + the
    exporter's."""
    for root in state.roots:
        own, loaded, exporters = _holders(state, root)
        if root.refcount.read() != own + loaded + exporters:
            yield f"{root.describe()}: expected {own} own + {loaded} vCPU + {exporters} exporter"


def _holders(state: State, root: RootPage) -> tuple[int, int, int]:
    """The references there should be: the TDP MMU's own, those of vCPUs, those of exporters."""
    own = 0 if root.zapped.value else 1
    loaded = sum(1 for vcpu in state.vm.vcpus() for held in vcpu.loaded_roots() if held is root)
    exporters = sum(1 for exported in state.vm.exported_tdps.all() if exported.root.value is root)
    return own, loaded, exporters


def i4_invalid_is_for_ever(state: State) -> Iterator[Found]:
    """A root that was invalidated stays invalid: one that is scheduled or zapped is."""
    for root in state.roots:
        if (root.scheduled.value or root.zapped.value) and not root.invalid.value:
            yield f"{root.describe()} was invalidated once and is valid again"


def i5_exported_roots_are_valid(state: State) -> Iterator[Found]:
    """Exported implies valid, and exactly one exporter stands behind the flag."""
    exported = [item.root.value for item in state.vm.exported_tdps.all()]
    for root in state.roots:
        if root.exported.value and root.invalid.value:
            yield f"{root.describe()} is exported and invalid"
        if root.exported.value != (root in exported):
            yield f"{root.describe()}: the exported flag disagrees with the list of exported TDPs"


def i6_tables_hang_together(state: State) -> Iterator[Found]:
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
                yield (
                    f"{child.describe()} is linked at entry {index} of {parent.describe()} but "
                    "says otherwise"
                )


def i7_leaves_are_right(state: State) -> Iterator[Found]:
    """A leaf is aligned and maps the frames that the host maps there now, with no more rights than
    host and slot give."""
    host = state.vm.host
    for tree in state.trees:
        as_id = tree.root.role.as_id
        for leaf in tree.leaves:
            pages = state.pages(leaf)
            pfn = pfn_of(leaf.spte)
            if leaf.gfn & (pages - 1) or pfn & (pages - 1):
                yield (
                    f"leaf at gfn {leaf.gfn:#x} level {leaf.sp.level} maps frame {pfn:#x}: not "
                    "aligned",
                    leaf.gfn,
                )
            for offset in range(pages):
                if not host.is_at(pfn + offset, tag_of(as_id, leaf.gfn + offset)):
                    where = f"gfn {leaf.gfn + offset:#x} maps frame {pfn + offset:#x}"
                    yield (
                        f"leaf of {tree.root.describe()} at {where}, which is not its own",
                        leaf.gfn + offset,
                    )
                    break
            slot = state.slot(as_id, leaf.gfn)
            if leaf.spte & SPTE_W and slot is not None and not slot.host_writable:
                yield f"leaf at gfn {leaf.gfn:#x} is writable, {slot.describe()} is not", leaf.gfn
            if (leaf.spte & SPTE_W and not leaf.spte & MMU_WRITABLE) or (
                leaf.spte & MMU_WRITABLE and not leaf.spte & HOST_WRITABLE
            ):
                yield (
                    f"leaf at gfn {leaf.gfn:#x}: W without MMU-writable, or MMU-writable without "
                    "host-writable",
                    leaf.gfn,
                )


def i8_leaves_have_slots(state: State) -> Iterator[Found]:
    """No leaf, and no part of one, for a gfn without a slot."""
    for tree in state.trees:
        slots = state.slots(tree.root.role.as_id)
        for leaf in tree.leaves:
            end = leaf.gfn + state.pages(leaf)
            if not any(
                slot.base_gfn <= leaf.gfn and end <= slot.end_gfn and not slot.invalid
                for slot in slots
            ):
                yield (
                    f"leaf of {tree.root.describe()} at gfn {leaf.gfn:#x} level {leaf.sp.level} "
                    "has no memslot",
                    leaf.gfn,
                )


def i10_pages_are_balanced(state: State) -> Iterator[Found]:
    """Every table page is linked, in somebody's cache, given to RCU, or was discarded unseen; none
    is lost."""
    # RCU's own task is never at rest, so nothing is compared that it changes.
    vm = state.vm
    tables = vm.kvm.tables
    linked = len(state.roots) + sum(len(tree.tables) for tree in state.trees)
    cached = len(vm.exporter.cached_pages()) + sum(len(vcpu.cache.pages) for vcpu in vm.vcpus())
    retired, discarded = tables.retired.value, tables.discarded.value
    lost = tables.allocated.value - linked - cached - retired - discarded
    if lost:
        made = f"{tables.allocated.value} page-table pages were made"
        yield (
            f"{made}: {linked} linked, {cached} in caches, {retired} given to RCU, {discarded} "
            f"discarded, {lost} lost"
        )


def i11_nothing_is_frozen(state: State) -> Iterator[Found]:
    """At rest no entry is frozen, and nothing but present entries, MMIO entries of 4 KiB and zeros
    is left."""
    for tree in state.trees:
        for entry in tree.others:
            if entry.spte & SPTE_MMIO and entry.sp.level == 1:
                continue
            what = "frozen" if entry.spte == REMOVED_SPTE else f"{entry.spte:#x}"
            yield (
                f"entry of {tree.root.describe()} at gfn {entry.gfn:#x} level {entry.sp.level} is "
                f"{what} at rest",
                entry.gfn,
            )


def i12_no_invalidation_is_left(state: State) -> Iterator[Found]:
    """At rest no mmu_notifier invalidation is in progress: every start had its end, on the same
    slots."""
    kvm = state.vm.kvm
    if kvm.invalidation.in_progress.value:
        yield f"mmu_invalidate_in_progress is {kvm.invalidation.in_progress.value} at rest"
    if kvm.mn_active_invalidate_count.value:
        yield f"mn_active_invalidate_count is {kvm.mn_active_invalidate_count.value} at rest"


def i13_statistics_agree(state: State) -> Iterator[Found]:
    """tdp_mmu_pages and the page statistics equal a full walk."""
    stat = state.vm.kvm.stat
    tables = sum(len(tree.tables) for tree in state.trees)
    if tables != stat.tdp_mmu_pages.value:
        yield f"tdp_mmu_pages is {stat.tdp_mmu_pages.value}, a walk finds {tables}"
    for level, counter in enumerate(stat.by_level):
        leaves = sum(1 for tree in state.trees for leaf in tree.leaves if leaf.sp.level == level)
        if counter is not None and leaves != counter.value:
            yield f"{counter.name} is {counter.value}, a walk finds {leaves}"


def i14_nx_list_is_linked(state: State) -> Iterator[Found]:
    """possible_nx_huge_pages holds linked tables whose flag is set, each once, and nx_lpage_splits
    counts them."""
    linked = {id(child) for tree in state.trees for child, _, _ in tree.tables}
    listed = state.vm.kvm.possible_nx_huge_pages.pages()
    splits = state.vm.kvm.stat.nx_lpage_splits.value
    if splits != len(listed):
        yield f"nx_lpage_splits is {splits}, possible_nx_huge_pages has {len(listed)} pages"
    for sp in listed:
        if is_poisoned(sp) or id(sp) not in linked:
            yield "a page on possible_nx_huge_pages is not linked"
        elif sp.nx_disallowed is None or not sp.nx_disallowed.value:
            yield f"{sp.describe()} is on possible_nx_huge_pages without nx_huge_page_disallowed"


def i15_dirty_bits_are_kept(state: State) -> Iterator[Found]:
    """A D bit that a CPU has set is still in an SPTE, or the host was told that the frame is
    dirty."""
    kvm = state.vm.kvm
    dirty: set[int] = set()
    for tree in state.trees:
        for leaf in tree.leaves:
            if leaf.spte & SPTE_D:
                dirty.update(range(pfn_of(leaf.spte), pfn_of(leaf.spte) + state.pages(leaf)))
    for vcpu in state.vm.vcpus():
        for pfn, tick in vcpu.dirtied.items():
            if pfn not in dirty and kvm.pfn_dirtied[pfn] < tick:
                yield (
                    f"{vcpu} has set the D bit of frame {pfn:#x}; no SPTE has it, and the host was "
                    "never told"
                )


def i16_mmio_sptes_are_stale_or_right(state: State) -> Iterator[Found]:
    """An MMIO SPTE that a fault would honour, because its generation is the current one, stands
    where no slot is."""
    kvm = state.vm.kvm
    mask = (1 << kvm.config.mmio_gen_bits) - 1
    for tree in state.trees:
        as_id = tree.root.role.as_id
        generation = state.vm.memslots.peek(as_id).generation.value
        for entry in tree.others if not tree.root.invalid.value else ():
            current = (
                entry.spte & SPTE_MMIO
                and kvm.layout.mmio_generation(entry.spte) == generation & mask
            )
            if (
                current
                and not generation & GEN_UPDATE_IN_PROGRESS
                and state.slot(as_id, entry.gfn) is not None
            ):
                yield (
                    f"MMIO SPTE of {tree.root.describe()} at gfn {entry.gfn:#x} is current "
                    "although a memslot covers the gfn",
                    entry.gfn,
                )


def i17_nx_policy_holds(state: State) -> Iterator[Found]:
    """While the NX huge page mitigation is on, no root that a vCPU can run on has an executable
    huge leaf."""
    if not state.vm.kvm.nx_huge_pages.value:
        return
    for tree in state.trees:
        if tree.root.invalid.value or tree.root.role.iommu:
            continue
        for leaf in tree.leaves:
            if leaf.sp.level > 1 and leaf.spte & SPTE_X:
                yield (
                    f"executable huge leaf of {tree.root.describe()} at gfn {leaf.gfn:#x} level "
                    f"{leaf.sp.level}",
                    leaf.gfn,
                )


def i18_importers_are_bound_to_what_they_walk(state: State) -> Iterator[Found]:
    """A device walks the root of an exported TDP that will tell it of every flush, or none."""
    for device in state.vm.devices():
        root = device.root.value
        if root is None:
            continue
        exported = next(
            (item for item in state.vm.exported_tdps.all() if item.root.value is root), None
        )
        if exported is None:
            yield f"{device.name} walks a root that is not exported"
        elif not any(
            getattr(importer, "device", None) is device for importer in exported.importers()
        ):
            yield (
                f"{device.name} walks {root.describe()}, but is not registered to hear of its "
                "flushes"
            )


def i19_io_faults_were_answered_truly(state: State) -> Iterator[Found]:
    """Every IO fault so far was answered SUCCESS if and only if its gfn could be mapped with the
    rights asked for."""
    wrong = state.vm.exporter.wrong_answers.value
    if wrong:
        yield f"{wrong} IO page faults were answered wrongly"


def i20_no_lock_is_held(state: State) -> Iterator[Found]:
    """At rest no task holds a lock or is inside a read section."""
    for task in state.vm.kvm.runtime.tasks():
        if task.held and task.thread.is_alive():
            yield f"{task} holds {', '.join(hold.lock_class.name for hold in task.held)} at rest"


def i2_zapped_roots_are_empty(state: State) -> Iterator[Found]:
    """A root whose scheduled zap is complete holds nothing: what is there was left by the zap, or
    put there behind it."""
    for tree in state.trees:
        if tree.root.zapped.value and (tree.leaves or tree.tables):
            yield (
                f"{tree.root.describe()} was zapped but holds {len(tree.leaves)} leaves and "
                f"{len(tree.tables)} tables"
            )


def i9_caches_are_justified(state: State) -> Iterator[Found]:
    """A cached translation, whole or partial, that will be used without a flush is still what the
    tables say."""
    for vcpu in state.vm.vcpus() if not state.vm.kvm.mm_gone.value else ():
        for kept in _roots_without_flush(vcpu):
            yield from _stale_caches(state, str(vcpu), vcpu.cpu.cache_of(kept), kept)
    for device in state.vm.devices():
        root = device.root.value
        if root is not None:
            for name, cache in device.caches():
                yield from _stale_caches(state, name, cache, root)


def _roots_without_flush(vcpu: Vcpu) -> Iterator[RootPage]:
    """The roots on which the vCPU will run on its CPU without a flush."""
    if vcpu.root is not None and not vcpu.state.requests.value and vcpu.loaded_cpu is vcpu.cpu:
        yield vcpu.root
        if vcpu.cpu.tagged:
            yield from (root for root in vcpu.prev_roots if not root.invalid.value)


def _stale_caches(
    state: State, who: str, cache: TranslationCache, root: RootPage
) -> Iterator[Found]:
    layout = state.vm.kvm.layout
    walker = HardwareWalker(state.vm.kvm)
    for table in cache.tables.values():
        if is_poisoned(table):
            yield f"{who} caches a partial walk into a freed table"
            return
    huge = ((span_of(key)[0], spte) for key, spte in cache.huge.items())
    for gfn, spte in (*cache.entries.items(), *huge):
        now = walker.walk(TranslationCache(), root, gfn)
        same = layout.is_present(now) and not (now ^ spte) & ADDR_MASK
        # ageing takes W without a flush
        rights = SPTE_W | SPTE_D if layout.ad_bits or not now & MMU_WRITABLE else 0
        if not same or spte & ~now & rights:
            yield (
                f"{who} caches gfn {gfn:#x} -> {spte:#x}, no flush is pending, and the tables say "
                f"{now:#x}",
                gfn,
            )
            return


INVARIANTS: dict[str, Callable[[State], Iterator[Found]]] = {
    "I1": i1_roots_are_referenced,
    "I2": i2_zapped_roots_are_empty,
    "I3": i3_refcounts_are_exact,
    "I4": i4_invalid_is_for_ever,
    "I5": i5_exported_roots_are_valid,
    "I6": i6_tables_hang_together,
    "I7": i7_leaves_are_right,
    "I8": i8_leaves_have_slots,
    "I9": i9_caches_are_justified,
    "I10": i10_pages_are_balanced,
    "I11": i11_nothing_is_frozen,
    "I12": i12_no_invalidation_is_left,
    "I13": i13_statistics_agree,
    "I14": i14_nx_list_is_linked,
    "I15": i15_dirty_bits_are_kept,
    "I16": i16_mmio_sptes_are_stale_or_right,
    "I17": i17_nx_policy_holds,
    "I18": i18_importers_are_bound_to_what_they_walk,
    "I19": i19_io_faults_were_answered_truly,
    "I20": i20_no_lock_is_held,
}
"""Each invariant as it can be read off a VM at rest. Several are judged as events happen, too, by
the model or by oracles."""

RULE_OF = {"I13": "O9", "I14": "O9", "I12": "O9", "I15": "O8", "I16": "O13", "I17": "O14"}
"""The oracle rule that an invariant is reported as; the others are reported as INV."""

STANDS_FOR = {
    **dict.fromkeys(("I1", "I3"), "O4"),
    **dict.fromkeys(("I2", "I10"), "O11"),
    **dict.fromkeys(("I4", "I5"), "O12"),
    **dict.fromkeys(("I7", "I8"), "O6"),
    **dict.fromkeys(("I18", "I19"), "O16"),
    "I6": "O2",
    "I9": "O1",
    "I11": "O7",
    "I20": "O5",
}
"""For those: the oracle whose rule is broken somewhere before such a state is reached. What a
zapped root holds (I2) is never zapped again: it leaks."""

PAUSED = "while all tasks were paused outside KVM"
ENDED = "after all tasks had ended"


def _evidence(state: State, name: str) -> Iterator[Section]:
    """For reference counts that are wrong: who holds what, and who put what he had not got."""
    if name not in ("I1", "I3"):
        return
    for root in state.roots:
        if root.refcount.read() != sum(_holders(state, root)):
            for title, lines in root.refcount.history():
                yield section(f"references to {root.describe()}, {title}", lines)


def violations(vm: VirtualMachine) -> list[Violation]:
    """Everything that is wrong with `vm` now; it must be at rest."""
    return _violations(State(vm))


def _violations(state: State) -> list[Violation]:
    wrong = (
        (name, found if isinstance(found, tuple) else (found, None))
        for name, holds in INVARIANTS.items()
        for found in holds(state)
    )
    return [Violation(name, text, gfn) for name, (text, gfn) in wrong]


def check(vm: VirtualMachine, when: str = PAUSED) -> int:
    """Report every violation through the VM's reporter; returns how many there were. `when` says
    why nobody is inside the VM."""
    state = State(vm)
    found = _violations(state)
    by_name: dict[str, list[Violation]] = {}
    for violation in found:
        by_name.setdefault(violation.invariant, []).append(violation)
    for name, wrong in by_name.items():
        vm.kvm.reporter.emit(_report(state, name, wrong, when))
    return len(found)


def _report(state: State, name: str, wrong: list[Violation], when: str) -> Report:
    """All that is wrong with one invariant."""
    rule = RULE_OF.get(name, "INV")
    stands_for = STANDS_FOR.get(name, "")
    word = RULES[stands_for or rule].partition(":")[0]
    return Report(
        rule,
        name,
        f"WARNING: invariant {name} ({stands_for or rule} {word}) does not hold at rest: "
        f"{wrong[0].found}",
        numbered.INVARIANTS[name],
        f"reference, appendix A {name}",
        subject=name,
        sections=(
            section(
                "found at rest", [f"{when}: no stack shows who did it, because it was over by then"]
            ),
            section(f"{len(wrong)} found", [violation.found for violation in wrong[:MOST_SHOWN]]),
            *_evidence(state, name),
        ),
        gfn=wrong[0].gfn,
        stands_for=stands_for,
    )
