"""Roots: references, validity, and their end (reference 2.2, 2.3)."""

from __future__ import annotations

from typing import Final

from stress.trace.events import Event, ProbeEvent
from stress.trace.facts import (
    DROPPED,
    FREED,
    INVALIDATED,
    LOADED,
    PAGES,
    REFERENCES,
    TEARDOWN,
    UNLOADED,
    WALKS,
    Check,
    CheckRule,
    Fact,
    either,
)
from stress.trace.layouts import ADDRESS
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.tree import Root
from stress.trace.world import TracedTask, TracedVm, TracedWorld, name_of

ROOTS: Final = Check(
    name="roots",
    rule="O4",
    title=(
        "a root is put once for each reference, never used after its last put, never reused once "
        "invalid, and freed in the end"
    ),
    rules=(
        CheckRule("put-twice", "O4", "a root is put once for each reference", (REFERENCES,)),
        CheckRule(
            "count", "O4", "a root's count follows from its gets and puts", (REFERENCES, WALKS)
        ),
        CheckRule("used-dead", "O4", "a root is not used after its last put", (REFERENCES, WALKS)),
        CheckRule(
            "reused-invalid", "O12", "a root that is invalid is not reused", (WALKS, REFERENCES)
        ),
        CheckRule(
            "never-freed",
            "O11",
            "a VM leaves no root behind",
            (REFERENCES, TEARDOWN),
            core=False,
        ),
        CheckRule(
            "freed-alive",
            "O4",
            "RCU frees a root only after its last put",
            (REFERENCES, FREED),
            core=False,
        ),
    ),
    source=(
        "arch/x86/kvm/mmu/tdp_mmu.c, kvm_tdp_mmu_put_root(), tdp_mmu_next_root(); reference 2.2, "
        "I1-I4"
    ),
)
NO_ROOT: Final = (1 << 64) - 1
LOWEST_PAGE: Final = 4096
"""What kvm_tdp_mmu_get_vcpu_root_hpa() returns is an address, what kvm_tdp_mmu_alloc_root() returns
is none or an error."""
MOST_DEAD: Final = 128
"""Roots that are remembered after their last put, to know who uses them still."""
MOST_OFFSET: Final = 0x100
"""Where rcu_head can lie in struct kvm_mmu_page: what is further from a root is in another page."""
LOW: Final = (1 << 30) - 1
"""PAGE_OFFSET is aligned to 1 GiB, so that the low bits of both addresses of a page are the
same."""


NOTHING: Final[frozenset[str]] = frozenset()
BIRTH: Final = frozenset({"kvm_mmu_get_page"})
PUT: Final = frozenset({"put_root"})
ABSENT: Final = {
    "count": PUT,
    "put-again": frozenset({"next_root_ret"}),
    "put-twice": BIRTH,
    "reused-dead": BIRTH,
    "used-dead": BIRTH,
    "valid-again": BIRTH,
    "reused-invalid": BIRTH,
    "last-put-loaded": frozenset({"mmu_free_roots"}),
    "last-put-valid": frozenset({"kvm_mmu_zap_all_fast", "invalidate_all_roots"}),
    "freed-alive": PUT,
}
"""By code, what a finding says was missing."""
GIVEN: Final[dict[str, tuple[Fact, ...]]] = {
    "count": (WALKS, PAGES),
    "put-again": (WALKS, PAGES),
    "put-twice": (PAGES,),
    "reused-dead": (PAGES,),
    "reused-invalid": (PAGES, REFERENCES),
    "used-dead": (PAGES,),
    "last-put-loaded": (PAGES, LOADED, DROPPED, UNLOADED),
    "last-put-valid": (PAGES, INVALIDATED),
}
"""By code, what must be recorded: without the births of roots an address may be another root's."""
ACROSS: Final = frozenset({"count", "reused-invalid"})
"""Codes that rest on the order of events of different CPUs."""
INVALID_ROOTS: Final = 1
"""KVM_INVALID_ROOTS, of the mask that tdp_mmu_next_root() takes since 6.13."""
INVALIDATES: Final = ("kvm_mmu_zap_all_fast", *either("invalidate_all_roots"))
"""All are emitted with mmu_lock held for write, where roots become invalid."""


