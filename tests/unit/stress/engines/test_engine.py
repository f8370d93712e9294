"""The thread engine and its watchdog: actors start and stop together, and a hang becomes a finding
that says who waits."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from attrs import evolve

from mmu.machine.vcpu import Vcpu
from mmu.machine.vm import VirtualMachine
from mmu.probe import Instrument, override
from mmu.report import Report, Reporter
from mmu.runtime import Runtime
from mmu.sync import Mutex
from mmu.task import Task
from mmu.tdp.fault import RetPf
from mmu.variant import Variant
from stress.actors.base import Actor, Stage
from stress.actors.vcpu import VcpuActor
from stress.engines.session import Session
from stress.engines.threads import ThreadEngine
from stress.engines.watchdog import Movement, StallClock, Watchdog
from stress.observe.resources import Resources
from stress.scenario.types import Budget, Disturbances, Limits, Positive, Seconds
from tests.engine import Watchful, counted, run_scenario, small
from tests.patience import PATIENCE

WATCHED = small(
    limits=Limits(stall_s=Seconds(0.5)),
    budget=Budget(settle_s=Seconds(PATIENCE), max_findings=Positive(1000)),
)
"""A watchdog that barks soon, and a run that goes on whatever it says."""
COUNTED = (
    "vcpu_faults",
    "memslot_deletes",
    "exported_zaps_nonempty",
    "device_accesses",
    "io_faults",
    "rcu_grace_periods",
)


def test_a_small_run_is_clean_and_counts_what_happens() -> None:
    session, outcome = run_scenario(small(), until=counted(*COUNTED))
    assert session.findings() == []
    assert session.errors() == ()
    assert outcome.completed
    assert outcome.clean_end
    totals = session.totals()
    assert [counter for counter in COUNTED if not totals[counter]] == []


def test_stutter_checks_the_invariants_during_the_run() -> None:
    scenario = small(disturbances=Disturbances(stutter_every_s=Seconds(0.1)))
    session, outcome = run_scenario(scenario, until=counted("quiescent_checks", at_least=2))
    assert session.totals()["quiescent_checks"] >= 3, "the last one is at the end"
    assert outcome.completed


@pytest.mark.parametrize("preference", ["fair", "reader", "writer"])
def test_every_kind_of_mmu_lock_runs_clean(preference: str) -> None:
    scenario = small()
    session, outcome = run_scenario(
        evolve(scenario, vm=evolve(scenario.vm, mmu_lock=preference)), until=counted(*COUNTED)
    )
    assert [finding.report.headline for finding in session.findings()] == []
    assert outcome.clean_end


def test_without_ad_bits_faults_try_the_lockless_path_first() -> None:
    scenario = small()
    session, outcome = run_scenario(
        evolve(scenario, vm=evolve(scenario.vm, ad_bits=False)), until=counted(*COUNTED)
    )
    assert [finding.report.headline for finding in session.findings()] == []
    assert outcome.clean_end


def test_an_actor_that_hangs_is_found_with_what_it_waits_for() -> None:
    release = threading.Event()
    session = Session(WATCHED, 1, Runtime())

    class Hung(Actor):
        def step(self) -> None:
            self.stage.vm.kvm.runtime.wait_until("Godot", release.is_set)

    set_up = session.set_up

    def set_up_with_hung_actor() -> None:
        set_up()
        session.actors.append(Hung(session.actors[0].stage, "estragon0"))

    def is_found(session: Session) -> bool:
        return any("estragon0" in finding.report.headline for finding in session.findings())

    session.set_up = set_up_with_hung_actor  # type: ignore[method-assign]
    engine = Watchful(session, is_found, lambda _: release.set() if is_found(session) else None)
    engine.run()
    (report,) = (
        finding.report for finding in session.findings() if "estragon0" in finding.report.headline
    )
    assert (report.rule, report.code) == ("O10", "hung-task")
    assert "waiting for Godot" in report.headline
    assert "Hung.step" in report.render()


def test_the_watchdog_ignores_time_in_which_it_was_not_served() -> None:
    class Still:
        done, parks, name = SimpleNamespace(value=False), True, "still0"

        def moved(self) -> int:
            return 1

    watchdog = Watchdog(VirtualMachine(reporter=Reporter(sink=None)).kvm, stall_s=0.9)
    actor: list[Actor] = [Still()]  # type: ignore[list-item]
    assert watchdog.tick(actor) == []
    watchdog._last_tick -= 3600
    assert watchdog.tick(actor) == []
    watchdog._last_tick -= 3600
    assert watchdog.tick(actor) != []


def test_an_observer_that_raises_is_a_harness_error() -> None:
    session = Session(small(), 1, Runtime())

    class Broken(Instrument):
        @override
        def zap_all_fast(self, generation: int) -> None:
            raise ZeroDivisionError("a broken observer")

    session.probe.attach(Broken())
    Watchful(session, lambda session: bool(session.errors())).run()
    session.vm.kvm.rcu.shutdown()
    assert any(
        "a broken observer" in error and "zap_all_fast" in error for error in session.errors()
    )


def test_a_task_that_raises_is_a_harness_error() -> None:
    session = Session(small(), 1, Runtime())
    set_up = session.set_up

    class Dying(Actor):
        def step(self) -> None:
            raise ZeroDivisionError("an actor died")

    def set_up_with_dying_actor() -> None:
        set_up()
        session.actors.append(Dying(session.actors[0].stage, "dying0"))

    session.set_up = set_up_with_dying_actor  # type: ignore[method-assign]
    Watchful(session, lambda session: bool(session.errors())).run()
    session.vm.kvm.rcu.shutdown()
    assert any("an actor died" in error for error in session.errors())


def test_a_failing_enrichment_does_not_lose_the_finding() -> None:
    session = Session(small(), 1, Runtime())

    def explode(report: Report) -> Report:
        raise RuntimeError("no decoration today")

    session.reporter.enrich = explode
    session.vm.kvm.warn("O5", "test", "BUG: a test", "a rule", "a source")
    assert [finding.report.code for finding in session.findings()] == ["test"]
    assert "no decoration today" in session.findings()[0].report.render()
    session.vm.kvm.rcu.shutdown()


def test_a_deadlock_is_shown_with_who_holds_what() -> None:
    session = Session(WATCHED, 1, Runtime())
    meet = threading.Barrier(2, timeout=PATIENCE)
    first, second = (
        session.vm.kvm.sync.mutex("first_lock"),
        session.vm.kvm.sync.mutex("second_lock"),
    )

    class Crossing(Actor):
        def __init__(self, stage: Stage, name: str, outer: Mutex, inner: Mutex) -> None:
            super().__init__(stage, name)
            self.outer, self.inner = outer, inner

        def step(self) -> None:
            with self.outer:
                meet.wait()
                self.inner.acquire()

    set_up = session.set_up

    def set_up_with_crossing_actors() -> None:
        set_up()
        stage = session.actors[0].stage
        session.actors += [
            Crossing(stage, "left0", first, second),
            Crossing(stage, "right0", second, first),
        ]

    def waits(session: Session) -> list[str]:
        """What the crossing actors wait for, of every hang that was found."""
        return [
            line
            for finding in session.findings()
            if (finding.report.rule, finding.report.code) == ("O10", "hung-task")
            for line in finding.report.sections[0].lines
            if "-> second_lock, held by right0" in line and "which waits for first_lock" in line
        ]

    session.set_up = set_up_with_crossing_actors  # type: ignore[method-assign]
    Watchful(session, lambda session: bool(waits(session))).run()
    first._raw.release()  # so that the two come to their end
    session.vm.kvm.rcu.shutdown()
    assert waits(session)
    assert ("O5", "circular-dependency") in {
        (finding.report.rule, finding.report.code) for finding in session.findings()
    }


class Clocks:
    """Two clocks that say what they are told, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0

    def now(self) -> int:
        return self.seconds * 10**9

    served = now


