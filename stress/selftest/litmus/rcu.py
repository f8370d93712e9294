"""RCU and SRCU: publish, wait for the readers, retire - and what happens without the wait."""

from __future__ import annotations

from collections.abc import Callable

from mmu.runtime import Table
from mmu.sync import Sync
from mmu.sync.rcu import Srcu
from stress.selftest.litmus.base import Family, LitmusBench, Tasks, acceptable, forbidden

FAMILY = Family("rcu", "RCU and SRCU")
FREED = 666
"""What stands in memory that was freed."""

_GRADES = {
    "1": acceptable("the old object, which was still there"),
    "2": acceptable("the new object"),
    "666": forbidden("the reader is in freed memory"),
    "deadlock": forbidden("the grace period has never ended"),
    "grace-period-too-short": forbidden(
        "a grace period has ended with a reader inside that it had to wait for"
    ),
}


class _Pointer:
    """A pointer to one of two objects of one word; the old one can be freed."""

    def __init__(self, bench: LitmusBench) -> None:
        self.old, self.new = bench.table(1, "old object"), bench.table(1, "new object")
        self.old.store(0, 1)
        self.new.store(0, 2)
        self._cell = bench.cell("pointer", self.old)

    def read(self) -> int:
        """rcu_dereference(), then the object itself."""
        found: Table = self._cell.value
        return int(found[0])

    def publish(self) -> None:
        """rcu_assign_pointer()."""
        self._cell.value = self.new

    def free(self) -> None:
        """kfree() of the old object."""
        self.old.store(0, FREED)


def _rcu_reader(sync: Sync, pointer: _Pointer) -> Callable[[], int]:
    def reader() -> int:
        sync.rcu.read_lock()
        seen = pointer.read()
        sync.rcu.read_unlock()
        return seen

    return reader


@FAMILY.program(
    "rcu-synchronize",
    title="publish, synchronize_rcu(), free",
    rule=(
        "what was published is freed only after every reader that may have seen it is out of its "
        "section"
    ),
    source="reference 2.6; Documentation/RCU/whatisRCU",
    grades=_GRADES,
)
def rcu_synchronize(bench: LitmusBench) -> Tasks:
    """The updater waits itself."""
    sync, pointer = bench.sync(), _Pointer(bench)

    def updater() -> None:
        pointer.publish()
        sync.rcu.synchronize()
        pointer.free()

    return Tasks(_rcu_reader(sync, pointer), updater)


@FAMILY.program(
    "rcu-two-updaters",
    title="two grace periods at once and one reader",
    rule=(
        "each grace period waits for the readers that were there when it began, also when another "
        "one is under way"
    ),
    source="Documentation/RCU/Design/Requirements; mmu.sync.rcu",
    grades=_GRADES,
)
def rcu_two_updaters(bench: LitmusBench) -> Tasks:
    """The second updater moves the epoch on while the first one waits."""
    sync, pointer = bench.sync(), _Pointer(bench)

    def updater() -> None:
        pointer.publish()
        sync.rcu.synchronize()
        pointer.free()

    def other_updater() -> None:
        sync.rcu.synchronize()

    return Tasks(_rcu_reader(sync, pointer), updater, other_updater)


@FAMILY.program(
    "rcu-call",
    title="publish, call_rcu(), and the callback frees",
    rule="a callback runs after a grace period",
    source="call_rcu(); reference 2.6 handle_removed_pt",
    grades=_GRADES,
)
def rcu_call(bench: LitmusBench) -> Tasks:
    """The updater goes on at once; rcu_barrier() makes sure that the callback is part of every
    schedule."""
    sync, pointer = bench.sync(), _Pointer(bench)

    def updater() -> None:
        pointer.publish()
        sync.rcu.call(pointer.free)
        sync.rcu.barrier()

    return Tasks(_rcu_reader(sync, pointer), updater)


@FAMILY.program(
    "rcu-no-grace-period",
    title="publish and free at once",
    rule="without a grace period a reader may still be inside",
    source="B31 (7cca2d0b7e7d)",
    broken=True,
    grades=_GRADES,
)
def rcu_no_grace_period(bench: LitmusBench) -> Tasks:
    """What `rcu-synchronize` is without its middle line."""
    sync, pointer = bench.sync(), _Pointer(bench)

    def updater() -> None:
        pointer.publish()
        pointer.free()

    return Tasks(_rcu_reader(sync, pointer), updater)