class RootsPart(CheckPart):
    """Counts references, and knows which roots are valid."""

    checks = (ROOTS,)

    def __init__(self, world: TracedWorld) -> None:
        super().__init__(world)
        self._puts: dict[Root, tuple[int, int, int, int]] = {}
        self._offsets: dict[int, int] = {}
        self._uncounted: list[int] = []

    def handlers(self) -> dict[str, Handler]:
        """Probes on the functions that get, put, invalidate and free roots."""
        return {
            "next_root_ret": self.next_root_ret,
            "alloc_root": self.alloc_root,
            "alloc_root_ret": self.alloc_root_ret,
            "put_root": self.put_root,
            "zap_root": self.on_root,
            "__zap_root": self.on_root,
            "zap_leafs": self.on_root,
            "wrprot_range": self.on_root,
            "stale": self.stale,
            **dict.fromkeys(INVALIDATES, self.invalidate),
            "load_pgd": self.load_pgd,
            "free_sp_rcu": self.freed,
            **dict.fromkeys(either("uninit_tdp"), self.uninit),
            "zap_invalidated_roots_ret": self.over,
            "kvm_arch_free_memslot()": self.over,
            "tracing_mark_write": self.over,
        }

    def find(self, vm: TracedVm, pointer: int, spt: int = 0) -> Root | None:
        """The root with this struct kvm_mmu_page, or with this page."""
        for root in reversed(vm.tree.roots):
            if root.pointer != pointer or root.freed:
                continue
            if root.dead and (reborn := self._reborn(vm, root, spt)):
                root.freed = root.dead  # RCU has freed it, and its memory is another root's
                reborn.pointer = pointer
                return reborn
            if root.hpa or not spt:
                return root
            return self._merge(vm, root, spt)
        return self._by_page(vm, pointer, spt)

    @staticmethod
    def _reborn(vm: TracedVm, dead: Root, spt: int) -> Root | None:
        """A root of which only the birth is known, after the last put of the one that had its
        address."""
        born = [
            root
            for root in vm.tree.roots
            if not root.pointer and not root.dead and root.born > dead.dead
        ]
        if spt:
            born = [root for root in born if not root.hpa or root.hpa & LOW == spt & LOW] or born
        return born[0] if born else None

    def _merge(self, vm: TracedVm, root: Root, spt: int) -> Root:
        """A root known by its pointer only now shows its page: is it one that was known by its page
        only?"""
        known = self._by_page(vm, root.pointer, spt)
        if known is not None:
            vm.tree.roots.remove(root)
            known.gets += root.gets - 2
            known.puts += root.puts
            return known
        root.hpa = spt - vm.page_offset if vm.page_offset >= 0 else 0
        return root

    @staticmethod
    def _by_page(vm: TracedVm, pointer: int, spt: int) -> Root | None:
        """The root whose pointer is not known yet, and whose page this is."""
        if not spt:
            return None
        for root in reversed(vm.tree.roots):
            if not root.pointer and not root.dead and root.hpa and root.hpa & LOW == spt & LOW:
                root.pointer = pointer
                vm.page_offset = spt - root.hpa
                return root
        return None

    def adopt(self, vm: TracedVm, pointer: int, spt: int = 0) -> Root:
        """A root that is older than the recording, or whose birth was not recorded."""
        root = Root(vm.tree.root_level, 0, pointer=pointer)
        for other in vm.tree.roots:
            if not other.pointer and not other.dead and not vm.tree.complete:
                other.tainted = True  # it may be this one
        if spt and vm.page_offset >= 0:
            root.hpa = spt - vm.page_offset
        vm.tree.roots.append(root)
        return root

    def by_pointer(self, vm: TracedVm, pointer: int, spt: int = 0) -> Root:
        """The root, known or not."""
        return (
            self.find(vm, pointer, spt)
            or self._unnamed(vm, pointer)
            or self.adopt(vm, pointer, spt)
        )

    @staticmethod
    def _unnamed(vm: TracedVm, pointer: int) -> Root | None:
        """The only living root whose pointer is not known yet."""
        unnamed = [root for root in vm.tree.roots if not root.pointer and not root.dead]
        if len(unnamed) == 1 and unnamed[0].born and vm.tree.complete:
            unnamed[0].pointer = pointer
            return unnamed[0]
        return None

    def next_root_ret(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """tdp_mmu_next_root() has taken a reference, unless it came to the end."""
        pointer = probe.number("root", 0)
        task.got = pointer
        if not pointer:
            return
        vm = self.world.vm(task)
        root = self.by_pointer(vm, pointer)
        root.gets += 1
        opened = task.frame("next_root")
        types = opened.number("types", 0) if opened is not None else 0
        valid_only = opened is not None and (
            opened.number("only_valid", 0) > 0 or (types > 0 and not types & INVALID_ROOTS)
        )
        if root.dead:
            self._broken(
                event,
                "reused-dead",
                f"a walk got root {pointer:#x} after its last put",
                [(root.dead, "its last put")],
            )
        elif valid_only and root.invalid and opened is not None and opened.line > root.invalid:
            self._broken(
                event,
                "reused-invalid",
                f"a walk over valid roots got root {pointer:#x}, which is invalid",
                [(root.invalid, "invalidated")],
            )
        elif valid_only:
            self.world.held("roots", "roots found that were valid")

    def alloc_root(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """A vCPU needs a root: first a walk, then a second look under tdp_mmu_pages_lock, then a
        new one."""
        task.got = 0
        task.new_root = None
        task.unseen_get = False

    def alloc_root_ret(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """A vCPU has its root; where neither the walk nor an allocation gave it, the second look
        took a reference unseen."""
        value = probe.number("ret", 0)
        if task.new_root is not None and value > LOWEST_PAGE:
            task.new_root.hpa = value
        task.unseen_get = task.new_root is None and not task.got and value != NO_ROOT
        task.given = value & ADDRESS if value > LOWEST_PAGE else 0

    def load_pgd(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """The vCPU uses a root now, so its address is known."""
        hpa = probe.number("root", task.given) & ADDRESS
        vm = self.world.vm(task)
        if not hpa:
            self._unnamed_get(vm, task)
        elif task.new_root is not None:
            task.new_root.hpa = hpa
            vm.obsolete.pop(hpa, None)
            if task.new_root.invalid:
                vm.obsolete[hpa] = task.new_root.invalid
            task.new_root = None
        elif task.unseen_get:
            for root in vm.tree.roots:
                if root.hpa == hpa and not root.dead:
                    root.gets += 1
        task.unseen_get = False

    @staticmethod
    def _unnamed_get(vm: TracedVm, task: TracedTask) -> None:
        """A vCPU may have taken a reference, and nothing says of which root."""
        for root in vm.tree.roots if task.unseen_get else ():
            root.counted = False

    def put_root(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_tdp_mmu_put_root() is entered: `ref` is the count before the decrement."""
        pointer = probe.number("root")
        vm = self.world.vm(task)
        root = self.by_pointer(vm, pointer, probe.number("spt", 0))
        ref, role = probe.number("ref", -1), probe.number("role", 0)
        if "ref" not in probe.args:
            return
        if root.dead:
            self._broken(
                event,
                "put-twice",
                f"root {pointer:#x} is put (ref={ref}) after its last put",
                [(root.dead, "its last put")],
            )
        elif not 0 < ref < 1 << 31:
            self._broken(event, "below-zero", f"root {pointer:#x} is put with ref={ref}", [])
        else:
            invalid = self._judge_role(event, root, role)
            self._judge_count(event, task, root, ref)
            root.puts += 1
            self._puts[root] = (event.line, event.pid, ref, root.gets)
            if ref == 1:
                self._last_put(event, task, vm, root, invalid)

    def _judge_role(self, event: Event, root: Root, role: int) -> bool:
        """role.invalid never goes back to 0; returns whether the root may be invalid."""
        if root.role and root.invalid and role:
            self.world.detector.see_role(event.line, root.role, role)
        invalid = bool(role & self.world.detector.invalid_bit)
        if invalid and not root.seen_invalid:
            root.seen_invalid = event.line
        elif root.seen_invalid and role and self.world.detector.invalid_bit and not invalid:
            self._broken(
                event,
                "valid-again",
                f"root {root.pointer:#x} is valid again (role={role:#x})",
                [(root.seen_invalid, "it was invalid here")],
            )
        # older than the recording, and its role says nothing
        unsaid = not self.world.detector.invalid_bit and not root.sure
        return invalid or bool(root.invalid) or unsaid

    def _judge_count(self, event: Event, task: TracedTask, root: Root, ref: int) -> None:
        """The count follows from the gets and puts seen, but for those that are under way."""
        last = self._puts.get(root)
        underway = sum(
            self._getting(other) for other in self.world.tasks.values() if other is not task
        )
        if last is not None and last[1:] == (event.pid, ref, root.gets) and not underway:
            headline = (
                f"root {root.pointer:#x} is put twice with ref={ref} by one task, and no reference "
                "was taken in between"
            )
            self._broken(event, "put-again", headline, [(last[0], f"put with ref={ref}")])
            root.gets = ref + root.puts
            return
        if not (root.born and root.counted):
            return
        if "next_root_ret" not in self.world.have:
            self._uncounted.append(event.line)
            return
        unfinished = int(
            last is not None and last[1] != event.pid and self.world.task(last[1]).line == last[0]
        )
        low, high = root.gets - root.puts, root.gets - root.puts + underway + unfinished
        if low <= ref <= high:
            self.world.held("roots", "reference counts that follow from the gets and puts")
            return
        expected = f"{low}" if low == high else f"{low} to {high}"
        lines = [(root.born, "it was born")] + (
            [(last[0], f"its last put before, ref={last[2]}")] if last else []
        )
        self._broken(
            event,
            "count",
            f"root {root.pointer:#x} is put with ref={ref}; its gets and puts say {expected}",
            lines,
        )
        root.gets = ref + root.puts

    @staticmethod
    def _getting(task: TracedTask) -> int:
        """Whether a task may have taken a reference that has not shown yet."""
        return int(
            task.unseen_get
            or task.frame("next_root") is not None
            or task.frame("alloc_root") is not None
        )

    def _last_put(
        self, event: Event, task: TracedTask, vm: TracedVm, root: Root, invalid: bool
    ) -> None:
        """The count reaches zero: the root must be invalid, nobody may hold it, and it is gone
        after a grace period."""
        if not invalid:
            # until 6.3 this is how a root becomes invalid: zapped with a reference of its own
            if self.world.kernel.none == 0:
                root.invalid = event.line
                root.gets += 1
                return
            self._broken(
                event,
                "last-put-valid",
                f"the last reference of root {root.pointer:#x} is put while the root is valid",
                [],
            )
        for vcpu in vm.vcpus.values():
            if root.hpa and vcpu.root == root.hpa and "mmu_free_roots" in self.world.have:
                headline = (
                    f"the last reference of root {root.pointer:#x} is put while vCPU {vcpu.number} "
                    "still has it loaded"
                )
                self._broken(
                    event,
                    "last-put-loaded",
                    headline,
                    [(vcpu.line, f"vCPU {vcpu.number} loaded it")],
                )
        root.dead = event.line
        self._bury(vm)
        vm.removed_pages += 1
        self.world.held("roots", "roots that had their last put")

    def _bury(self, vm: TracedVm) -> None:
        """Old dead roots are forgotten: a recording may hold any number of them."""
        dead = [root for root in vm.tree.roots if root.dead]
        if len(dead) < MOST_DEAD:
            return
        for root in dead[: MOST_DEAD // 2]:
            vm.tree.roots.remove(root)
            self._puts.pop(root, None)

    def _broken(self, event: Event, code: str, headline: str, lines: list[tuple[int, str]]) -> None:
        self.world.broken(
            "roots",
            "put-twice" if code == "put-again" else code,
            headline,
            [(event.line, "here"), *lines],
            task=name_of(event),
            rule="O12" if code.startswith(("reused-invalid", "valid-again")) else "O4",
            absent=ABSENT.get(code, NOTHING),
            across=code in ACROSS,
            # what takes references without an event is known of the kernels before 7.x only
            given=GIVEN.get(code, (REFERENCES,)),
            before="7.2" if code == "count" else "",
        )

    def on_root(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """The task works on this root from here on."""
        if "root" not in probe.args:
            return
        vm = self.world.vm(task)
        root = self.by_pointer(vm, probe.number("root"), probe.number("spt", 0))
        if task.frames:
            task.frames[-1].root = root
        if root.dead:
            self._broken(
                event,
                "used-dead",
                f"{probe.function}() works on a root after its last put",
                [(root.dead, "its last put")],
            )
        role = probe.number("role", 0)
        if role:
            self._judge_role(event, root, role)

    def stale(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """A fault is about to map into the root with this address, which is a valid one: otherwise
        it is stale, and maps nothing."""
        hpa = probe.number("root", 0) & ADDRESS
        roots = self.world.vm(task).tree.roots if hpa else ()
        task.fault_root = next(
            (root for root in roots if root.hpa == hpa and not root.dead and not root.invalid), None
        )

    def invalidate(self, event: Event, task: TracedTask, _said: object) -> None:
        """Every valid root becomes invalid, under mmu_lock held for write."""
        vm = self.world.vm(task)
        vm.invalidated = vm.tree.renewed = event.line
        for root in vm.tree.roots:
            if root.invalid:
                continue
            root.invalid = event.line
            if self.world.kernel.none == 0:
                root.gets += 1
                # until 6.3 the zap of an invalid root takes a reference of its own
                root.counted = False

    def uninit(self, event: Event, task: TracedTask, _said: object) -> None:
        """The VM goes: its roots are made invalid, zapped and put."""
        vm = self.world.vm(task)
        vm.uninit = (event.line, event.pid)
        self.invalidate(event, task, _said)

    def over(self, event: Event, task: TracedTask, _said: object) -> None:
        """kvm_mmu_uninit_tdp_mmu() has done its work when its task goes on."""
        vm = self.world.vm(task)
        if vm.uninit[0] and vm.uninit[1] == event.pid and not vm.over:
            vm.over = event.line
            self.judge_end(vm)

    def judge_end(self, vm: TracedVm) -> None:
        """Every root of a VM that is gone has had its last put."""
        if not REFERENCES.known_from(self.world.have):
            return
        alive = [
            root for root in vm.tree.roots if not root.dead and (root.born or vm.tree.complete)
        ]
        for root in alive:
            name = f"root {root.pointer:#x}" if root.pointer else f"the root at {root.hpa:#x}"
            lines = [
                (vm.over, "the VM is gone"),
                (root.born, "the root was born"),
                (vm.uninit[0], "the TDP MMU was taken down"),
            ]
            self.world.broken(
                "roots",
                "never-freed",
                f"{name} never had its last put",
                lines,
                rule="O11",
                absent=PUT,
                given=(REFERENCES, PAGES),
            )
        if not alive:
            self.world.held("roots", "VMs that left no root behind")

    def freed(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """tdp_mmu_free_sp_rcu_callback(): a grace period after a root's last put, or a table's
        removal."""
        del task  # softirq: the task is whoever was interrupted
        head = probe.number("head", 0)
        counted = REFERENCES.known_from(self.world.have)
        if len(self.world.vms) == 1:
            self._freed_page(event, next(iter(self.world.vms.values())))
        for vm in self.world.vms.values():
            for root in vm.tree.roots:
                offset = head - root.pointer
                if root.pointer and not root.freed and 0 < offset < MOST_OFFSET:
                    self._freed_root(event, root, offset, counted=counted)

    def _freed_page(self, event: Event, vm: TracedVm) -> None:
        """Pages are freed after their removal: there can be no more of the one than of the
        other."""
        vm.alive = vm.alive or event.line
        vm.removed_pages -= 1
        if vm.removed_pages >= 0:
            self.world.held("tables", "pages freed after their removal")
        elif vm.tree.proven and not vm.predecessor:
            headline = (
                "RCU frees a page-table page, but every page that was removed has been freed: this "
                "one is still linked"
            )
            self.world.broken(
                "tables",
                "freed-linked",
                headline,
                [(event.line, "freed here")],
                absent=frozenset({"kvm_tdp_mmu_spte_changed"}),
                tables=True,
                given=(REFERENCES, PAGES),
            )
            vm.removed_pages = 0

    def _freed_root(self, event: Event, root: Root, offset: int, *, counted: bool) -> None:
        """Is it this root's rcu_head? Its place is learned from roots that had their last put."""
        if root.dead or (root.puts and root.invalid and not counted):
            root.freed = event.line
            self._offsets[offset] = self._offsets.get(offset, 0) + 1
        elif counted and self._offsets.get(offset, 0) > 1 and len(self._offsets) == 1:
            self._broken(
                event,
                "freed-alive",
                f"root {root.pointer:#x} is freed before its last put",
                [(root.born, "it was born")],
            )

    def forget(self) -> None:
        """Nothing is known any more."""
        self._puts.clear()
        self._uncounted.clear()

    def finish(self, line: int, *, whole: bool) -> None:
        """Whether walks are recorded at all is known in the end only; another recording has roots
        of its own."""
        if not WALKS.known_from(self.world.have):
            for at in self._uncounted:
                self.world.unknown("roots", WALKS, at)
        self.forget()
