"""Host, administrator, dirty logger: each step does one thing to the VM, as it should be done, and
counts it."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from mmu.machine.vcpu import FETCH
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from stress.engines.session import Session
from stress.scenario.operations import HOW, Op
from stress.scenario.types import (
    Count,
    DirtyLogSettings,
    Flag,
    HostSettings,
    Memory,
    NxSettings,
    Positive,
    Rate,
    Share,
)
from tests.conftest import finish
from tests.unit.stress.actors.conftest import HUGE, MakeStage, the

LARGE = Memory(
    host_level=2,
    fixed_pages=Positive(64),
    churn_slots=Count(0),
    smm_pages=Count(0),
    smm_churn_pages=Count(0),
)
WEIGHTS = ("discard", "migrate", "split", "collapse", "age")


class Guest:
    """Goes through a list of accesses."""

    def __init__(self, accesses: list[int]) -> None:
        self._left = iter(accesses)

    def next_access(self) -> int:
        return next(self._left)


def touch(session: Session, *gfns: int, fetch: bool = False) -> None:
    """The first vCPU writes, or executes, these frames."""
    session.vm.vcpus()[0].run(
        Guest([gfn << 1 | (FETCH if fetch else 1) for gfn in gfns]), len(gfns)
    )


def mapped(session: Session) -> int:
    return session.vm.kvm.stat.leaves()


def levels(session: Session) -> list[int]:
    region = session.stage.layout.fixed_regions[0]  # type: ignore[union-attr]
    return [region.levels[page] for page in range(0, 64, 16)]


def hosted(staged: MakeStage, memory: Memory = LARGE, **config: Any) -> tuple[Session, Any, Any]:
    session = staged(memory=memory, host=HostSettings(threads=Count(1), pause_s=Share(0), **config))
    return session, the(session, "host0"), session.stage.layout.fixed_regions[0]  # type: ignore[union-attr]


def at_rest(session: Session) -> bool:
    """No invalidation is in progress."""
    return (
        session.vm.kvm.invalidation.in_progress.value
        == session.vm.kvm.mn_active_invalidate_count.value
        == 0
    )


# The host.


def test_a_range_is_widened_to_whole_pages_of_the_host(staged: MakeStage) -> None:
    session, host, region = hosted(staged)
    assert host._whole_pages(region, 5, 6) == (5, 6), "nothing is there yet"
    touch(session, 5, 33)
    assert host._whole_pages(region, 5, 6) == (0, 16)
    assert host._whole_pages(region, 5, 20) == (0, 20), "the page at 19 is not there"
    assert host._whole_pages(region, 5, 34) == (0, 48)
    assert host._whole_pages(region, 60, 64) == (60, 64)


def test_a_range_never_leaves_the_region(staged: MakeStage) -> None:
    _, host, region = hosted(staged, memory=evolve(LARGE, offset_pages=Count(4)))
    assert host._block(region, 2, 2) == (0, 12), "the region begins in the middle of a huge page"
    assert host._block(region, 63, 2) == (60, 64)


@pytest.mark.parametrize(
    ("operation", "counter", "amount"),
    [
        ("discard", "host_pages_discarded", 16),
        ("migrate", "host_pages_migrated", 16),
        ("split", "host_splits", 16),
    ],
)
def test_what_the_host_takes_is_unmapped_first(
    staged: MakeStage, operation: str, counter: str, amount: int
) -> None:
    session, host, _ = hosted(staged)
    touch(session, 5, 20)
    assert mapped(session) == 2
    host.perform(Op(operation, (0, 5, 6)))
    assert mapped(session) == 1, "the huge leaf at 16 stays"
    assert session.totals()[counter] == amount
    assert at_rest(session)
    touch(session, 5, 20)


def choosing(host: Any, name: str, draw: float) -> None:
    """The host draws this operation, and this number."""
    host._dice.random = lambda: draw
    host._dice.choices = lambda *_: [name]


def test_half_of_the_splits_move_the_first_piece_at_once(staged: MakeStage) -> None:
    session, host, region = hosted(staged)
    touch(session, *range(0, 64, 16))
    before = list(region.ptes)
    choosing(host, "split", 0.1)
    host.step()
    assert levels(session) != [2, 2, 2, 2]
    assert session.totals()["host_pages_migrated"] == 1
    assert list(region.ptes) != before
    choosing(host, "split", 0.9)
    assert [op.name for op in host.choose()] == ["split"]


def test_a_collapse_makes_small_pages_huge_again(staged: MakeStage) -> None:
    session, host, _ = hosted(staged)
    touch(session, 5)
    host.perform(Op("split", (0, 5, 6)))
    touch(session, *range(16))
    host.perform(Op("collapse", (0, 7, 8)))
    assert levels(session) == [2, 0, 0, 0]
    assert session.totals()["host_collapses"] == 1
    assert mapped(session) == 0
    touch(session, 3)
    assert at_rest(session)


def test_memory_without_huge_pages_is_not_collapsed(staged: MakeStage) -> None:
    session, host, _ = hosted(staged, memory=evolve(LARGE, host_level=1))
    touch(session, *range(16))
    host.perform(Op("collapse", (0, 7, 8)))
    assert session.totals()["host_collapses"] == 0
    assert mapped(session) == 16, "nothing was even announced"


def test_ageing_counts_what_was_young(staged: MakeStage) -> None:
    session, host, _ = hosted(staged)
    touch(session, 5)
    for how in (0, 0):
        host.perform(Op("age", (0, 5, 6, how)))
    totals = session.totals()
    assert (totals["pages_aged"], totals["pages_found_young"]) == (2, 1)
    assert totals["flushes_young"] == 1


def test_a_look_that_only_tests_takes_nothing_away(staged: MakeStage) -> None:
    session, host, _ = hosted(staged)
    touch(session, 5)
    for _ in range(2):
        host.perform(Op("age", (0, 5, 6, HOW.words.index("test"))))
    assert session.totals()["pages_found_young"] == 2
    host.perform(Op("age", (0, 5, 6, HOW.words.index("clear"))))
    host.perform(Op("age", (0, 5, 6, HOW.words.index("test"))))
    totals = session.totals()
    assert (totals["pages_found_young"], totals["flushes_young"]) == (3, 0)


@pytest.mark.parametrize(
    "args", [(1, 0, 4), (0, 64, 70), (0, 5, 5)], ids=["absent", "beyond", "empty"]
)
@pytest.mark.parametrize("name", WEIGHTS)
def test_pages_that_are_not_there_are_left_alone(
    staged: MakeStage, name: str, args: tuple[int, ...]
) -> None:
    session, host, _ = hosted(
        staged, memory=evolve(LARGE, churn_slots=Count(1), churn_pages=Positive(16))
    )
    touch(session, 5)
    host.perform(Op(name, (*args, 0) if name == "age" else args))
    assert session.totals()["host_ranges"] == session.totals()["pages_aged"] == 0
    assert mapped(session) == 1


def test_a_region_is_named_by_its_number_although_others_are_absent(staged: MakeStage) -> None:
    memory = evolve(LARGE, host_level=1, churn_slots=Count(2), churn_pages=Positive(16))
    session, host, _ = hosted(staged, memory=memory)
    churn = session.stage.layout.churn[1]  # type: ignore[union-attr]
    the(session, "memslot-worker").perform(Op("create", (1,)))
    touch(session, churn.place().gfn + 3)
    host.perform(Op("discard", (2, 0, 16)))
    assert session.totals()["host_pages_discarded"] == 1


@pytest.mark.parametrize("chosen", WEIGHTS)
def test_the_weights_choose_what_is_done(staged: MakeStage, chosen: str) -> None:
    weights = {f"{name}_weight": Rate(1.0 if name == chosen else 0.0) for name in WEIGHTS}
    session, host, _ = hosted(staged, **weights)
    session.stage.record_ops = True  # type: ignore[union-attr]
    for _ in range(10):
        host.step()
    moved_at_once = {"migrate"} if chosen == "split" else set()
    assert {op.name for op in host.performed} - moved_at_once == {chosen}


# The dirty logger.


def logger(staged: MakeStage, vm: Any = HUGE, **config: Any) -> tuple[Session, Any]:
    session = staged(
        vm=vm, dirty_log=DirtyLogSettings(enabled=Flag(True), pause_s=Share(0), **config)
    )
    return session, the(session, "dirty-logger")


def is_logging(session: Session) -> bool:
    slot = session.vm.memslots.peek(0).by_id(0)
    assert slot is not None
    return bool(slot.flags & KVM_MEM_LOG_DIRTY_PAGES)


def test_logging_goes_on_is_read_and_goes_off(staged: MakeStage) -> None:
    session, actor = logger(staged, reads=Positive(3))
    states = []
    for _ in range(12):
        actor.step()
        states.append(is_logging(session))
    assert states[0]
    assert states.count(False) == 12 // (states.index(False) + 1)
    assert session.totals()["dirty_log_reads"] > 0


@pytest.mark.parametrize("reads", [1, 3])
def test_the_log_is_read_as_often_as_the_scenario_says(staged: MakeStage, reads: int) -> None:
    session, actor = logger(staged, reads=Positive(reads))
    actor.step()
    while is_logging(session):
        actor.step()
    assert session.totals()["dirty_log_reads"] == reads


def test_what_was_written_is_in_the_log_and_counted(staged: MakeStage) -> None:
    session, actor = logger(staged)
    actor.step()
    touch(session, 3, 4)
    actor.step()
    assert session.totals()["dirty_pages_logged"] == 2


def test_a_log_that_is_cleared_by_hand_is_cleared(staged: MakeStage) -> None:
    session, actor = logger(staged, vm=evolve(HUGE, manual_protect=Flag(True)))
    actor.step()
    touch(session, 3, 4)
    actor.step()
    actor.step()
    totals = session.totals()
    assert (totals["dirty_log_reads"], totals["dirty_pages_logged"]) == (2, 2)


def test_a_refusal_is_counted_and_tried_again(staged: MakeStage) -> None:
    session, actor = logger(staged)
    session.vm.kvm.fail_function = lambda step: step == "prepare_memory_region"
    actor.step()
    assert not is_logging(session)
    assert session.totals()["memslots_refused"] == 1
    session.vm.kvm.fail_function = None
    actor.step()
    assert is_logging(session)


def test_logging_that_is_on_is_not_switched_on_again_nor_read_when_off(staged: MakeStage) -> None:
    session, actor = logger(staged)
    for name in (
        "read-log",
        "log-off",
        "log-on",
        "log-on",
        "read-log",
        "log-off",
        "log-off",
        "read-log",
    ):
        actor.perform(Op(name))
    totals = session.totals()
    assert (totals["memslot_flags"], totals["dirty_log_reads"]) == (2, 1)


# The administrator.


def admin(staged: MakeStage, share: float) -> tuple[Session, Any]:
    nx = NxSettings(enabled=Flag(True), pause_s=Share(0), attributes_share=Share(share))
    session = staged(vm=evolve(HUGE, nx_recovery_ratio=Positive(1)), memory=LARGE, nx=nx)
    return session, the(session, "nx-admin")


def test_the_administrator_switches_the_knob_to_and_fro(staged: MakeStage) -> None:
    session, actor = admin(staged, 0.0)
    seen = []
    for _ in range(4):
        actor.step()
        seen.append(session.vm.kvm.nx_huge_pages.value)
    assert seen == [True, False, True, False]
    totals = session.totals()
    assert (totals["nx_toggles"], totals["attribute_changes"]) == (4, 0)


def test_or_changes_attributes(staged: MakeStage) -> None:
    session, actor = admin(staged, 1.0)
    touch(session, *range(0, 64, 16))
    for _ in range(4):
        actor.step()
    totals = session.totals()
    assert (totals["nx_toggles"], totals["attribute_changes"]) == (0, 4)
    assert mapped(session) < 4


def test_an_attribute_change_takes_the_range_that_it_is_given(staged: MakeStage) -> None:
    session, actor = admin(staged, 0.0)
    touch(session, *range(0, 64, 16))
    actor.perform(Op("attributes", (16, 48)))
    assert mapped(session) == 2
    actor.perform(Op("toggle"))
    assert session.vm.kvm.nx_huge_pages.value


def test_the_worker_gives_huge_pages_back(staged: MakeStage) -> None:
    session, actor = admin(staged, 0.0)
    actor.step()
    touch(session, 3, 20, fetch=True)
    assert session.vm.kvm.stat.nx_lpage_splits.value == 2
    the(session, "nx-recovery").step()
    assert session.vm.kvm.stat.nx_lpage_splits.value == 0
    assert session.totals()["nx_pages_recovered"] == 2


# Userfaults.


def test_a_page_that_somebody_waits_for_is_brought_in(staged: MakeStage) -> None:
    memory = Memory(
        userfaults=Flag(True),
        fixed_pages=Positive(16),
        churn_slots=Count(1),
        churn_pages=Positive(16),
        smm_churn_pages=Count(0),
    )
    session = staged(memory=memory)
    worker, handler = the(session, "memslot-worker"), the(session, "userfaultfd")
    worker.step()
    churn = session.stage.layout.churn[0]  # type: ignore[union-attr]
    task = session.runtime.spawn("toucher", lambda: touch(session, churn.place().gfn + 2))
    while session.totals()["userfaults"] == 0:
        handler.step()
    finish(session.runtime, task)
    assert churn.backing.value is not None
    region, _ = churn.backing.value
    assert region.ptes[2]
    assert sum(1 for pte in region.ptes if pte) == 1


def test_the_handler_stays_until_nobody_waits(staged: MakeStage) -> None:
    session = staged(
        memory=Memory(userfaults=Flag(True), fixed_pages=Positive(16), churn_pages=Positive(16))
    )
    handler = the(session, "userfaultfd")
    session.run_flags.stopping.value = True
    others = [actor for actor in session.actors if actor is not handler]
    for actor in others:
        assert not handler.finished(), "somebody may still wait for a page"
        actor.gone.value = True
    assert handler.finished()
    handler.step()  # nobody is there to wait for
