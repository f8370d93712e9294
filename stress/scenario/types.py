"""What a scenario says: frozen types, one field a key of the TOML file, each with its unit and
reason."""

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
KernelName = NewType("KernelName", str)
"""The version of a kernel that the series is modelled on (`stress list kernels`)."""
PolicyName = NewType("PolicyName", str)
"""The name of a policy (`stress list policies`)."""
VariantName = NewType("VariantName", str)
"""The name of a shipped variant (`stress list variants`)."""
RuleName = NewType("RuleName", str)
"""The number of a rule (`stress list oracles`)."""

Lines = NewType("Lines", tuple[str, ...])
"""A list of operations, as text (`stress.scenario.operations`)."""

UNMAPPED_FRAMES = 8
"""Frames at the end of guest memory that no slot ever covers."""

PreemptionPoint = Literal[
    "P1",
    "P2",
    "P4",
    "P5",
    "P6",
    "P7",
    "P8",
    "P8b",
    "P9",
    "P10",
    "P11",
    "P12",
    "P13",
    "P14",
    "P15",
    "P16",
    "P17",
    "P18",
    "P19",
    "P20",
]
PageLevel = Literal[1, 2, 3]
"""Size of a page: 1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB (times what the geometry makes of it)."""


@frozen
class VmSettings:
    """The machine: vCPUs, table geometry, host memory, and which design it runs.

    `huge_2m` and `huge_1g` of the host's frames' blocks are kept for huge pages, `max_level` is the
    largest leaf. `pml`, `mmio_gen_bits`, `nx_huge_pages`, `nx_recovery_ratio`, `manual_protect`,
    `dirty_initially_set` (which needs it) and `eager_page_split` are KVM's own knobs. `iommu_hint`
    says whether the VT-d driver hands the invalidation hint to the hardware, as it does from 6.19
    on, and in 6.18.y and 6.12.y from December 2025 (6b38a108eeb3). `pcpus` is the number of
    physical CPUs that the vCPUs take turns on: their TLBs are tagged by root and keep what a vCPU
    leaves behind when it switches roots or CPUs, and page-table memory is used again. With 0 each
    vCPU has a CPU for itself, whose TLB every switch of root empties. `profile` is the mended
    design or the series as posted, `kernel` what surrounds it, `policy` what happens to the
    exported root. `variants` names shipped variants, `variant_files` Python files with variants of
    one's own.
    """

    vcpus: Positive = Positive(3)
    levels: Positive = Positive(4)
    entries: Positive = Positive(512)
    frames: Positive = Positive(1 << 15)
    mmu_lock: Literal["fair", "reader", "writer"] = "fair"
    have_exported_tdp: Flag = Flag(True)
    ad_bits: Flag = Flag(True)
    pml: Flag = Flag(True)
    huge_2m: Count = Count(0)
    huge_1g: Count = Count(0)
    max_level: PageLevel = 3
    mmio_gen_bits: Positive = Positive(19)
    nx_huge_pages: Flag = Flag(False)
    nx_recovery_ratio: Positive = Positive(60)
    manual_protect: Flag = Flag(False)
    dirty_initially_set: Flag = Flag(False)
    eager_page_split: Flag = Flag(True)
    iommu_hint: Flag = Flag(False)
    pcpus: Count = Count(0)
    profile: Literal["hardened", "rfc-v1"] = "hardened"
    kernel: KernelName = KernelName("6.6")
    policy: PolicyName = PolicyName("keep-valid")
    variants: tuple[VariantName, ...] = ()
    variant_files: tuple[FileName, ...] = ()


