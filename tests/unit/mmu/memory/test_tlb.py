"""Translation caches and the remote flush: vCPUs first, then the importers, and nothing survives
what it covers."""

from __future__ import annotations

import pytest

from mmu.memory.requests import KVM_REQ_TLB_FLUSH
from mmu.memory.tlb import WHOLE, HardwareWalker, TranslationCache, span_key, span_of
from mmu.paging.geometry import Geometry
from mmu.paging.spte import PFN_SHIFT, SPTE_A, SPTE_D, SPTE_MMIO, SPTE_RWX, SPTE_W
from tests.model import Machine
from tests.unit.conftest import MakeMachine


class Listener:
    """An importer that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def invalidate(self, gfn: int, pages: int) -> None:
        """The callback."""
        self.told.append((gfn, pages))


@pytest.fixture
def cache(machine: Machine) -> TranslationCache:
    """A cache of gfns 0..9 and of one partial walk."""
    cache = TranslationCache()
    cache.entries.update({gfn: gfn << 12 | 7 for gfn in range(10)})
    cache.tables[span_key(0, 2)] = machine.root()
    return cache


def test_a_whole_flush_leaves_nothing(cache: TranslationCache) -> None:
    cache.flush()
    assert not cache.entries
    assert not cache.tables


@pytest.mark.parametrize(
    ("gfn", "pages", "left", "partial"),
    [
        (3, 4, {0, 1, 2, 7, 8, 9}, False),
        (4, 4, {0, 1, 2, 3, 8, 9}, True),
        (0, 1000, set(), False),
        (5, 10**9, {0, 1, 2, 3, 4}, True),
        (20, 4, set(range(10)), True),
        (3, 0, set(range(10)), True),
    ],
)
def test_a_range_flush_drops_the_leaves_of_the_range_and_the_partial_walks_to_them(
    cache: TranslationCache, gfn: int, pages: int, left: set[int], partial: bool
) -> None:
    cache.flush_range(gfn, pages)
    assert set(cache.entries) == left
    assert bool(cache.tables) == partial


def test_a_range_flush_of_leaves_only_keeps_partial_walks(cache: TranslationCache) -> None:
    cache.flush_range(0, 8, leaves_only=True)
    assert set(cache.entries) == {8, 9}
    assert cache.tables


@pytest.mark.parametrize(
    ("gfn", "pages", "kept"),
    [(16, 4, False), (19, 1, False), (14, 3, False), (0, 100, False), (20, 4, True), (12, 4, True)],
)
def test_a_range_flush_drops_a_huge_leaf_if_it_touches_it(gfn: int, pages: int, kept: bool) -> None:
    cache = TranslationCache()
    cache.huge[span_key(18, 2)] = 7
    assert span_of(span_key(18, 2)) == (16, 20)
    cache.flush_range(gfn, pages)
    assert bool(cache.huge) == kept


def test_a_huge_leaf_translates_every_page_of_it() -> None:
    cache = TranslationCache()
    cache.huge[span_key(16, 2)] = 8 << PFN_SHIFT | 7
    assert [cache.find_huge(gfn, (4, 2)) for gfn in (15, 16, 19, 20)] == [
        0,
        8 << PFN_SHIFT | 7,
        11 << PFN_SHIFT | 7,
        0,
    ]


def test_a_flush_asks_every_vcpu_and_then_tells_every_importer(machine: Machine) -> None:
    vcpus = [machine.vcpu(), machine.vcpu()]
    importer = Listener()
    fd = machine.export()
    fd.register_importer(importer)
    events = machine.record(
        "flush_begin", "point", "importer_called", "importers_notified", "flush_end"
    )
    machine.vm.tlb.flush("test")
    assert [vcpu.state.requests.value for vcpu in vcpus] == [KVM_REQ_TLB_FLUSH] * 2
    assert importer.told == [(0, WHOLE)]
    assert events.names() == [
        "flush_begin",
        "point",
        "importer_called",
        "importers_notified",
        "flush_end",
    ]
    assert events.args("flush_begin") == [("test", 0, WHOLE)]
    assert events.args("point") == [("P15",)], (
        "between the two a device still uses what the vCPUs have forgotten"
    )
    assert events.args("importer_called") == [(importer, 0, WHOLE)]
    ((exported, gfn, pages, ns),) = events.args("importers_notified")
    assert (exported, gfn, pages) == (fd.exported, 0, WHOLE)
    assert ns >= 0


def test_a_range_flush_tells_the_range(machine: Machine) -> None:
    importer = Listener()
    machine.export().register_importer(importer)
    machine.vm.tlb.flush_range("test", 8, 4)
    assert importer.told == [(8, 4)]


def test_flushes_are_counted_when_asked_for_and_again_when_they_hit_a_running_vcpu(
    machine: Machine,
) -> None:
    machine.vcpu()
    stat = machine.kvm.stat
    machine.vm.tlb.flush("test")
    assert (stat.remote_tlb_flush_requests.value, stat.remote_tlb_flush.value) == (1, 0), (
        "nobody is in guest mode"
    )


def test_an_importer_must_not_sleep_in_its_callback(machine: Machine) -> None:
    class Sleeper(Listener):
        def invalidate(self, gfn: int, pages: int) -> None:
            machine.kvm.sync.might_sleep("waiting for the device")

    machine.export().register_importer(Sleeper())
    machine.vm.tlb.flush("test")
    machine.expect("O5 sleep-in-atomic")


def test_without_the_feature_there_is_nobody_to_tell(make_machine: MakeMachine) -> None:
    machine = make_machine(have_exported_tdp=False)
    vcpu = machine.vcpu()
    machine.vm.tlb.flush("test")
    assert vcpu.state.requests.value == KVM_REQ_TLB_FLUSH


# The walker.


@pytest.fixture
def walker(machine: Machine) -> HardwareWalker:
    """What walks without software."""
    return HardwareWalker(machine.kvm)


def test_a_walk_ends_at_the_leaf_and_remembers_the_last_table(
    machine: Machine, walker: HardwareWalker
) -> None:
    root, cache = machine.root(), TranslationCache()
    machine.plant(root, 21)
    table, index = machine.entry(root, 21)
    assert walker.walk(cache, root, 21) == table.spt[index] != 0
    assert (cache.tables, cache.entries) == ({span_key(21, 2): table}, {}), (
        "whoever owns the cache decides on leaves"
    )
    assert walker.walk(cache, root, 22) == 0
    assert walker.walk(cache, root, 0) == 0
    assert list(cache.tables.values()) == [table], "what is not there is not remembered"


def test_a_remembered_table_is_used_without_looking_above_it(
    machine: Machine, walker: HardwareWalker
) -> None:
    """That is why a table may be freed only after every cache was flushed."""
    root, cache = machine.root(), TranslationCache()
    machine.plant(root, 21)
    found = walker.walk(cache, root, 21)
    above = root.spt.xchg(1, 0)
    assert walker.walk(cache, root, 21) == found
    cache.flush()
    assert walker.walk(cache, root, 21) == 0
    root.spt.store(1, above)


@pytest.mark.parametrize("keeps_huge", [True, False])
def test_a_large_leaf_ends_the_walk(machine: Machine, keeps_huge: bool) -> None:
    root, cache = machine.root(), TranslationCache()
    walker = HardwareWalker(machine.kvm, keeps_huge=keeps_huge)
    large = machine.kvm.layout.leaf(16, 3, writable=True, host_writable=True)
    root.spt.store(2, large)
    assert [walker.walk(cache, root, gfn) for gfn in (32, 40, 47)] == [
        large + (offset << PFN_SHIFT) for offset in (0, 8, 15)
    ]
    assert walker.walk(cache, root, 48) == 0
    assert not cache.tables
    assert cache.huge == ({span_key(32, 4): large} if keeps_huge else {})
    root.spt.store(2, 0)


def test_nothing_is_mapped_without_a_root_nor_beyond_the_tables(
    machine: Machine, walker: HardwareWalker
) -> None:
    root, cache = machine.root(), TranslationCache()
    machine.plant(root, 1)
    assert walker.walk(cache, root, 1)
    assert walker.walk(cache, None, 1) == 0
    assert walker.walk(cache, root, machine.kvm.geometry.max_gfn + 1 + 1) == 0


def test_one_level_is_enough(make_machine: MakeMachine) -> None:
    machine = make_machine(Geometry(levels=1, entries=4))
    root, cache = machine.root(), TranslationCache()
    machine.plant(root, 3)
    walker = HardwareWalker(machine.kvm)
    assert [bool(walker.walk(cache, root, gfn)) for gfn in range(5)] == [
        False,
        False,
        False,
        True,
        False,
    ]


# Accessed and dirty bits.


Marks = list[tuple[int, int, int]]


@pytest.fixture
def marks() -> Marks:
    """The D bits that the walker has set, as (gfn, frame, tick)."""
    return []


@pytest.fixture
def cpu(machine: Machine, marks: Marks) -> HardwareWalker:
    """A CPU's walker."""
    return HardwareWalker(machine.kvm, lambda *mark: marks.append(mark))


