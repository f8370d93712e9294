"""What a scenario says: frozen types, one field a key of the TOML file, each with its unit and reason."""

from __future__ import annotations

from typing import Literal, NewType

from attrs import field, frozen

Count = NewType("Count", int)
"""A whole number from 0 on."""
Positive = NewType("Positive", int)
"""A whole number from 1 on."""
Share = NewType("Share", float)
"""A number from 0 to 1."""
Seconds = NewType("Seconds", float)
"""A time in seconds, more than 0."""
Amount = NewType("Amount", int)
"""How often something has to happen: a whole number from 1 on."""
Seed = NewType("Seed", int)
"""A whole number from 0 on, of any size."""
Text = NewType("Text", str)
"""A text."""
Flag = NewType("Flag", bool)
"""true or false."""
Rate = NewType("Rate", float)
"""Events a second, from 0 on; 0 is never."""
FileName = NewType("FileName", str)
"""The path of a readable file, relative to the scenario's own folder."""
PolicyName = NewType("PolicyName", str)
"""The name of a policy (`stress list policies`)."""
VariantName = NewType("VariantName", str)
"""The name of a shipped variant (`stress list variants`)."""
RuleName = NewType("RuleName", str)
"""The number of a rule (`stress list oracles`)."""

UNMAPPED_FRAMES = 8
"""Frames at the end of guest memory that no slot ever covers."""

PreemptionPoint = Literal["P1", "P2", "P4", "P5", "P7", "P8", "P9", "P10", "P11", "P13", "P14", "P15", "P16", "P17", "P20"]


@frozen
class Vm:
    """The machine: vCPUs, table geometry, host memory, and which design it runs.

    `variants` names shipped variants, `variant_files` Python files with variants of one's own.
    """

    vcpus: Positive = Positive(3)
    levels: Positive = Positive(4)
    entries: Positive = Positive(512)
    frames: Positive = Positive(1 << 15)
    mmu_lock: Literal["fair", "reader", "writer"] = "fair"
    have_exported_tdp: Flag = Flag(True)
    ad_bits: Flag = Flag(True)
    profile: Literal["hardened"] = "hardened"
    kernel: Literal["6.6"] = "6.6"
    policy: PolicyName = PolicyName("keep-valid")
    variants: tuple[VariantName, ...] = ()
    variant_files: tuple[FileName, ...] = ()


@frozen
class Memory:
    """Guest memory: one slot that stays, some that come and go, and the same again in the SMM address space.

    All sizes are in 4 KiB pages.
    """

    fixed_pages: Positive = Positive(256)
    churn_slots: Count = Count(2)
    churn_pages: Positive = Positive(128)
    smm_pages: Count = Count(32)
    smm_churn_pages: Count = Count(32)

    def stride(self, entries: int, levels: int) -> int:
        """Distance between places in frames: a whole last-level table where there is room, so that deleting a slot can
        empty tables; else just enough."""
        largest = max(self.fixed_pages, self.churn_pages, self.smm_pages, self.smm_churn_pages)
        stride = entries
        while stride < largest:
            stride *= 2
        return stride if self.frames_needed(stride) <= entries**levels else largest

    def frames_needed(self, stride: int) -> int:
        """How many guest frames the places take, with a few left over that nothing maps."""
        return stride * (1 + 2 * max(self.churn_slots, 1 if self.smm_churn_pages else 0)) + UNMAPPED_FRAMES


@frozen
class VcpuActor:
    """vCPU threads: how the guests behave. After `idle_share` of its runs a vCPU rests for up to `idle_s` with its root
    loaded; guests work on `window_pages` at a time."""

    write_share: Share = Share(0.5)
    churn_share: Share = Share(0.5)
    unmapped_share: Share = Share(0.01)
    smm_share: Share = Share(0.05)
    idle_share: Share = Share(0.01)
    idle_s: Share = Share(0.03)
    window_pages: Positive = Positive(8)
    accesses_per_run: Positive = Positive(64)


@frozen
class MemslotActor:
    """The memslot worker: what it does, and how often. Weights are relative."""

    enabled: Flag = Flag(True)
    pause_s: Share = Share(0.005)
    delete_weight: Rate = Rate(6.0)
    move_weight: Rate = Rate(2.0)
    flags_weight: Rate = Rate(1.0)


@frozen
class ConsumerActor:
    """The consumer: devices that do DMA through the exported root. `reexports_per_s` closes and reopens the TDP FD."""

    devices: Count = Count(1)
    write_share: Share = Share(0.5)
    churn_share: Share = Share(0.7)
    window_pages: Positive = Positive(8)
    reexports_per_s: Rate = Rate(2.0)


@frozen
class Actors:
    """Who takes part."""

    vcpu: VcpuActor = field(factory=VcpuActor)
    memslot_worker: MemslotActor = field(factory=MemslotActor)
    consumer: ConsumerActor = field(factory=ConsumerActor)


@frozen
class Disturbances:
    """What makes interleavings that would otherwise be rare: delays at preemption points (reference 2.16), a short
    interpreter switch interval, and stutter (everybody stops, the invariants are checked, everybody goes on)."""

    delay_share: Share = Share(0.02)
    delay_s: Share = Share(0.001)
    points: tuple[PreemptionPoint, ...] = ("P1", "P2", "P4", "P8", "P9", "P10", "P13", "P14", "P15", "P16", "P20")
    switch_interval_s: Seconds = Seconds(0.0005)
    stutter_every_s: Seconds = Seconds(2.0)


@frozen
class Limits:
    """Bounds whose breach is a finding (O10). Generous: they tell a hang from a slow machine."""

    stall_s: Seconds = Seconds(10.0)
    rcu_stall_s: Seconds = Seconds(10.0)
    write_hold_s: Seconds = Seconds(10.0)


@frozen
class Budget:
    """How much to run. `settle_s` is how long a run goes on after its first finding, to collect what follows from it."""

    duration_s: Seconds = Seconds(10.0)
    settle_s: Seconds = Seconds(0.5)
    max_findings: Positive = Positive(20)


@frozen
class Expect:
    """For scenarios that must fail: the rules of which at least one has to fire."""

    rules: tuple[RuleName, ...] = ()


@frozen
class Scenario:
    """A whole scenario. `obligations` are counts that the run must reach, or it proves nothing (INCONCLUSIVE)."""

    title: Text = Text("")
    engine: Literal["threads"] = "threads"
    seed: Seed | None = None
    vm: Vm = field(factory=Vm)
    memory: Memory = field(factory=Memory)
    actors: Actors = field(factory=Actors)
    disturbances: Disturbances = field(factory=Disturbances)
    limits: Limits = field(factory=Limits)
    budget: Budget = field(factory=Budget)
    obligations: dict[str, Amount] = field(factory=dict)
    expect: Expect = field(factory=Expect)
