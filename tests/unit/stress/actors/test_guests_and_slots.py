"""vCPUs and the memslot worker, operation by operation."""

from __future__ import annotations

from typing import Any

import pytest

from mmu.machine.vcpu import FETCH
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES
from stress.engines.session import Session
from stress.scenario.operations import Op
from stress.scenario.types import Count, MemslotSettings, Positive, Rate, Share, VcpuSettings
from tests.conftest import eventually, finish
from tests.unit.stress.actors.conftest import MakeStage, the


def guest(staged: MakeStage, **config: Any) -> tuple[Session, Any]:
    session = staged(vcpu=VcpuSettings(**config))
    return session, the(session, "vcpu0")


def stats(actor: Any) -> tuple[int, int, int]:
    stat = actor.vcpu.stat
    return stat.accesses, stat.pf_taken, stat.mmio_exits


# vCPUs.


@pytest.mark.parametrize("name", ["read", "write", "fetch"])
def test_an_access_is_one_kvm_run(staged: MakeStage, name: str) -> None:
    _, actor = guest(staged)
    actor.perform(Op(name, (3,)))
    actor.perform(Op(name, (3,)))
    assert stats(actor) == (2, 1, 0)
    assert actor.vcpu.stat.entries == 3, "once before the fault, once after it, once more"


def test_an_mmio_exit_ends_a_run(staged: MakeStage) -> None:
    session, actor = guest(staged)
    beyond = session.vm.kvm.geometry.max_gfn
    actor.perform(Op("run", (3 << 1, beyond << 1, 4 << 1)))
    assert stats(actor) == (1, 2, 1)
    assert actor._made == 2
    actor.perform(Op("run", (3 << 1 | 1, 4 << 1 | FETCH)))
    assert stats(actor)[0] == 3


class Endless:
    """A guest that never stops by itself."""

    def next_access(self) -> int:
        return 3 << 1


def test_one_long_kvm_run_is_no_hang(staged: MakeStage) -> None:
    """Within it the actor moves, which is what the watchdog looks at."""
    session, actor = guest(staged)
    task = session.runtime.spawn("vcpu0", lambda: actor.vcpu.run(Endless(), 1 << 60))
    for _ in range(3):
        before = actor.moved()
        eventually(lambda seen=before: actor.moved() != seen, "the guest to get on")
    assert actor.progress == 0
    session.interrupt_vcpus(True)
    finish(session.runtime, task)


def test_modes_change_once(staged: MakeStage) -> None:
    _, actor = guest(staged)
    actor.perform(Op("write", (3,)))
    for name, on, expected in [
        ("nested", 0, (0, False)),
        ("nested", 1, (0, True)),
        ("nested", 1, (0, True)),
        ("nested", 0, (0, False)),
        ("smm", 0, (0, False)),
        ("smm", 1, (1, False)),
        ("nested", 1, (1, False)),
        ("smm", 0, (0, False)),
    ]:
        actor.perform(Op(name, (on,)))
        assert (actor.vcpu.role.as_id, actor.vcpu.role.guest_mode) == expected
    assert actor.vcpu.stat.prev_root_hits == 1


def test_a_nested_guest_s_tables_are_shadowed_once(staged: MakeStage) -> None:
    session, actor = guest(staged)
    actor.perform(Op("shadow", (3,)))
    actor.perform(Op("shadow", (5,)))
    actor.perform(Op("shadow", (4,)))
    assert session.vm.kvm.shadow_pages.count() == 5
    assert actor.totals()["vcpu_shadow_pages"] == 5


def test_a_nested_guest_brings_its_tables_when_it_is_entered(staged: MakeStage) -> None:
    session, actor = guest(
        staged,
        smm_share=Share(0),
        nested_share=Share(0.3),
        idle_share=Share(0),
        shadow_pages=Count(12),
    )
    session.stage.record_ops = True  # type: ignore[union-attr]
    for _ in range(60):
        actor.step()
    performed = [str(op) for op in actor.performed if op.name != "run"]
    assert set(performed) == {"nested on", "nested off", "shadow 12"}
    entered = [number for number, op in enumerate(performed) if op == "nested on"]
    assert [performed[number + 1] for number in entered] == ["shadow 12"] * len(entered)


def test_a_random_step_is_a_list_of_operations(staged: MakeStage) -> None:
    session, actor = guest(
        staged,
        smm_share=Share(0.3),
        nested_share=Share(0.3),
        idle_share=Share(0.5),
        idle_s=Share(0),
    )
    session.stage.record_ops = True  # type: ignore[union-attr]
    for _ in range(60):
        actor.step()
    assert {op.name for op in actor.performed} == {"run", "smm", "nested", "idle"}
    assert sum(op.name == "run" for op in actor.performed) == 60
    assert all(len(op.args) == 64 for op in actor.performed if op.name == "run")