def without_bits(
    machine: Machine, gfn: int, bits: int = SPTE_A | SPTE_D
) -> tuple[TranslationCache, int]:
    """Gfn is mapped by a leaf without these bits; a fresh cache, and the leaf's word."""
    root = machine.root()
    machine.plant(root, gfn)
    sp, index = machine.entry(root, gfn)
    sp.spt.fetch_and(index, ~bits)
    return TranslationCache(), sp.spt[index]


def test_a_read_sets_the_accessed_bit_and_a_write_the_dirty_bit_too(
    machine: Machine, cpu: HardwareWalker, marks: Marks
) -> None:
    cache, leaf = without_bits(machine, 21)
    assert cpu.walk(cache, machine.root(), 21) == machine.spte(21) == leaf | SPTE_A
    assert marks == []
    tick = machine.kvm.dirty_clock.value
    assert (
        cpu.walk(cache, machine.root(), 21, write=True)
        == machine.spte(21)
        == leaf | SPTE_A | SPTE_D
    )
    assert marks == [(21, 22, tick + 1)], "the clock has ticked before the bit was set"
    assert machine.kvm.dirty_clock.value == tick + 1
    cpu.walk(cache, machine.root(), 21, write=True)
    assert len(marks) == 1, "what is set is not set again"


def test_a_write_that_is_not_allowed_dirties_nothing(
    machine: Machine, cpu: HardwareWalker, marks: Marks
) -> None:
    cache, leaf = without_bits(machine, 21, SPTE_A | SPTE_D | SPTE_W)
    assert cpu.walk(cache, machine.root(), 21, write=True) == leaf | SPTE_A
    assert marks == []