@frozen
class Memory:
    """Guest memory: memory that stays, slots that come and go, and the same again in the SMM
    address space.

    All sizes are in 4 KiB pages. `host_level` is the largest page that the host backs a slot with;
    `offset_pages` shifts host addresses against guest addresses, so that huge pages do not fit.
    `userfaults` makes the pages of the slots that come and go wait for a userfaultfd handler.

    The fixed memory is one host mapping behind `fixed_slots` slots, with `fixed_gap` guest frames
    left free between two of them; `readonly_pages` more follow in a read-only slot. With
    `smm_alias` the fixed SMM slot is the beginning of the same mapping; with `churn_shared` the
    slots that come and go are parts of one mapping.
    """

    host_level: PageLevel = 1
    offset_pages: Count = Count(0)
    userfaults: Flag = Flag(False)
    fixed_pages: Positive = Positive(256)
    fixed_slots: Positive = Positive(1)
    fixed_gap: Count = Count(0)
    readonly_pages: Count = Count(0)
    churn_slots: Count = Count(2)
    churn_pages: Positive = Positive(128)
    churn_shared: Flag = Flag(False)
    smm_pages: Count = Count(32)
    smm_churn_pages: Count = Count(32)
    smm_alias: Flag = Flag(False)

    def stride(self, entries: int, levels: int) -> int:
        """Distance between places in frames: a whole last-level table where there is room, so that
        deleting a slot can empty tables; else just enough."""
        span = self.fixed_pages + self.fixed_gap * (self.fixed_slots - 1) + self.readonly_pages
        largest = max(span, self.churn_pages, self.smm_pages, self.smm_churn_pages)
        stride = entries
        while stride < largest:
            stride *= 2
        return stride if self.frames_needed(stride) <= entries**levels else largest

    def fixed_parts(self) -> list[int]:
        """The sizes of the slots that the fixed memory is behind; the last takes what is left."""
        size = self.fixed_pages // self.fixed_slots
        others = self.fixed_slots - 1
        return [size] * others + [self.fixed_pages - size * others]

    def fixed_regions(self) -> list[int]:
        """The sizes of the host's mappings that stay, in the order of their numbers."""
        smm = 0 if self.smm_alias else self.smm_pages
        return [self.fixed_pages, *filter(None, (smm, self.readonly_pages))]

    def churn_regions(self) -> list[int]:
        """The sizes of the host's mappings behind the slots that come and go, in the order of their
        numbers."""
        normal: list[int] = [self.churn_pages] * self.churn_slots
        if self.churn_shared:
            normal = [sum(normal)]
        return [*normal, *([self.smm_churn_pages] if self.smm_churns() else [])]

    def churn_count(self) -> int:
        """The number of slots that come and go."""
        return self.churn_slots + self.smm_churns()

    def smm_churns(self) -> bool:
        """Whether one of them is in the SMM address space."""
        return bool(self.smm_pages and self.smm_churn_pages)

    def frames_needed(self, stride: int) -> int:
        """How many guest frames the places take, with a few left over that nothing maps."""
        return (
            stride * (1 + 2 * max(self.churn_slots, 1 if self.smm_churn_pages else 0))
            + UNMAPPED_FRAMES
        )


@frozen
class VcpuSettings:
    """vCPU threads: how the guests behave. Some accesses are instruction fetches, some runs are in
    SMM or in a nested guest, and `unmapped_share` go where no slot ever is (MMIO). After
    `idle_share` of its runs a vCPU rests for up to `idle_s` with its root loaded; guests work on
    `window_pages` at a time. A nested guest has `shadow_pages` page tables of its own, which KVM
    shadows; from 11 on kvm_mmu_zap_all_fast() may drop mmu_lock while it zaps them. Before
    `migrate_share` of its runs a vCPU is moved to a random physical CPU."""

    write_share: Share = Share(0.5)
    churn_share: Share = Share(0.5)
    unmapped_share: Share = Share(0.01)
    smm_share: Share = Share(0.05)
    nested_share: Share = Share(0.0)
    shadow_pages: Count = Count(0)
    migrate_share: Share = Share(0.0)
    fetch_share: Share = Share(0.0)
    idle_share: Share = Share(0.01)
    idle_s: Share = Share(0.03)
    window_pages: Positive = Positive(8)
    accesses_per_run: Positive = Positive(64)


@frozen
class MemslotSettings:
    """The memslot worker: what it does, and how often. Weights are relative. A slot that was
    created stays until guests have made `guest_accesses`, so that a run's figures do not depend on
    how fast the machine is."""

    enabled: Flag = Flag(True)
    pause_s: Share = Share(0.005)
    guest_accesses: Count = Count(0)
    delete_weight: Rate = Rate(6.0)
    move_weight: Rate = Rate(2.0)
    flags_weight: Rate = Rate(1.0)
    log_weight: Rate = Rate(0.0)


