"""vCPU actors: guests that read and write memory, sometimes in system management mode or in a
nested guest."""

from __future__ import annotations

from collections.abc import Iterator

from mmu.machine.vcpu import FETCH, Vcpu
from stress.actors.accesses import PATTERN, AccessProgram, Habits, program
from stress.actors.base import Actor, Stage
from stress.scenario.operations import Op, access_op

IDLE = Op("idle")


class _Guest:
    """A guest program: the accesses of one KVM_RUN in order, round and round."""

    def __init__(self, accesses: tuple[int, ...]) -> None:
        self._accesses = accesses
        self._length = len(accesses)
        self.position = 0

    def next_access(self) -> int:
        """The next access."""
        position = self.position
        self.position = position + 1
        return self._accesses[position % self._length]


class VcpuActor(Actor):
    """Runs one vCPU."""

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(stage, f"vcpu{number}")
        config = stage.scenario.actors.vcpu
        self._dice = stage.dice(self.name)
        self.vcpu: Vcpu = stage.vm.create_vcpu()
        self._smm_share = config.smm_share if stage.scenario.memory.smm_pages else 0.0
        self._nested_share = config.nested_share
        self._shadow_pages = config.shadow_pages
        self._migrate_share = config.migrate_share
        self._idle_share, self._idle_s = config.idle_share, config.idle_s
        self._batch = min(config.accesses_per_run, PATTERN)
        self._laps = 1 if self.script is not None else max(1, config.accesses_per_run // PATTERN)
        """How often a random KVM_RUN goes through its accesses: one that is longer than all there
        are has no more."""
        self._made = 0
        habits = Habits(
            config.write_share,
            config.churn_share,
            config.unmapped_share,
            config.window_pages,
            config.fetch_share,
        )
        spaces = () if self.script is not None else (0, 1) if self._smm_share else (0,)
        self._programs: list[AccessProgram] = [
            program(stage, self._dice, as_id, habits) for as_id in spaces
        ]
        self.verbs |= {
            "read": lambda gfn: self.run(gfn << 1),
            "write": lambda gfn: self.run(gfn << 1 | 1),
            "fetch": lambda gfn: self.run(gfn << 1 | FETCH),
            "run": self.run,
            "smm": self.smm,
            "nested": self.nested,
            "shadow": self.vcpu.shadow,
            "cpu": self.move,
            "idle": self.idle,
        }

    def choose(self) -> Iterator[Op]:
        """One KVM_RUN; now and then enter or leave SMM or move to another physical CPU before it,
        or rest in user space after it."""
        dice, role = self._dice, self.vcpu.role
        if self._migrate_share and dice.random() < self._migrate_share:
            yield Op("cpu", (dice.randrange(len(self.stage.vm.pcpus)),))
        smm = role.as_id == 1
        if self._smm_share and dice.random() < (0.3 if smm else self._smm_share):
            yield Op("smm", (int(not smm),))
        elif (
            self._nested_share
            and not smm
            and dice.random() < (0.3 if role.guest_mode else self._nested_share)
        ):
            yield Op("nested", (int(not role.guest_mode),))
            if self._shadow_pages and not role.guest_mode:
                yield Op("shadow", (self._shadow_pages,))
        accesses = self._programs[self.vcpu.role.as_id]
        if dice.random() < 0.2:
            accesses.jump()
        ahead = accesses.ahead(self._batch)
        yield access_op(ahead[0]) if self._batch == 1 else Op("run", ahead)
        accesses.advance(self._made)
        if self._idle_share and dice.random() < self._idle_share:
            yield IDLE

    def run(self, *accesses: int) -> None:
        """One KVM_RUN; an MMIO exit ends it."""
        guest = _Guest(accesses)
        self.vcpu.run(guest, len(accesses) * self._laps)
        self._made = guest.position

    def smm(self, on: int) -> None:
        """Enter or leave SMM; nothing if that is so already."""
        if (self.vcpu.role.as_id == 1) != bool(on):
            self.vcpu.set_smm(bool(on))

    def nested(self, on: int) -> None:
        """Enter or leave a nested guest; nothing if that is so already, or in SMM."""
        role = self.vcpu.role
        if role.as_id == 0 and role.guest_mode != bool(on):
            self.vcpu.set_guest_mode(bool(on))

    def move(self, cpu: int) -> None:
        """Go on on another physical CPU."""
        self.vcpu.move_to(self.stage.vm.pcpus[cpu])

    def idle(self) -> None:
        """Rest in user space for a random time, with the root loaded."""
        self.stage.vm.kvm.runtime.sleep(self._dice.random() * self._idle_s)

    def moved(self) -> int:
        """Steps and memory accesses: one long KVM_RUN is no hang, a guest that never gets its
        access through is."""
        return self.progress + self.vcpu.stat.accesses

    def figures(self) -> dict[str, int]:
        """The vCPU's statistics."""
        stat = self.vcpu.stat
        return {name: getattr(stat, name) for name in stat.__slots__}

    def totals(self) -> dict[str, int]:
        """Its share of the run's counters."""
        stat = self.vcpu.stat
        return {
            "vcpu_accesses": stat.accesses,
            "vcpu_entries": stat.entries,
            "vcpu_faults": stat.pf_taken,
            "vcpu_faults_fixed": stat.pf_fixed,
            "vcpu_faults_spurious": stat.pf_spurious,
            "vcpu_faults_retried": stat.pf_retry,
            "vcpu_mmio_exits": stat.mmio_exits,
            "vcpu_kicks": stat.kicks,
            "vcpu_root_loads": stat.root_loads,
            "vcpu_migrations": stat.migrations,
            "vcpu_prev_root_hits": stat.prev_root_hits,
            "vcpu_pml_logged": stat.pml_logged,
            "vcpu_shadow_pages": stat.shadow_pages,
            "vcpu_mmio_cached": stat.pf_mmio,
        }
