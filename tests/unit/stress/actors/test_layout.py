"""Where guest memory lies: slots that share a host mapping, the alias in SMM, read-only memory."""

from __future__ import annotations

import pytest

from mmu.errors import KvmError
from mmu.memory.memslots import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, Memslot
from stress.engines.session import Session
from stress.scenario.operations import Op
from stress.scenario.types import Count, Flag, Memory, MemslotSettings, Positive, Share
from tests.unit.stress.actors.conftest import MakeStage, the

SPLIT = Memory(
    fixed_pages=Positive(50),
    fixed_slots=Positive(3),
    fixed_gap=Count(5),
    readonly_pages=Count(6),
    churn_slots=Count(2),
    churn_pages=Positive(8),
    churn_shared=Flag(True),
    smm_pages=Count(8),
    smm_churn_pages=Count(4),
    smm_alias=Flag(True),
)


def slots(session: Session, as_id: int) -> list[Memslot]:
    """The slots of an address space, by gfn."""
    return list(session.vm.memslots.peek(as_id).index.value[1])


def test_the_fixed_memory_is_one_mapping_behind_many_slots(staged: MakeStage) -> None:
    session = staged(memory=SPLIT)
    parts = slots(session, 0)[:3]
    assert [(part.id, part.base_gfn, part.npages) for part in parts] == [
        (0, 0, 16),
        (1, 21, 16),
        (2, 42, 18),
    ]
    assert [part.first_page for part in parts] == [0, 16, 32]
    assert len({id(part.region) for part in parts}) == 1


def test_read_only_memory_follows_in_a_slot_of_its_own(staged: MakeStage) -> None:
    session = staged(memory=SPLIT)
    rom = slots(session, 0)[3]
    assert (rom.base_gfn, rom.npages, rom.flags) == (60, 6, KVM_MEM_READONLY)
    assert not rom.host_writable
    assert session.stage is not None
    assert rom.region is session.stage.layout.fixed_regions[1]


def test_the_smm_slot_is_an_alias_of_the_beginning(staged: MakeStage) -> None:
    session = staged(memory=SPLIT)
    (alias,) = slots(session, 1)
    first = slots(session, 0)[0]
    assert alias.region is first.region
    assert (alias.base_gfn, alias.npages, alias.hva(0)) == (0, 8, first.hva(0))


def test_by_default_every_slot_has_a_mapping_of_its_own(staged: MakeStage) -> None:
    session = staged()
    both = [slots(session, 0)[0], slots(session, 1)[0]]
    assert [(slot.id, slot.base_gfn, slot.npages, slot.flags) for slot in both] == [
        (0, 0, 64, 0),
        (1, 0, 8, 0),
    ]
    assert both[0].region is not both[1].region


def test_regions_have_numbers(staged: MakeStage) -> None:
    session = staged(memory=SPLIT)
    assert session.stage is not None
    layout = session.stage.layout
    assert SPLIT.fixed_regions() == [50, 6]
    assert SPLIT.churn_regions() == [16, 4]
    assert SPLIT.churn_count() == 3
    assert [region and region.pages for region in layout.backing()] == [50, 6, 16, None]
    the(session, "memslot-worker").perform(Op("create", (2,)))
    assert [region and region.pages for region in layout.backing()] == [50, 6, 16, 4]


def test_slots_that_share_a_mapping_come_and_go_by_themselves(staged: MakeStage) -> None:
    session = staged(memory=SPLIT)
    worker, vcpu = the(session, "memslot-worker"), the(session, "vcpu0")
    assert session.stage is not None
    (shared,) = session.stage.layout.shared
    one, other = session.stage.layout.churn[:2]
    for number in (0, 1):
        worker.perform(Op("create", (number,)))
    gfns = one.place().gfn, other.place().gfn
    vcpu.perform(Op("run", tuple(gfn << 1 | 1 for gfn in gfns)))
    assert shared.ptes[0]
    assert shared.ptes[8]
    worker.perform(Op("delete", (0,)))
    assert not shared.ptes[0], "released"
    assert shared.ptes[8], "the other's"
    assert not shared.dead.value
    vcpu.perform(Op("write", (gfns[1],)))
    worker.perform(Op("create", (0,)))
    vcpu.perform(Op("write", (gfns[0],)))
    assert vcpu.vcpu.stat.mmio_exits == 0


def test_a_part_of_a_shared_mapping_moves_alone(staged: MakeStage) -> None:
    session = staged(memory=SPLIT)
    worker, vcpu = the(session, "memslot-worker"), the(session, "vcpu0")
    assert session.stage is not None
    churn = session.stage.layout.churn[1]
    worker.perform(Op("create", (1,)))
    vcpu.perform(Op("write", (churn.place().gfn,)))
    worker.perform(Op("move", (1,)))
    vcpu.perform(Op("write", (churn.place().gfn,)))
    worker.perform(Op("delete", (1,)))
    assert session.totals()["memslot_moves"] == 1
    assert vcpu.vcpu.stat.mmio_exits == 0


def test_a_refused_slot_leaves_its_part_free(staged: MakeStage) -> None:
    session = staged(memory=SPLIT)
    worker = the(session, "memslot-worker")
    session.vm.kvm.fail_function = lambda step: step == "prepare_memory_region"
    worker.perform(Op("create", (0,)))
    session.vm.kvm.fail_function = None
    assert session.stage is not None
    assert session.stage.layout.shared[0].homes.value == ()
    worker.perform(Op("create", (0,)))
    assert len(session.stage.layout.shared[0].homes.value) == 1


def test_the_log_of_a_slot_moves_along(staged: MakeStage) -> None:
    session = staged(memory=SPLIT)
    worker, vcpu = the(session, "memslot-worker"), the(session, "vcpu0")
    assert session.stage is not None
    churn = session.stage.layout.churn[0]
    worker.perform(Op("create", (0,)))
    worker.perform(Op("get-log", (0,)))
    assert session.totals()["dirty_log_reads"] == 0, "it does not log"
    worker.perform(Op("flags", (0,)))
    assert churn.flags.value == KVM_MEM_LOG_DIRTY_PAGES
    vcpu.perform(Op("write", (churn.place().gfn + 3,)))
    worker.perform(Op("move", (0,)))
    worker.perform(Op("get-log", (0,)))
    assert session.totals()["dirty_pages_logged"] == 1
    worker.perform(Op("delete", (0,)))
    worker.perform(Op("get-log", (0,)))
    assert session.totals()["dirty_log_reads"] == 1, "it is not there"


def test_a_log_is_read_by_its_weight(staged: MakeStage) -> None:
    session = staged(memslot_worker=MemslotSettings(pause_s=Share(0)))
    worker = the(session, "memslot-worker")
    assert worker._weights[3] == 0
    worker._weights = [0.0, 0.0, 0.0, 1.0]
    worker.perform(Op("create", (0,)))
    assert [str(op) for op in worker.choose()] == ["get-log 0"]


def test_the_log_of_a_slot_that_does_not_log_cannot_be_read(staged: MakeStage) -> None:
    session = staged()
    with pytest.raises(KvmError, match="logs no dirty pages"):
        session.vm.get_dirty_log(0)