@frozen
class ConsumerSettings:
    """The consumer: devices that do DMA through the exported root. `reexports_per_s` closes and
    reopens the TDP FD; a device posts `group` accesses at a time, whose IO page faults are answered
    together, `bursts` times a step. With `ats` a device has a TLB of its own in front of the
    IOMMU's; before `prefetch_share` of its bursts it requests a page and does not wait for the
    response. With `engines` each device has a DMA engine of its own, too, which accesses memory at
    any time, also while its driver detaches it, and waits for no answer.
    """

    devices: Count = Count(1)
    write_share: Share = Share(0.5)
    churn_share: Share = Share(0.7)
    window_pages: Positive = Positive(8)
    reexports_per_s: Rate = Rate(2.0)
    group: Positive = Positive(1)
    bursts: Positive = Positive(16)
    ats: Flag = Flag(False)
    prefetch_share: Share = Share(0.0)
    engines: Flag = Flag(False)


@frozen
class HostSettings:
    """The host's memory management, which takes pages away through MMU notifiers: it discards,
    migrates, splits, collapses and ages ranges of up to `range_pages`, by relative weights,
    `threads` of it at once."""

    threads: Count = Count(0)
    pause_s: Share = Share(0.005)
    range_pages: Positive = Positive(16)
    discard_weight: Rate = Rate(3.0)
    migrate_weight: Rate = Rate(3.0)
    split_weight: Rate = Rate(2.0)
    collapse_weight: Rate = Rate(2.0)
    age_weight: Rate = Rate(2.0)


@frozen
class DirtyLogSettings:
    """The dirty logger: switches logging of fixed slot `slot` on, reads the log `reads` times,
    switches it off."""

    enabled: Flag = Flag(False)
    slot: Count = Count(0)
    pause_s: Share = Share(0.005)
    reads: Positive = Positive(8)


@frozen
class NxSettings:
    """The administrator of the NX huge page mitigation, and the recovery worker. `attributes_share`
    of the administrator's steps change a memory attribute of a range instead
    (kvm_zap_gfn_range)."""

    enabled: Flag = Flag(False)
    toggles: Flag = Flag(True)
    recovers: Flag = Flag(True)
    pause_s: Share = Share(0.02)
    attributes_share: Share = Share(0.2)


@frozen
class ExporterSettings:
    """Other threads of the VMM that create TDP FDs whenever they can, hold them for up to `hold_s`,
    and close them; with `closes_others` they close whatever fd they find instead."""

    threads: Count = Count(0)
    closes_others: Flag = Flag(False)
    hold_s: Share = Share(0.005)


@frozen
class ExitSettings:
    """The end: the process dies with its devices still at work, instead of closing them first; with
    `vm_first` the VM fd is closed before the TDP FDs are."""

    enabled: Flag = Flag(False)
    vm_first: Flag = Flag(False)


@frozen
class ActorSettings:
    """Who takes part."""

    vcpu: VcpuSettings = field(factory=VcpuSettings)
    memslot_worker: MemslotSettings = field(factory=MemslotSettings)
    consumer: ConsumerSettings = field(factory=ConsumerSettings)
    host: HostSettings = field(factory=HostSettings)
    dirty_log: DirtyLogSettings = field(factory=DirtyLogSettings)
    nx: NxSettings = field(factory=NxSettings)
    exporter: ExporterSettings = field(factory=ExporterSettings)
    exit: ExitSettings = field(factory=ExitSettings)


@frozen
class Disturbances:
    """What makes interleavings that would otherwise be rare: delays at preemption points (reference
    2.16), a short interpreter switch interval, stutter (everybody stops, the invariants are
    checked, everybody goes on), and steps that fail for no reason: attaching a device, finding an
    fd number, preparing a memslot, an importer's switch to a new root. `delay_at` gives some points
    a share of their own, whether they are among `points` or not."""

    delay_share: Share = Share(0.02)
    delay_s: Share = Share(0.001)
    points: tuple[PreemptionPoint, ...] = (
        "P1",
        "P2",
        "P4",
        "P8",
        "P8b",
        "P9",
        "P10",
        "P13",
        "P14",
        "P15",
        "P16",
        "P20",
    )
    delay_at: dict[PreemptionPoint, Share] = field(factory=dict)
    switch_interval_s: Seconds = Seconds(0.0005)
    stutter_every_s: Seconds = Seconds(2.0)
    fail_attach: Share = Share(0.0)
    fail_fd: Share = Share(0.0)
    fail_prepare: Share = Share(0.0)
    fail_switch: Share = Share(0.0)

    def delay_shares(self) -> dict[str, float]:
        """At each point where there are delays, how often."""
        return {
            name: share
            for name, share in {
                **dict.fromkeys(self.points, self.delay_share),
                **self.delay_at,
            }.items()
            if share
        }


