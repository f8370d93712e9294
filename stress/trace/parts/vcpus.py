"""vCPUs: nobody enters the guest on an obsolete root once everybody has acknowledged the request to
drop it."""

from __future__ import annotations

from typing import Final

from stress.trace.events import Event, ProbeEvent, VcpuEvent
from stress.trace.facts import (
    ANSWERED,
    ASKED,
    ENTRIES,
    GIVEN_ROOT,
    INVALIDATED,
    LOAD_OVER,
    LOADED,
    LOADS,
    PAGES,
    Check,
    CheckRule,
    either,
)
from stress.trace.layouts import ADDRESS
from stress.trace.parts.part import CheckPart, Handler
from stress.trace.parts.roots import INVALIDATES
from stress.trace.world import TracedTask, TracedVcpu, TracedVm, TracedWorld, name_of

OBSOLETE: Final = Check(
    name="obsolete",
    rule="O12",
    title=(
        "no vCPU enters the guest on an obsolete root after it had to drop it, nor without having "
        "loaded one"
    ),
    rules=(
        CheckRule(
            "obsolete-root",
            "O12",
            "no vCPU enters the guest on an obsolete root after it had to drop it",
            (ENTRIES, LOADS, INVALIDATED, ANSWERED),
        ),
        CheckRule(
            "no-root",
            "O12",
            "no vCPU enters the guest without having loaded a root",
            (ENTRIES, LOADED),
        ),
        CheckRule(
            "not-loaded",
            "O12",
            "a load that succeeds gives the vCPU a root",
            (LOAD_OVER, GIVEN_ROOT),
        ),
        CheckRule(
            "not-asked",
            "O12",
            "all vCPUs are asked to drop roots that became invalid",
            (INVALIDATED, ASKED, ANSWERED),
        ),
    ),
    source=(
        "arch/x86/kvm/mmu/mmu.c, kvm_mmu_zap_all_fast(), kvm_mmu_free_obsolete_roots(); reference "
        "2.7"
    ),
)
LOADED_ROOT: Final = frozenset({"load_pgd"})
ASKING: Final = frozenset({*either("make_all_req"), "make_all_req_ret"})
UNSAID: Final = -2
"""A vCPU whose missing load was noted."""
NO_ROOT: Final = (1 << 64) - 1