def test_a_device_sets_no_bits(machine: Machine, walker: HardwareWalker) -> None:
    cache, leaf = without_bits(machine, 21)
    assert walker.walk(cache, machine.root(), 21, write=True) == machine.spte(21) == leaf


def test_without_such_bits_in_the_layout_nobody_sets_them(
    make_machine: MakeMachine, marks: Marks
) -> None:
    machine = make_machine(ad_bits=False)
    cache, leaf = without_bits(machine, 21)
    walker = HardwareWalker(machine.kvm, lambda *mark: marks.append(mark))
    assert walker.walk(cache, machine.root(), 21, write=True) == machine.spte(21) == leaf
    assert marks == []


def test_a_huge_leaf_is_marked_as_a_whole_and_the_page_is_told(
    machine: Machine, cpu: HardwareWalker, marks: Marks
) -> None:
    root, cache = machine.root(), TranslationCache()
    huge = machine.kvm.layout.leaf(16, 3, writable=True, host_writable=True) & ~(SPTE_A | SPTE_D)
    root.spt.store(2, huge)
    assert cpu.walk(cache, root, 37, write=True) == (huge | SPTE_A | SPTE_D) + (5 << PFN_SHIFT)
    assert root.spt[2] == huge | SPTE_A | SPTE_D
    assert [mark[:2] for mark in marks] == [(37, 21)]
    root.spt.store(2, 0)


@pytest.mark.parametrize("level", [1, 3])
def test_a_walk_that_loses_its_entry_has_no_translation(
    machine: Machine, cpu: HardwareWalker, marks: Marks, level: int
) -> None:
    """Between its read and its compare-exchange somebody zapped the leaf: the walker must not
    resurrect it."""
    root = machine.root()
    machine.plant(root, 37)
    if level == 3:
        root.spt.store(2, machine.kvm.layout.leaf(16, 3, writable=True, host_writable=True))
    sp, index = machine.entry(root, 37, level)
    sp.spt.fetch_and(index, ~SPTE_D)

    class Clock(type(machine.kvm.dirty_clock)):  # type: ignore[misc]
        __slots__ = ()

        def fetch_add(self, amount: int) -> int:
            sp.spt.store(index, 0)
            return int(super().fetch_add(amount))

    machine.kvm.dirty_clock.__class__ = Clock
    assert not cpu.walk(TranslationCache(), root, 37, write=True) & (SPTE_RWX | SPTE_MMIO)
    assert (sp.spt[index], marks) == (0, [])
    machine.abandon()


@pytest.mark.parametrize("level", [1, 3])
def test_a_look_at_the_tables_changes_nothing(
    machine: Machine, cpu: HardwareWalker, marks: Marks, level: int
) -> None:
    """What is shown as evidence must not be made by looking for it."""
    root = machine.root()
    machine.plant(root, 37)
    if level == 3:
        root.spt.store(2, machine.kvm.layout.leaf(16, 3, writable=True, host_writable=True))
    sp, index = machine.entry(root, 37, level)
    sp.spt.fetch_and(index, ~(SPTE_A | SPTE_D))
    before = sp.spt[index]
    assert cpu.look(root, 37) == (before if level == 1 else before + (5 << PFN_SHIFT))
    assert (sp.spt[index], marks) == (before, [])
    assert cpu.look(root, 60) == cpu.look(None, 37) == cpu.look(root, 64) == 0
    machine.abandon()


def test_the_walker_leaves_an_mmio_spte_alone(machine: Machine, cpu: HardwareWalker) -> None:
    """Even one whose rights would make it a misconfiguration."""
    root, cache = machine.root(), TranslationCache()
    machine.plant(root, 21)
    sp, index = machine.entry(root, 20)
    word = machine.kvm.layout.mmio(20, 4, SPTE_W)
    sp.spt.store(index, word)
    assert cpu.walk(cache, root, 20, write=True) == word
    assert sp.spt[index] == word
    assert word & SPTE_MMIO