@FAMILY.program(
    "rcu-retire-before-publish",
    title="wait for the readers, then publish, then free",
    rule="the grace period begins after the object is out of sight",
    source="list_del_rcu() comes before call_rcu(); reference 2.2",
    broken=True,
    grades=_GRADES,
)
def rcu_retire_before_publish(bench: LitmusBench) -> Tasks:
    """The right steps in the wrong order."""
    sync, pointer = bench.sync(), _Pointer(bench)

    def updater() -> None:
        sync.rcu.synchronize()
        pointer.publish()
        pointer.free()

    return Tasks(_rcu_reader(sync, pointer), updater)


@FAMILY.program(
    "rcu-pointer-kept",
    title="a pointer that is used after its section",
    rule="what was found in a read section may be used only inside it",
    source="Documentation/RCU/checklist; B32 (14f6fec2e8e0)",
    broken=True,
    grades=_GRADES,
)
def rcu_pointer_kept(bench: LitmusBench) -> Tasks:
    """The reader takes the pointer out of the section."""
    sync = bench.sync()
    old = bench.table(1, "old object")
    old.store(0, 1)
    linked = bench.cell("linked", True)

    def reader() -> int:
        sync.rcu.read_lock()
        found = linked.value
        sync.rcu.read_unlock()
        return int(old[0]) if found else 2

    def updater() -> None:
        linked.value = False
        sync.rcu.synchronize()
        old.store(0, FREED)

    return Tasks(reader, updater)


_BARRIER_GRADES = {
    "1": acceptable("the callback has run"),
    "0": forbidden("a callback that was queued before has not run"),
    "deadlock": forbidden("rcu_barrier() waits for ever"),
}


def _teardown(bench: LitmusBench, *, barrier: bool) -> Tasks:
    sync = bench.sync()
    ran = bench.cell("ran")

    def reader() -> None:
        sync.rcu.read_lock()
        sync.rcu.read_unlock()

    def destroyer() -> int:
        sync.rcu.call(lambda: ran.store(1))
        if barrier:
            sync.rcu.barrier()
        return int(ran.value)

    return Tasks(reader, destroyer)


@FAMILY.program(
    "rcu-barrier",
    title="rcu_barrier() and a callback that was queued before",
    rule="rcu_barrier() returns when every callback that was queued before has run",
    source="kvm_mmu_uninit_tdp_mmu(), reference 2.13",
    grades=_BARRIER_GRADES,
)
def rcu_barrier(bench: LitmusBench) -> Tasks:
    """The end of VM teardown."""
    return _teardown(bench, barrier=True)


@FAMILY.program(
    "rcu-barrier-left-out",
    title="teardown without rcu_barrier()",
    rule="without rcu_barrier() callbacks outlive what they work on",
    source="Documentation/RCU/rcubarrier; reference 2.13",
    broken=True,
    grades=_BARRIER_GRADES,
)
def rcu_barrier_left_out(bench: LitmusBench) -> Tasks:
    """Teardown goes on at once."""
    return _teardown(bench, barrier=False)


def _srcu(bench: LitmusBench) -> Srcu:
    srcu = bench.sync().srcu("kvm->srcu")
    bench.warm_up.append(lambda: srcu.local.mine)
    return srcu


@FAMILY.program(
    "srcu-synchronize",
    title="publish, synchronize_srcu(), free",
    rule="after synchronize_srcu() nobody uses what was visible before",
    source="kvm_swap_active_memslots(), reference 2.9",
    grades=_GRADES,
)
def srcu_synchronize(bench: LitmusBench) -> Tasks:
    """A vCPU's look-up and a memslot update, bare."""
    srcu, pointer = _srcu(bench), _Pointer(bench)

    def reader() -> int:
        token = srcu.read_lock()
        seen = pointer.read()
        srcu.read_unlock(token)
        return seen

    def updater() -> None:
        pointer.publish()
        srcu.synchronize()
        pointer.free()

    return Tasks(reader, updater)