class VcpusPart(CheckPart):
    """Knows which root each vCPU has, and which roots are obsolete."""

    checks = (OBSOLETE,)

    def __init__(self, world: TracedWorld) -> None:
        super().__init__(world)
        self._named = False
        self._rootless: list[tuple[Event, int]] = []
        self._unloaded: list[tuple[Event, int]] = []

    def handlers(self) -> dict[str, Handler]:
        """Entries, loads, drops and requests."""
        return {
            "kvm_entry": self.entry,
            "kvm_exit": self.exit,
            **dict.fromkeys(either("mmu_load"), self.mmu_load),
            **dict.fromkeys(either("load_pgd"), self.load_pgd),
            "mmu_load_ret": self.mmu_load_ret,
            "mmu_free_roots": self.free_roots,
            "mmu_unload": self.unload,
            "free_obsolete": self.note_vcpu,
            **dict.fromkeys(INVALIDATES, self.invalidate),
            **dict.fromkeys(either("make_all_req"), self.request),
            "make_all_req_ret": self.acknowledged,
            **dict.fromkeys(either("zap_invalidated_roots"), self.told),
        }

    def note_vcpu(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """An event that only names the vCPU."""
        self._vcpu(probe, task)

    def _vcpu(self, probe: ProbeEvent, task: TracedTask) -> TracedVcpu | None:
        """The vCPU that an event names."""
        number = probe.number("vcpu", -1)
        if number < 0:
            return None
        task.vcpu = number
        return self.world.vm(task).vcpu(number)

    def entry(self, event: Event, task: TracedTask, said: VcpuEvent) -> None:
        """kvm_entry: everything that the vCPU had been asked to do has been done."""
        vm = self.world.vm(task)
        vm.alive = vm.alive or event.line
        vcpu = vm.vcpu(said.vcpu)
        task.vcpu = said.vcpu
        if vcpu.inside and vcpu.pid != event.pid:
            self.world.mix(
                event.line,
                f"vCPU {said.vcpu} enters the guest in task {event.pid} while it is in the guest "
                f"in task {vcpu.pid}",
            )
            return
        vcpu.inside, vcpu.pid = event.line if "kvm_exit" in self.world.have else 0, event.pid
        if task.loading:
            # it has got its root at some time between the beginning of the load and here
            vcpu.begun, vcpu.loaded, task.loading = task.loading, event.line, 0
        if vcpu.root == -1 and vm.tree.complete:
            self._rootless.append((event, vcpu.number))
            vcpu.root = UNSAID
        self._judge_entry(event, vm, vcpu)

    def _judge_entry(self, event: Event, vm: TracedVm, vcpu: TracedVcpu) -> None:
        since = vm.obsolete.get(vcpu.root, 0)
        if vcpu.root == 0:
            headline = (
                f"vCPU {vcpu.number} enters the guest although it has dropped its root and loaded "
                "no other"
            )
            self._broken(event, "no-root", headline, [(vcpu.line, "it dropped its root")])
        elif since and vm.acknowledged > since:
            headline = (
                f"vCPU {vcpu.number} enters the guest on root {vcpu.root:#x}, which is obsolete"
            )
            lines = [
                (since, "the root became obsolete"),
                (vm.acknowledged, "all vCPUs had acknowledged the request"),
                (vcpu.line, "the vCPU loaded it"),
            ]
            self._broken(event, "obsolete-root", headline, lines)
        elif vcpu.root > 0:
            self.world.held("obsolete", "entries on a valid root")
        elif vm.acknowledged and vcpu.loaded:
            self._judge_by_load(event, vm, vcpu)

    def _judge_by_load(self, event: Event, vm: TracedVm, vcpu: TracedVcpu) -> None:
        """Which root it loads is not recorded: it must have loaded one since all became invalid."""
        if vcpu.begun > vm.invalidated:
            self.world.held("obsolete", "entries after a root was loaded anew")
        if vcpu.loaded > vm.invalidated or vm.acknowledged < vm.invalidated:
            return
        headline = (
            f"vCPU {vcpu.number} enters the guest, and has loaded no root since all roots became "
            "obsolete"
        )
        lines = [
            (vm.invalidated, "all roots became obsolete"),
            (vm.acknowledged, "all vCPUs had acknowledged the request"),
            (vcpu.loaded, "the vCPU last loaded a root"),
        ]
        self._broken(event, "obsolete-root", headline, lines)
        vcpu.loaded = 0

    def exit(self, event: Event, task: TracedTask, said: VcpuEvent) -> None:
        """kvm_exit."""
        self.world.vm(task).vcpu(said.vcpu).inside = 0

    def _broken(self, event: Event, code: str, headline: str, lines: list[tuple[int, str]]) -> None:
        self.world.broken(
            "obsolete",
            code,
            headline,
            [(event.line, "here"), *lines],
            task=name_of(event),
            absent=ASKING if code == "not-asked" else LOADED_ROOT,
            given=(PAGES,) if code == "obsolete-root" else (),
            across=code == "obsolete-root",
        )

    def mmu_load(self, event: Event, task: TracedTask, said: object) -> None:
        """kvm_mmu_load() begins."""
        if isinstance(said, ProbeEvent):
            self._vcpu(said, task)
        task.loaded = 0
        task.loading = event.line

    def load_pgd(self, event: Event, task: TracedTask, said: object) -> None:
        """The root goes to the hardware."""
        task.loaded = event.line
        task.loading = task.loading or event.line
        if not isinstance(said, ProbeEvent) or "root" not in said.args:
            return
        vcpu = self._vcpu(said, task)
        if vcpu is not None:
            vcpu.root, vcpu.line = said.number("root", 0) & ADDRESS, event.line
            self._named = True
            self._forget_address(self.world.vm(task), vcpu.root)

    @staticmethod
    def _forget_address(vm: TracedVm, hpa: int) -> None:
        """The page of an obsolete root may be a new root's by now."""
        since = vm.obsolete.get(hpa, 0)
        if since and any(root.born > since and not root.hpa for root in vm.tree.roots):
            del vm.obsolete[hpa]

    def mmu_load_ret(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_mmu_load() has ended: if it succeeded, it has given a root to the hardware."""
        frame = task.frame("mmu_load")
        ret = probe.number("ret", -1)
        if ret != 0:
            task.loading = 0
        if frame is None or ret != 0:
            return
        if task.loaded:
            self.world.held("obsolete", "loads that gave the vCPU a root")
        else:
            self._unloaded.append((event, frame.line))

    def finish(self, line: int, *, whole: bool) -> None:
        """Whether loads are recorded at all is known in the end only."""
        if GIVEN_ROOT.known_from(self.world.have):
            for event, number in self._rootless if self._named else ():
                self._broken(
                    event,
                    "no-root",
                    f"vCPU {number} enters the guest without ever having loaded a root",
                    [],
                )
            for event, begun in self._unloaded:
                headline = "kvm_mmu_load() returns 0 without having given a root to the hardware"
                self._broken(event, "not-loaded", headline, [(begun, "it began")])
        self.forget()

    def forget(self) -> None:
        """Nothing is known any more."""
        self._rootless.clear()
        self._unloaded.clear()

    def free_roots(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_mmu_free_roots(): bit 0 of the mask is the current root."""
        root = probe.number("root", 0)
        if not probe.number("roots", 0) & 1 or root == NO_ROOT:
            return
        vcpus = self.world.vm(task).vcpus
        vcpu = vcpus.get(task.vcpu)
        if vcpu is not None and vcpu.root == root & ADDRESS:
            vcpu.root, vcpu.line = 0, event.line
            return
        for other in vcpus.values():  # a task may run several, and has not said which it is at
            if other.root == root & ADDRESS:
                other.root = UNSAID

    def unload(self, event: Event, task: TracedTask, probe: ProbeEvent) -> None:
        """kvm_mmu_unload()."""
        vcpu = self._vcpu(probe, task)
        if vcpu is not None:
            vcpu.root, vcpu.line = 0, event.line

    def invalidate(self, event: Event, task: TracedTask, _said: object) -> None:
        """All roots become obsolete; nobody has been told yet."""
        vm = self.world.vm(task)
        for root in vm.tree.roots:
            if root.hpa and not root.dead:
                vm.obsolete.setdefault(root.hpa, event.line)
        for vcpu in vm.vcpus.values():
            if vcpu.root > 0:
                vm.obsolete.setdefault(vcpu.root, event.line)
        fast = event.name == "kvm_mmu_zap_all_fast" or any(
            task.frame(name) for name in ("zap_all_fast", "flush_shadow_memslot", "set_memslot")
        )
        if fast and task.frame("uninit_tdp") is None:
            task.invalidated = task.invalidated or event.line
            task.asked = 0

    def request(self, event: Event, task: TracedTask, said: object) -> None:
        """kvm_make_all_cpus_request(): KVM_REQ_MMU_FREE_OBSOLETE_ROOTS, or the reload request of
        older kernels."""
        wanted = not isinstance(said, ProbeEvent) or said.number("req", 1) & 0xFF
        if not task.invalidated:
            return
        if wanted:
            task.asked = task.asked or event.line
        elif task.previous[0] == "make_all_req":
            task.asked = 0  # the entry of the same call, which did not say what is asked

    def acknowledged(self, event: Event, task: TracedTask, _said: object) -> None:
        """It returns when every vCPU that was in the guest has left it, and none can enter without
        seeing the request."""
        if task.asked and task.invalidated:
            self.world.vm(task).acknowledged = event.line
            task.invalidated = task.asked = 0
            self.world.held("obsolete", "requests to drop obsolete roots")

    def told(self, event: Event, task: TracedTask, _said: object) -> None:
        """The invalid roots are about to be zapped without a flush: every vCPU must have been told
        to drop them."""
        if not task.invalidated:
            return
        line, task.invalidated = task.invalidated, 0
        vm = self.world.vm(task)
        if vm.ended or vm.uninit[0]:
            return  # no vCPU is left to be told
        if not ASKED.known_from(self.world.have):
            self.world.unknown("obsolete", ASKED, event.line)
            vm.acknowledged = event.line
        elif not task.asked:
            headline = "the roots were made invalid, and no vCPU was asked to drop them"
            self._broken(event, "not-asked", headline, [(line, "the roots were made invalid")])
        else:
            vm.acknowledged = event.line
            self.world.held("obsolete", "requests to drop obsolete roots")
