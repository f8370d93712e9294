"""Roots: who finds them, who holds them, and who frees them."""

from __future__ import annotations

from mmu.kernels import RootsUnderReadLock
from mmu.paging.table import RootPage, RootRole
from mmu.tdp.roots import Roots
from mmu.variant import Variant
from stress.selftest.litmus.base import Family, LitmusBench, Tasks, acceptable, forbidden
from stress.selftest.litmus.tinyvm import TinyVm

FAMILY = Family("roots", "roots")
_READ_LOCK = Variant(
    "roots-under-read-lock", "roots are loaded under the read lock", (RootsUnderReadLock,)
)


def _dead_root(tiny: TinyVm) -> RootPage:
    """A root that is invalid and zapped, with one reference left."""
    root = tiny.root()
    tiny.vm.roots.invalidate(root)
    root.scheduled.value = False
    root.zapped.value = True
    return root


def _freed(tiny: TinyVm) -> str:
    return (
        f"{'unlinked' if tiny.vm.roots.empty() else 'linked'}, retired "
        f"{tiny.kvm.tables.retired.value} times"
    )


@FAMILY.program(
    "root-get-against-last-put",
    title="a walk of the root list against the last put",
    rule="a walker takes a reference unless the root is dying; whoever puts the last one frees it",
    source="kvm_tdp_mmu_get_root(), tdp_mmu_next_root(); reference 2.2, 2.3, invariant I1",
    grades={
        "visited, unlinked, retired 1 times": acceptable(
            "the walker has held it; one of the two was last"
        ),
        "passed over, unlinked, retired 1 times": acceptable("the root was dying, or gone"),
        "refcount-underflow": forbidden("put twice"),
        "refcount-get-on-zero": forbidden("got although it was dying"),
        "use-after-free": forbidden("the walker stands on a freed root"),
        "root-not-linked": forbidden("unlinked twice"),
    },
)
def root_get_against_last_put(bench: LitmusBench) -> Tasks:
    """The list is walked under mmu_lock(read) and RCU; the put is another reader's."""
    tiny = bench.vm()
    root, kvm = _dead_root(tiny), tiny.kvm

    def walker() -> str:
        kvm.mmu_lock.read_lock()
        seen = list(tiny.vm.roots.each_yield_safe(shared=True))
        kvm.mmu_lock.read_unlock()
        return "visited" if seen else "passed over"

    def holder() -> None:
        kvm.mmu_lock.read_lock()
        tiny.vm.roots.put_root(root, shared=True)
        kvm.mmu_lock.read_unlock()

    return Tasks(walker, holder, after=lambda: _freed(tiny))


class GetWithoutCheck(Roots):
    """kvm_tdp_mmu_get_root() as a plain increment."""

    def get_root(self, root: RootPage) -> bool:
        """Whatever the count is."""
        root.refcount.get()
        return True


@FAMILY.program(
    "root-get-without-check",
    title="a walk of the root list that takes references on dying roots",
    rule="a reference is taken with inc-not-zero",
    source="kvm_tdp_mmu_get_root(); B19 (614f6970aa70)",
    broken=True,
    variants=(
        Variant(
            "get-without-check",
            "references are taken without a look at the count",
            (GetWithoutCheck,),
        ),
    ),
    grades=root_get_against_last_put.grades,
)
def root_get_without_check(bench: LitmusBench) -> Tasks:
    """The root is dead and is walked."""
    return root_get_against_last_put.build(bench)


@FAMILY.program(
    "invalidate-against-load",
    title="a vCPU loads a root while all roots are invalidated",
    rule="a vCPU gets a valid root; an invalid one never becomes valid again",
    source=(
        "kvm_tdp_mmu_get_vcpu_root_hpa(), kvm_tdp_mmu_invalidate_all_roots(); reference 2.2, "
        "invariant I4"
    ),
    grades={
        "the old root, 1 root": acceptable(
            "loaded before it was invalidated: the request makes the vCPU drop it"
        ),
        "a new root, 2 root": acceptable("loaded after: the invalid one is not found"),
        "an invalid root, 1 root": forbidden("an invalid root was handed out"),
    },
)
def invalidate_against_load(bench: LitmusBench) -> Tasks:
    """Both under mmu_lock for write."""
    tiny = bench.vm()
    old, kvm = tiny.root(), tiny.kvm

    def vcpu() -> str:
        kvm.mmu_lock.write_lock()
        root = tiny.vm.roots.get_vcpu_root(RootRole(0))
        invalid = root.invalid.value
        kvm.mmu_lock.write_unlock()
        return "an invalid root" if invalid else "the old root" if root is old else "a new root"

    def zapper() -> None:
        kvm.mmu_lock.write_lock()
        tiny.vm.roots.invalidate_all_roots()
        kvm.mmu_lock.write_unlock()

    return Tasks(vcpu, zapper, after=lambda: f"{len(tiny.vm.roots.snapshot())} root")