def test_what_gets_on_is_not_stuck_however_long_it_takes() -> None:
    clocks, done = Clocks(), [0]
    clock = StallClock(clocks, 30.0, lambda: done[0])
    for _ in range(10):
        clocks.seconds += 20
        done[0] += 1
        assert not clock.has_stalled()
    clocks.seconds += 29
    assert not clock.has_stalled()
    clocks.seconds += 1
    assert clock.has_stalled()


def test_setting_up_can_be_seen_to_get_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand vCPUs take minutes; each of them counts."""
    seen: list[int] = []
    made = VcpuActor.__init__

    def counting(self: VcpuActor, stage: Stage, number: int) -> None:
        seen.append(len(stage.cast))
        made(self, stage, number)

    monkeypatch.setattr(VcpuActor, "__init__", counting)
    session, _ = run_scenario(small(vm=evolve(small().vm, vcpus=Positive(5))), until=counted())
    assert seen == [0, 1, 2, 3, 4]
    assert session.findings() == []


def test_what_follows_from_a_dead_task_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found before is."""
    session = Session(small(), 1, Runtime())
    report = Report("O1", "stale-tlb", "one", "", "", "", "")
    session.reporter.emit(report)
    session.task_failed(Task("vcpu0"), ValueError("oops"))
    session.reporter.emit(evolve(report, code="other"))
    assert [each.report.code for each in session.findings()] == ["stale-tlb"]
    (error,) = session.errors()
    assert "ValueError('oops')" in error
    session.vm.kvm.rcu.shutdown()