@frozen
class Limits:
    """Bounds whose breach is a finding (O10). Generous: they tell a hang from a slow machine.
    `walk_steps` bounds how many SPTEs a zap visits that cannot yield (R13); 0 is no bound."""

    stall_s: Seconds = Seconds(10.0)
    rcu_stall_s: Seconds = Seconds(10.0)
    write_hold_s: Seconds = Seconds(10.0)
    walk_steps: Count = Count(0)


@frozen
class Oracles:
    """Who judges: every rule (`stress list oracles`) but those in `off`, whose reports are dropped.
    A run with a rule off proves nothing about it; a selftest with one off shows what only that rule
    sees."""

    off: tuple[RuleName, ...] = ()


@frozen
class Budget:
    """How much to run: for `duration_s`. With `until_met`, a run whose obligations are not met by
    then, or that has not found what it expects, goes on until it has, for at most `cap_s` in all.
    `settle_s` is how long a run goes on after its first finding, to collect what follows from
    it."""

    duration_s: Seconds = Seconds(10.0)
    until_met: Flag = Flag(False)
    cap_s: Seconds = Seconds(600.0)
    settle_s: Seconds = Seconds(0.5)
    max_findings: Positive = Positive(20)

    @property
    def longest_s(self) -> float:
        """The longest that a run may take, in seconds."""
        return self.cap_s if self.until_met else self.duration_s

    @property
    def span(self) -> str:
        """The run time in words, such as "10" or "10 to 600" seconds."""
        return f"{self.duration_s:g}{f' to {self.cap_s:g}' if self.until_met else ''}"


@frozen
class Explore:
    """How the controlled engine runs the scenario: every actor makes `rounds` steps a schedule; a
    schedule of more than `max_steps` is not finished. `lock_granularity` says whether an operation
    on mmu_lock is one step, or the steps inside `readerwriterlock` are explored, too. `memory` is
    the memory order: `sc`, or `tso` for x86's, with a store buffer for every task. `scenario` is
    another file whose machine, memory, actors and script are explored instead of this one's, with
    this one's profile, kernel, policy, variants and expectations. `strategy` is how schedules are
    chosen where the command line does not say. `states` is how many states dfs, delay and
    preemption remember, to give up schedules that come to one again; with 0 every schedule is run
    to its end."""

    scenario: FileName | None = None
    strategy: Text = Text("portfolio")

    rounds: Positive = Positive(2)
    max_steps: Positive = Positive(20_000)
    lock_granularity: Literal["atomic", "library"] = "atomic"
    memory: Literal["sc", "tso"] = "sc"
    states: Count = Count(1_000_000)


@frozen
class Observe:
    """What is kept of a run beside its figures. `timeline`: the newest slices of every thread, for
    a timeline viewer."""

    timeline: Flag = Flag(True)


@frozen
class Expect:
    """What a scenario that must fail expects: rules or codes of findings, of which at least one has
    to fire. With `at_the_end` that happens only when the run has been stopped, so a run with
    `budget.until_met` does not wait for it."""

    rules: tuple[RuleName, ...] = ()
    codes: tuple[Text, ...] = ()
    at_the_end: Flag = Flag(False)

    @property
    def names(self) -> tuple[str, ...]:
        """The codes if there are any, else the rules."""
        return tuple(self.codes or self.rules)


@frozen
class Scenario:
    """A whole scenario. `obligations` are counts that the run must reach, or it proves nothing
    (INCONCLUSIVE).

    `script` says what each actor does, by its name, one operation after another; `setup` is done
    before the start. Without a script the actors draw what they do; with one, an actor that it does
    not name does nothing. On real threads a script is done again and again until the run ends,
    under control once.
    """

    title: Text = Text("")
    engine: Literal["threads"] = "threads"
    seed: Seed | None = None
    vm: VmSettings = field(factory=VmSettings)
    memory: Memory = field(factory=Memory)
    actors: ActorSettings = field(factory=ActorSettings)
    disturbances: Disturbances = field(factory=Disturbances)
    limits: Limits = field(factory=Limits)
    oracles: Oracles = field(factory=Oracles)
    budget: Budget = field(factory=Budget)
    explore: Explore = field(factory=Explore)
    observe: Observe = field(factory=Observe)
    script: dict[str, Lines] = field(factory=dict)
    obligations: dict[str, Amount] = field(factory=dict)
    expect: Expect = field(factory=Expect)