def _two_loads(bench: LitmusBench) -> Tasks:
    tiny = bench.vm()
    roots = tiny.vm.roots

    def load() -> RootPage:
        roots.load_lock()
        root = roots.get_vcpu_root(RootRole(0))
        roots.load_unlock()
        return root

    loaded: dict[str, RootPage] = {}

    def one() -> None:
        loaded["one"] = load()

    def other() -> None:
        loaded["other"] = load()

    def after() -> str:
        same = "one root" if loaded["one"] is loaded["other"] else "two roots"
        return f"{same}, {roots.snapshot()[0].refcount.read()} references"

    return Tasks(one, other, after=after)


_TWO_LOADS_GRADES = {
    "one root, 3 references": acceptable(
        "one vCPU has made it, the other has found it; the third reference is the TDP MMU's"
    ),
    "two roots, 2 references": forbidden(
        "two valid roots of one role: the vCPUs do not share their tables"
    ),
}


@FAMILY.program(
    "two-root-loads",
    title="two vCPUs load their first root",
    rule="there is one valid root of a role",
    source="kvm_tdp_mmu_get_vcpu_root_hpa(), reference 2.2; invariant I3",
    grades=_TWO_LOADS_GRADES,
)
def two_root_loads(bench: LitmusBench) -> Tasks:
    """Under mmu_lock for write, as up to 6.8."""
    return _two_loads(bench)


@FAMILY.program(
    "two-root-loads-read-lock",
    title="two vCPUs load their first root under the read lock",
    rule="under the read lock a root is looked for twice: the second time under tdp_mmu_pages_lock",
    source="kvm_tdp_mmu_alloc_root(), 6.9; reference 2.15",
    variants=(_READ_LOCK,),
    grades=_TWO_LOADS_GRADES,
)
def two_root_loads_read_lock(bench: LitmusBench) -> Tasks:
    """Double-checked, as from 6.9 on."""
    return _two_loads(bench)


class LookOnce(RootsUnderReadLock):
    """The root is looked for once."""

    def get_vcpu_root(self, role: RootRole) -> RootPage:
        """Without the second look."""
        self.kvm.rcu.read_lock()
        root = self.find_root(role)
        self.kvm.rcu.read_unlock()
        return root or self.allocate_root(role)


@FAMILY.program(
    "root-load-one-look",
    title="two vCPUs load their first root under the read lock and look only once",
    rule="under the read lock a root is looked for twice",
    source="kvm_tdp_mmu_alloc_root(), 6.9; reference 2.15",
    broken=True,
    variants=(Variant("look-once", "a root is looked for once", (LookOnce,)),),
    grades=_TWO_LOADS_GRADES,
)
def root_load_one_look(bench: LitmusBench) -> Tasks:
    """Each makes a root of his own."""
    return _two_loads(bench)


@FAMILY.program(
    "gifted-reference",
    title="a vCPU drops its obsolete root while the root is zapped",
    rule=(
        "the TDP MMU's own reference lasts until the zap is done, so the last put never meets a "
        "root with mappings"
    ),
    source="kvm_tdp_mmu_zap_invalidated_roots(), reference 2.2, 2.7; B21, B22",
    grades={
        "unlinked, retired 2 times": acceptable("the root and its table, each once"),
        "last-put": forbidden("the last reference went while something was mapped"),
        "refcount-underflow": forbidden("the gift was put twice"),
        "use-after-free": forbidden("the root was zapped after it was freed"),
        "zap-of-dead-root": forbidden("zapped although nobody holds it"),
    },
)
def gifted_reference(bench: LitmusBench) -> Tasks:
    """Both sides put; either may be last."""
    tiny = bench.vm()
    tiny.slot()
    vcpu, kvm = tiny.vcpu(), tiny.kvm
    tiny.map(vcpu, 0)
    vcpu.tlb.flush()

    def zapper() -> None:
        tiny.vm.zapper.zap_invalidated_roots()

    def dropper() -> None:
        vcpu.free_obsolete_roots()

    kvm.mmu_lock.write_lock()
    tiny.vm.roots.invalidate_all_roots()
    kvm.mmu_lock.write_unlock()
    return Tasks(zapper, dropper, after=lambda: _freed(tiny))


@FAMILY.program(
    "two-zappers-one-gift",
    title="two calls of zap_invalidated_roots() and one scheduled root",
    rule="a scheduled root is zapped and put once; callers are serialised by slots_lock",
    source="tdp_mmu_scheduled_root_to_zap, 0df9dab891ff; B22, reference 2.2",
    grades={
        "unlinked, retired 1 times": acceptable(
            "one of them has found it, and the vCPU was the last to put"
        ),
        "refcount-underflow": forbidden("the gift was put twice"),
        "use-after-free": forbidden("the vCPU has used a root that was freed"),
    },
)
def two_zappers_one_gift(bench: LitmusBench) -> Tasks:
    """With slots_lock held, as memslot updates hold it."""
    tiny = bench.vm()
    vcpu, kvm = tiny.vcpu(), tiny.kvm
    kvm.mmu_lock.write_lock()
    tiny.vm.roots.invalidate_all_roots()
    kvm.mmu_lock.write_unlock()

    def zap() -> None:
        with kvm.slots_lock:
            tiny.vm.zapper.zap_invalidated_roots()

    def one() -> None:
        zap()

    def other() -> None:
        zap()

    def after() -> str:
        vcpu.free_obsolete_roots()
        return _freed(tiny)

    return Tasks(one, other, after=after)