class Pacing:
    """Of an actor, what is asked for its movement."""

    def __init__(self, parks: bool = True) -> None:
        self.name, self.parks = "pacing0", parks
        self.done = Runtime().cell("done", False)
        self.paces = 0

    def moved(self) -> int:
        return self.paces


def test_all_have_moved_once_each_has_or_has_ended_or_stands_still_for_nobody() -> None:
    first, second, server = Pacing(), Pacing(), Pacing(parks=False)
    movement = Movement([first, second, server])
    assert not movement.by_all()
    first.paces += 1
    assert not movement.by_all()
    first.paces -= 1
    second.done.value = True
    assert movement.by_all(), "the first has moved, wherever it is now"


def test_a_vcpu_that_hangs_is_found_although_a_standstill_would_interrupt_it() -> None:
    """A fault that is retried inside one SRCU section looks at immediate_exit, as KVM_RUN does."""

    class Endless(Vcpu):
        def page_fault(
            self, gfn: int, write: bool, present: bool = False, fetch: bool = False
        ) -> RetPf:
            while not self.immediate_exit.value:
                self.kvm.runtime.relax()
            return RetPf.RETRY

    scenario = small(budget=Budget(duration_s=Seconds(0.2)), limits=Limits(stall_s=Seconds(0.5)))
    stuttering = evolve(scenario.disturbances, stutter_every_s=Seconds(0.05))
    session = Session(
        evolve(scenario, disturbances=stuttering),
        1,
        Runtime(),
        (Variant("endless", "retries for ever", (Endless,)),),
    )
    ThreadEngine(session, Resources(), lambda _: None).run()
    assert session.totals()["stutters"] == 0
    assert {finding.report.code for finding in session.findings()} == {"hung-task"}


@pytest.mark.parametrize(("part", "code"), [("vm", "leak-vm"), ("mm", "leak-mm")])
def test_what_is_left_when_everything_is_closed_is_a_finding(part: str, code: str) -> None:
    session = Session(small(), 1, Runtime())
    session.set_up()
    for actor in session.actors:
        actor.end()
    kvm = session.vm.kvm
    (kvm.users_count if part == "vm" else kvm.mm_users).inc_not_zero()
    session.take_down()
    assert [finding.report.code for finding in session.findings()] == [code]
    kvm.rcu.shutdown()
