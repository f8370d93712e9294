"""Injected mistakes. Every function makes one, and returns what was reported; the names of those
who make it are looked for in the stacks of the report."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from mmu import invariants
from mmu.errors import SelfDeadlock
from mmu.kvm import VmConfig
from mmu.machine.vm import VirtualMachine
from mmu.memory.memslots import MemoryRegion
from mmu.report import Report, Reporter
from mmu.runtime import Queue
from mmu.sync import Rcu, RcuHead
from mmu.sync.poison import poison, poison_table
from stress.scenario.errors import StressError
from stress.selftest.detectors.clock import ClockRuntime
from stress.selftest.detectors.rig import PATIENCE_S, DetectorRig, Meeting, NoRendezvous, elsewhere

Found = tuple[Report, ...]


def lock_inversion() -> Found:
    """Two mutexes in both orders, by two threads that never meet."""
    bench = DetectorRig()
    a, b = bench.sync.mutex("a"), bench.sync.mutex("b")

    def a_then_b() -> None:
        with a, b:
            pass

    def b_then_a() -> None:
        with b, a:
            pass

    bench.run(a_then_b)
    bench.run(b_then_a)
    return bench.reports


def recursion() -> Found:
    """A thread asks for the lock that it holds."""
    bench = DetectorRig()
    lock = bench.sync.mutex("lock")

    def outer() -> None:
        with lock, suppress(SelfDeadlock):
            inner()

    def inner() -> None:
        lock.acquire()

    bench.run(outer)
    return bench.reports


def sleep_in_atomic() -> Found:
    """A mutex under a spinlock."""
    bench = DetectorRig()
    pages_lock, slots_lock = bench.sync.spinlock("pages_lock"), bench.sync.mutex("slots_lock")

    def atomic_section() -> None:
        with pages_lock:
            sleeper()

    def sleeper() -> None:
        with slots_lock:
            pass

    bench.run(atomic_section)
    return bench.reports


def sleep_in_rcu() -> Found:
    """A wait inside an RCU read section."""
    bench = DetectorRig()

    def rcu_section() -> None:
        with bench.sync.rcu.read():
            sleeper()

    def sleeper() -> None:
        bench.sync.might_sleep("copy_from_user")

    bench.run(rcu_section)
    return bench.reports


def held_at_exit() -> Found:
    """A thread ends with a lock."""
    bench = DetectorRig()
    lock = bench.sync.mutex("lock")

    def forgetful() -> None:
        lock.acquire()

    bench.run(forgetful)
    return bench.reports


def leaked_reference() -> Found:
    """A reference that is got and never put."""
    bench = DetectorRig()
    count = bench.sync.refcount("object")

    def careful() -> None:
        count.get()
        count.put()

    def leaker() -> None:
        count.get()

    bench.run(careful)
    bench.run(leaker)
    count.put()
    count.check_released()
    return bench.reports


def leaked_root() -> Found:
    """A walk of a VM's roots that keeps its reference: the count of a root is one too high at
    rest."""
    reporter = Reporter(sink=None)
    vm = VirtualMachine(VmConfig(frames=64), reporter=reporter)
    region = vm.host.mmap(8)
    vm.host.assign(region, 0)
    vm.set_user_memory_region(MemoryRegion(slot=0, guest_gfn=0, npages=8, region=region))
    vm.create_vcpu().load_root()

    def leaky_walk() -> None:
        for root in vm.roots.snapshot():
            vm.roots.get_root(root)

    leaky_walk()
    invariants.check(vm)
    return reporter.reports


def double_put() -> Found:
    """The last reference is put twice."""
    bench = DetectorRig()
    count = bench.sync.refcount("object")

    def first_put() -> None:
        count.put()

    def second_put() -> None:
        count.put()

    bench.run(first_put)
    bench.run(second_put)
    return bench.reports


def stolen_put() -> Found:
    """Somebody puts a reference that is another's, who finds it gone when he puts it himself."""
    bench = DetectorRig()
    count = bench.sync.refcount("object")

    def thief() -> None:
        count.put()

    def victim() -> None:
        count.put()

    def honest() -> None:
        count.get()
        count.put()

    count.get()
    bench.run(honest)
    bench.run(thief)
    count.put()
    bench.run(victim)
    return bench.reports


class _FreedNode(RcuHead):
    """Something that is freed."""

    def __init__(self) -> None:
        self.value = 1


def use_after_rcu_free() -> Found:
    """A reader keeps what it found after its section, across a grace period."""
    bench = DetectorRig()
    node = _FreedNode()

    def remover() -> None:
        bench.sync.rcu.free(node)

    def late_reader() -> None:
        bench.sync.rcu.barrier()
        assert node.value == 1

    bench.run(remover)
    bench.run(late_reader)
    return bench.reports


def use_after_free() -> Found:
    """An object is freed at once, without RCU."""
    bench = DetectorRig()
    node = _FreedNode()

    def freer() -> None:
        poison(node, bench.reporter)

    def late_writer() -> None:
        node.value = 2

    bench.run(freer)
    bench.run(late_writer)
    return bench.reports


def use_of_freed_words() -> Found:
    """An entry of a page-table page is read after the page was freed."""
    bench = DetectorRig()
    page, words = _FreedNode(), bench.runtime.table(8)

    def freer() -> None:
        page.retire("page", bench.reporter)
        note = page.obituary
        assert note is not None
        poison(page, bench.reporter)
        poison_table(words, note)

    def late_walker() -> None:
        assert words[3] == 0

    bench.run(freer)
    bench.run(late_walker)
    return bench.reports


class _LossyQueue(Queue[Any]):
    """Forgets what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = threading.Event()

    def drain(self) -> list[Any]:
        """Nothing."""
        super().drain()
        self.lost.set()
        return []


class _Lossy(ClockRuntime):
    """A runtime whose queue loses everything."""

    def __init__(self) -> None:
        super().__init__()
        self.lossy = _LossyQueue()

    def queue(self, name: str = "queue") -> Queue[Any]:  # noqa: ARG002 - as in `Runtime`
        """That one."""
        return self.lossy


class _GaveUp(StressError):
    """A wait that never ends was left."""


def lost_callback() -> Found:
    """A callback is queued, and never runs; whoever waits for it is let out of its wait at twice
    the limit."""
    clock = _Lossy()
    bench = DetectorRig(clock, stall_seconds=10.0)

    def forgotten_update() -> None:
        bench.sync.rcu.call(lambda: None)

    def give_up() -> None:
        raise _GaveUp("rcu_barrier() waited for ever")

    forgotten_update()
    if not clock.lossy.lost.wait(PATIENCE_S):
        raise NoRendezvous("the callback task did not take the callback")
    clock.after(20.0, give_up)
    with suppress(_GaveUp):
        bench.sync.rcu.barrier()
    return bench.reports


class _Hasty(Rcu):
    """Grace periods that wait for nobody."""

    def wait_for_readers(self) -> None:
        """Nobody."""


def short_grace_period() -> Found:
    """A grace period ends while a reader that was there before is still inside."""
    bench = DetectorRig(rcu_class=_Hasty)

    def old_reader(here: Meeting) -> None:
        with bench.sync.rcu.read():
            here.stay()

    def updater() -> None:
        bench.sync.rcu.synchronize()

    with elsewhere(bench.runtime, old_reader):
        bench.run(updater)
    return bench.reports


def unprotected_dereference() -> Found:
    """An RCU pointer is followed outside any section."""
    bench = DetectorRig()
    pointer = bench.sync.rcu.pointer("routes", 0)

    def careless() -> None:
        pointer.dereference()

    bench.run(careless)
    return bench.reports
