"""vCPU actors: guests that read and write memory, sometimes in system management mode or in a nested guest."""

from __future__ import annotations

from mmu.machine.vcpu import Vcpu
from stress.actors.base import Actor, Stage

PATTERN = 4096
"""Length of a guest's prepared list of accesses; each run starts at a random place in it."""


class _Program:
    """A guest program: a prepared list of accesses, gone through in order."""

    def __init__(self, accesses: list[int]) -> None:
        self._accesses = accesses
        self._length = len(accesses)
        self.position = 0

    def next_access(self) -> int:
        """The next access."""
        position = self.position
        self.position = position + 1 if position + 1 < self._length else 0
        return self._accesses[position]


class VcpuActor(Actor):
    """Runs one vCPU."""

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(stage, f"vcpu{number}")
        config = stage.scenario.actors.vcpu
        self._dice = dice = stage.dice(self.name)
        self.vcpu: Vcpu = stage.vm.create_vcpu()

        def program(as_id: int) -> _Program:
            return _Program(
                stage.layout.accesses(
                    dice,
                    as_id,
                    PATTERN,
                    write=config.write_share,
                    churn=config.churn_share,
                    unmapped=config.unmapped_share,
                    window=config.window_pages,
                    fetch=config.fetch_share,
                )
            )

        self._programs = (program(0), program(1))
        self._smm_share = config.smm_share if stage.scenario.memory.smm_pages else 0.0
        self._nested_share = config.nested_share
        self._idle_share, self._idle_s = config.idle_share, config.idle_s
        self._batch = config.accesses_per_run

    def step(self) -> None:
        """One KVM_RUN; now and then enter or leave SMM before it, or rest in user space after it."""
        vcpu, dice = self.vcpu, self._dice
        smm = vcpu.role.as_id == 1
        if self._smm_share and dice.random() < (0.3 if smm else self._smm_share):
            vcpu.set_smm(not smm)
        elif self._nested_share and not smm and dice.random() < (0.3 if vcpu.role.guest_mode else self._nested_share):
            vcpu.set_guest_mode(not vcpu.role.guest_mode)
        program = self._programs[vcpu.role.as_id]
        if dice.random() < 0.2:
            program.position = dice.randrange(PATTERN)
        vcpu.run(program, self._batch)
        if self._idle_share and dice.random() < self._idle_share:
            self.stage.vm.kvm.runtime.sleep(dice.random() * self._idle_s)

    def moved(self) -> int:
        """Steps and memory accesses: one long KVM_RUN is no hang, a guest that never gets its access through is."""
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
            "vcpu_prev_root_hits": stat.prev_root_hits,
            "vcpu_pml_logged": stat.pml_logged,
            "vcpu_mmio_cached": stat.pf_mmio,
        }
