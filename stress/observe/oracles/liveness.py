"""O10 by bounds: how long mmu_lock is held for write, how far a walk goes without yielding, and
that a yield is paid for."""

from __future__ import annotations

from mmu.machine.vm import VirtualMachine
from mmu.paging.geometry import PG_LEVEL_1G
from mmu.paging.table import RootPage, ShadowPage
from mmu.probe import override
from mmu.pulse import Stopwatch
from stress.observe.oracles.base import Oracle
from stress.scenario.types import Limits


class _Since:
    """When a task took mmu_lock for write."""

    __slots__ = ("watch",)

    def __init__(self) -> None:
        self.watch: Stopwatch | None = None


class LivenessOracle(Oracle):
    """Times every write-held section, and bounds walks and what one of their steps removes. The
    other liveness rules are the watchdog's and RCU's own."""

    rules = ("O10",)
    title = (
        "write-held sections of mmu_lock, walks that cannot yield and single removals are bounded; "
        "a walk moves between two yields"
    )

    def __init__(self, vm: VirtualMachine, limits: Limits) -> None:
        super().__init__(vm, limits)
        self._since = self.kvm.runtime.local(_Since)
        self._longest_ns = int(limits.write_hold_s * 1e9)
        self._steps = limits.walk_steps

    @override
    def mmu_write_locked(self) -> None:
        self._since.mine.watch = Stopwatch(self.kvm.runtime)

    @override
    def mmu_write_unlocking(self) -> None:
        self.judged["O10"].add(1)
        since = self._since.mine
        watch, since.watch = since.watch, None
        held = watch.ns() if watch is not None else 0
        if held > self._longest_ns:
            self.kvm.warn(
                "O10",
                "long-write-hold",
                f"WARNING: mmu_lock was held for write for {held / 1e9:.3f} s",
                f"everybody else waits meanwhile: the bound is {self._longest_ns / 1e9:g} s",
                "soft lockup; reference O10, R13, M1",
            )

    @override
    def walk_section(self, steps: int, ns: int, can_yield: bool) -> None:
        # A walk that could have yielded has done no harm: no task was waiting.
        if self._steps and steps > self._steps and not can_yield:
            self.kvm.warn(
                "O10",
                "unbounded-walk",
                f"WARNING: a zap visited {steps:,} SPTEs without yielding, under mmu_lock and "
                "inside one RCU section",
                "the caller of a zap that cannot yield must bound its range, or it risks a soft "
                f"lockup: the bound is {self._steps:,}",
                "tdp_mmu_zap_leafs(can_yield=false); R13 unbounded non-yielding zap; B33, B34",
            )

    @override
    def zap_yielded(self, root: RootPage, since: int, goal: int) -> None:
        # A walk that yields where it has yielded before can be kept from its work forever.
        if goal == since:
            self.kvm.warn(
                "O10",
                "yield-without-progress",
                f"WARNING: a walk of {root.describe()} yielded at gfn {goal:#x} without having "
                "moved since it was there before",
                "between two yields a walk moves its goal: two contending walks could otherwise "
                "hand mmu_lock to each other for ever",
                "tdp_mmu_iter_cond_resched(), ed5e484b79e8; reference 2.5, B07",
                subject="walk",
                gfn=goal,
            )

    @override
    def prepare_zap_page(self, sp: ShadowPage, shared: bool) -> None:
        # A table of 1 GiB entries is removed only once it is empty: what hangs below its parent's
        # entry goes in one step.
        present = self.kvm.layout.present
        if sp.level < PG_LEVEL_1G or not (left := sum(1 for spte in sp.spt if spte & present)):
            return
        self.kvm.warn(
            "O10",
            "unbounded-removal",
            f"WARNING: {sp.describe()} is removed with 1 GiB entries ({left} of them) and all "
            "below in one step, inside one RCU section",
            "no single recursive removal may be larger than 1 GiB: a zap clears 1 GiB entries "
            "first and larger ones in a second pass",
            "tdp_mmu_zap_root(), 1b6043e8e584; reference 2.7, B34, B35",
            subject="removal",
            gfn=sp.gfn,
        )