def test_a_step_of_one_access_says_which(staged: MakeStage) -> None:
    session, actor = guest(
        staged,
        accesses_per_run=Positive(1),
        fetch_share=Share(0.3),
        idle_share=Share(0),
        smm_share=Share(0),
    )
    session.stage.record_ops = True  # type: ignore[union-attr]
    for _ in range(60):
        actor.step()
    assert {op.name for op in actor.performed} == {"read", "write", "fetch"}


def test_accesses_that_an_mmio_exit_cut_off_come_next(staged: MakeStage) -> None:
    _, actor = guest(
        staged,
        unmapped_share=Share(1),
        smm_share=Share(0),
        idle_share=Share(0),
        accesses_per_run=Positive(4),
    )
    actor._dice.random = lambda: 0.9
    ahead = actor._programs[0].ahead(3)
    actor.step()
    assert actor._programs[0].ahead(2) == ahead[1:]


def test_nothing_is_recorded_unless_asked_for(staged: MakeStage) -> None:
    _, actor = guest(staged)
    actor.step()
    assert actor.performed == []


# The memslot worker.


def worker(staged: MakeStage, **config: Any) -> tuple[Session, Any, Any]:
    session = staged(memslot_worker=MemslotSettings(pause_s=Share(0), **config))
    return session, the(session, "memslot-worker"), session.stage.layout.churn[0]  # type: ignore[union-attr]


def counts(session: Session) -> tuple[int, ...]:
    totals = session.totals()
    return tuple(totals[f"memslot_{name}"] for name in ("creates", "deletes", "moves", "flags"))


def test_a_slot_is_created_changed_moved_and_deleted(staged: MakeStage) -> None:
    session, actor, churn = worker(staged)
    before = counts(session)[0]
    actor.perform(Op("create", (0,)))
    region = churn.backing.value[0]
    actor.perform(Op("flags", (0,)))
    assert churn.flags.value == KVM_MEM_LOG_DIRTY_PAGES
    actor.perform(Op("move", (0,)))
    assert churn.place() == churn.homes[1]
    actor.perform(Op("delete", (0,)))
    assert (churn.backing.value, region.dead.value) == (None, True)
    assert counts(session) == (before + 1, 1, 1, 1)


@pytest.mark.parametrize("name", ["delete", "move", "flags"])
def test_what_is_absent_is_left_alone(staged: MakeStage, name: str) -> None:
    session, actor, _ = worker(staged)
    before = counts(session)
    actor.perform(Op(name, (0,)))
    assert counts(session) == before


def test_what_is_there_is_not_created_again(staged: MakeStage) -> None:
    session, actor, churn = worker(staged)
    actor.perform(Op("create", (0,)))
    before, region = counts(session), churn.backing.value
    actor.perform(Op("create", (0,)))
    assert (counts(session), churn.backing.value) == (before, region)


@pytest.mark.parametrize("name", ["create", "delete", "move", "flags"])
def test_a_refusal_leaves_the_slot_as_it_was(staged: MakeStage, name: str) -> None:
    session, actor, churn = worker(staged)
    if name != "create":
        actor.perform(Op("create", (0,)))
    before = churn.backing.value, churn.flags.value, churn.home.value
    session.vm.kvm.fail_function = lambda step: step == "prepare_memory_region"
    actor.perform(Op(name, (0,)))
    session.vm.kvm.fail_function = None
    assert (churn.backing.value, churn.flags.value, churn.home.value) == before


@pytest.mark.parametrize("chosen", ["delete", "move", "flags"])
def test_the_worker_creates_what_is_absent_and_else_goes_by_its_weights(
    staged: MakeStage, chosen: str
) -> None:
    weights = {
        f"{name}_weight": Rate(1.0 if name == chosen else 0.0)
        for name in ("delete", "move", "flags")
    }
    session, actor, _ = worker(staged, **weights)
    session.stage.record_ops = True  # type: ignore[union-attr]
    for _ in range(4):
        actor.step()
    expected = ["create", "delete"] * 2 if chosen == "delete" else ["create", *[chosen] * 3]
    assert [op.name for op in actor.performed] == expected


def test_a_vcpu_that_never_enters_smm_prepares_nothing_for_it(staged: MakeStage) -> None:
    assert len(guest(staged, smm_share=Share(0))[1]._programs) == 1
    assert len(guest(staged)[1]._programs) == 2
