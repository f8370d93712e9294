"""DMA engines: what a device does of its own accord."""

from __future__ import annotations

from attrs import evolve

from stress.actors.consumer import Consumer, IopfWorker
from stress.actors.engine import CREDITS, DmaEngine
from stress.engines.session import Session
from stress.scenario.types import ConsumerSettings, Count, Flag, Positive
from tests.unit.stress.actors.conftest import MakeStage, the

ENGINES = ConsumerSettings(engines=Flag(True), bursts=Positive(3), group=Positive(2))


def cast(session: Session) -> tuple[DmaEngine, Consumer, IopfWorker]:
    return the(session, "engine0"), the(session, "device0"), the(session, "iopf0")


def test_every_device_has_one_if_the_scenario_says_so(staged: MakeStage) -> None:
    session = staged(consumer=evolve(ENGINES, devices=Count(2)))
    engines = [actor.name for actor in session.actors if isinstance(actor, DmaEngine)]
    assert engines == ["engine0", "engine1"]
    assert ConsumerSettings().engines is False
    assert "engine0" not in [actor.name for actor in staged().actors]


def test_what_faults_is_requested_as_one_group_and_nobody_waits(staged: MakeStage) -> None:
    session = staged(consumer=ENGINES)
    engine, device, worker = cast(session)
    device.begin()
    engine.post(0 << 1, 1 << 1 | 1)
    assert (engine.accesses, engine.aborts) == (0, 2)
    (request,) = worker.queue.drain()
    assert request.faults == [(0, False), (1, True)]
    assert request.domain is device.hwpt
    assert request.code.value == ""
    worker.queue.put(request)
    worker.step()
    assert request.code.value == "SUCCESS"
    engine.post(0 << 1, 1 << 1 | 1)
    assert (engine.accesses, engine.aborts) == (2, 2)
    device.end()


def test_a_detached_device_goes_on_and_asks_nobody(staged: MakeStage) -> None:
    session = staged(consumer=ENGINES)
    engine, _, worker = cast(session)
    engine.post(0 << 1)
    assert (engine.accesses, engine.aborts) == (0, 1)
    assert len(worker.queue) == 0


def test_requests_without_an_answer_are_bounded(staged: MakeStage) -> None:
    session = staged(consumer=ENGINES)
    engine, device, worker = cast(session)
    device.begin()
    for _ in range(CREDITS + 3):
        engine.post(0 << 1)
    assert len(worker.queue) == CREDITS
    worker.step()
    for _ in range(3):
        engine.post(5 << 1)
    assert len(worker.queue) == CREDITS
    for _ in range(CREDITS):
        worker.step()
    device.end()


def test_at_random_a_step_is_some_bursts(staged: MakeStage) -> None:
    session = staged(consumer=ENGINES)
    engine, *_ = cast(session)
    ops = list(engine.choose())
    assert [op.name for op in ops] == ["post"] * 3
    assert [len(op.args) for op in ops] == [2] * 3
