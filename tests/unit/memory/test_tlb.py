"""Translation caches and the remote flush: vCPUs first, then the importers, and nothing survives what it covers."""

from __future__ import annotations

import pytest

from mmu.memory.requests import KVM_REQ_TLB_FLUSH
from mmu.memory.tlb import WHOLE, HardwareWalker, TranslationCache
from mmu.paging.geometry import Geometry
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
    cache.tables[0] = machine.root()
    return cache


def test_a_whole_flush_leaves_nothing(cache: TranslationCache) -> None:
    cache.flush()
    assert not cache.entries
    assert not cache.tables


@pytest.mark.parametrize(
    ("gfn", "pages", "left"),
    [
        (3, 4, {0, 1, 2, 7, 8, 9}),
        (0, 1000, set()),
        (5, 10**9, {0, 1, 2, 3, 4}),
        (20, 4, set(range(10))),
        (3, 0, set(range(10))),
    ],
)
def test_a_range_flush_drops_the_leaves_of_the_range_and_every_partial_walk(
    cache: TranslationCache, gfn: int, pages: int, left: set[int]
) -> None:
    cache.flush_range(gfn, pages)
    assert set(cache.entries) == left
    assert not cache.tables


def test_a_flush_asks_every_vcpu_and_then_tells_every_importer(machine: Machine) -> None:
    vcpus = [machine.vcpu(), machine.vcpu()]
    importer = Listener()
    fd = machine.export()
    fd.register_importer(importer)
    events = machine.record("flush_begin", "point", "importer_called", "importers_notified", "flush_end")
    machine.vm.tlb.flush("test")
    assert [vcpu.state.requests.value for vcpu in vcpus] == [KVM_REQ_TLB_FLUSH] * 2
    assert importer.told == [(0, WHOLE)]
    assert events.names() == ["flush_begin", "point", "importer_called", "importers_notified", "flush_end"]
    assert events.args("flush_begin") == [("test", 0, WHOLE)]
    assert events.args("point") == [("P15",)], "between the two a device still uses what the vCPUs have forgotten"
    assert events.args("importer_called") == [(importer, 0, WHOLE)]
    assert events.args("importers_notified") == [(fd.exported, 0, WHOLE)]


def test_a_range_flush_tells_the_range(machine: Machine) -> None:
    importer = Listener()
    machine.export().register_importer(importer)
    machine.vm.tlb.flush_range("test", 8, 4)
    assert importer.told == [(8, 4)]


def test_flushes_are_counted_when_asked_for_and_again_when_they_hit_a_running_vcpu(machine: Machine) -> None:
    machine.vcpu()
    stat = machine.kvm.stat
    machine.vm.tlb.flush("test")
    assert (stat.remote_tlb_flush_requests.value, stat.remote_tlb_flush.value) == (1, 0), "nobody is in guest mode"


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


def test_a_walk_ends_at_the_leaf_and_remembers_the_last_table(machine: Machine, walker: HardwareWalker) -> None:
    root, cache = machine.root(), TranslationCache()
    machine.plant(root, 21)
    table, index = machine.entry(root, 21)
    assert walker.walk(cache, root, 21) == table.spt[index] != 0
    assert (cache.tables, cache.entries) == ({5: table}, {}), "whoever owns the cache decides on leaves"
    assert walker.walk(cache, root, 22) == 0
    assert walker.walk(cache, root, 0) == 0
    assert cache.tables == {5: table}, "what is not there is not remembered"


def test_a_remembered_table_is_used_without_looking_above_it(machine: Machine, walker: HardwareWalker) -> None:
    """That is why a table may be freed only after every cache was flushed."""
    root, cache = machine.root(), TranslationCache()
    machine.plant(root, 21)
    found = walker.walk(cache, root, 21)
    above = root.spt.xchg(1, 0)
    assert walker.walk(cache, root, 21) == found
    cache.flush()
    assert walker.walk(cache, root, 21) == 0
    root.spt.store(1, above)


def test_a_large_leaf_ends_the_walk(machine: Machine, walker: HardwareWalker) -> None:
    root, cache = machine.root(), TranslationCache()
    large = machine.kvm.layout.leaf(16, 3, writable=True, host_writable=True)
    root.spt.store(2, large)
    assert walker.walk(cache, root, 40) == large
    assert not cache.tables
    root.spt.store(2, 0)


def test_nothing_is_mapped_without_a_root_nor_beyond_the_tables(machine: Machine, walker: HardwareWalker) -> None:
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
    assert [bool(walker.walk(cache, root, gfn)) for gfn in range(5)] == [False, False, False, True, False]