@FAMILY.program(
    "srcu-nested-reader",
    title="a read section inside a read section",
    rule="a nested section ends with its outermost part",
    source="srcu_read_lock() nests; Documentation/RCU/Design/Requirements",
    grades=_GRADES,
)
def srcu_nested_reader(bench: LitmusBench) -> Tasks:
    """The look-up comes after the inner section and inside the outer one."""
    srcu, pointer = _srcu(bench), _Pointer(bench)

    def reader() -> int:
        outer = srcu.read_lock()
        inner = srcu.read_lock()
        srcu.read_unlock(inner)
        seen = pointer.read()
        srcu.read_unlock(outer)
        return seen

    def updater() -> None:
        pointer.publish()
        srcu.synchronize()
        pointer.free()

    return Tasks(reader, updater)


@FAMILY.program(
    "srcu-section-left-early",
    title="a reader that leaves its section for a moment and keeps what it found",
    rule="what was looked up before an SRCU section was left has to be looked up again",
    source="a vCPU drops SRCU in the guest: reference 2.9, B69 (4bcdd831d9d0)",
    broken=True,
    grades=_GRADES,
)
def srcu_section_left_early(bench: LitmusBench) -> Tasks:
    """Found in one section, used in the next."""
    srcu = _srcu(bench)
    old = bench.table(1, "old slot")
    old.store(0, 1)
    linked = bench.cell("linked", True)

    def reader() -> int:
        token = srcu.read_lock()
        found = linked.value
        srcu.read_unlock(token)
        token = srcu.read_lock()
        seen = int(old[0]) if found else 2
        srcu.read_unlock(token)
        return seen

    def updater() -> None:
        linked.value = False
        srcu.synchronize()
        old.store(0, FREED)

    return Tasks(reader, updater)


@FAMILY.program(
    "srcu-lock-inside-reader",
    title="a mutex inside a read section, and synchronize_srcu() with the mutex held",
    rule=(
        "slots_lock may not be taken inside an SRCU read section, because memslot updates wait for "
        "SRCU with it held"
    ),
    source="reference 2.1 order rule 2; Documentation/virt/kvm/locking.rst",
    broken=True,
    grades={
        "circular-dependency": forbidden(
            "lockdep knows SRCU: the order is wrong, whether or not it went well this time"
        ),
        "deadlock": forbidden("the reader waits for the mutex, its holder for the reader"),
    },
)
def srcu_lock_inside_reader(bench: LitmusBench) -> Tasks:
    """The deadlock that lockdep finds in every schedule."""
    sync = bench.sync()
    srcu, slots_lock = sync.srcu("kvm->srcu"), sync.mutex("slots_lock")
    bench.warm_up.append(lambda: srcu.local.mine)

    def reader() -> None:
        token = srcu.read_lock()
        with slots_lock:
            pass
        srcu.read_unlock(token)

    def updater() -> None:
        with slots_lock:
            srcu.synchronize()

    return Tasks(reader, updater)


def _table_removal(bench: LitmusBench) -> Tasks:
    """A lockless walk against the removal of the table that it walks."""
    tiny = bench.vm()
    root, kvm = tiny.root(), tiny.kvm
    tiny.map_pfn(root, tiny.full_cache(), 0, 1)

    def walker() -> str:
        kvm.rcu.read_lock()
        state = tiny.mapped(root, 0)
        kvm.rcu.read_unlock()
        return state

    def zapper() -> None:
        kvm.mmu_lock.write_lock()
        kvm.rcu.read_lock()
        tiny.vm.writer.set_spte(root, 0, 0, root.spt[0], 0)
        kvm.rcu.read_unlock()
        kvm.mmu_lock.write_unlock()
        kvm.rcu.barrier()

    return Tasks(walker, zapper)


@FAMILY.program(
    "table-removed-under-walk",
    title="a lockless walk against the removal of its page table",
    rule="a page table that was visible is freed only after a grace period",
    source="handle_removed_pt(), reference 2.6; B31 (7cca2d0b7e7d), invariant I10",
    grades={
        "frame 1": acceptable("the walk came first"),
        "frozen": acceptable("the walk stands in the removed table, which RCU keeps"),
        "none": acceptable("the table was gone already"),
        "use-after-free": forbidden("the walk is in a freed table"),
        "free-without-rcu": forbidden("the table was freed without a grace period"),
    },
)
def table_removed_under_walk(bench: LitmusBench) -> Tasks:
    """With real page tables, poisoned when they are freed."""
    return _table_removal(bench)
