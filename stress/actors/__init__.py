"""Actors: one thread each, with a part to play."""

from __future__ import annotations

from collections.abc import Iterator

from stress.actors.base import Actor, Stage
from stress.actors.consumer import Consumer, IopfWorker, SharedTdpFd
from stress.actors.dirty_logger import DirtyLogger
from stress.actors.engine import DmaEngine
from stress.actors.exporter import ExporterActor
from stress.actors.host import HostActor, UserfaultHandler
from stress.actors.memslot_worker import MemslotWorker
from stress.actors.nx_admin import NxAdmin, NxRecovery
from stress.actors.process_exit import ProcessExit
from stress.actors.slots import prepare_slots
from stress.actors.vcpu import VcpuActor
from stress.scenario.operations import Op


def cast_of(stage: Stage) -> list[Actor]:
    """Everybody who takes part in the scenario; whoever is there already is on the stage. The
    memslots are what its script's setup says when they come."""
    prepare_slots(stage)
    for actor in _members(stage):
        stage.cast.append(actor)
    return stage.cast


def _members(stage: Stage) -> Iterator[Actor]:
    config = stage.scenario.actors
    yield from (VcpuActor(stage, number) for number in range(stage.scenario.vm.vcpus))
    if config.memslot_worker.enabled and stage.layout.churn:
        yield MemslotWorker(stage)
    yield from (HostActor(stage, number) for number in range(config.host.threads))
    if config.dirty_log.enabled:
        yield DirtyLogger(stage)
    if config.nx.enabled and config.nx.toggles:
        yield NxAdmin(stage)
    if config.nx.enabled and config.nx.recovers:
        yield NxRecovery(stage)
    if stage.scenario.vm.have_exported_tdp:
        yield from (ExporterActor(stage, number) for number in range(config.exporter.threads))
    if config.exit.enabled:
        yield ProcessExit(stage, list(stage.cast))
    if stage.scenario.vm.have_exported_tdp:
        yield from _devices(stage)
    if stage.scenario.memory.userfaults:
        yield UserfaultHandler(stage, list(stage.cast))


def _devices(stage: Stage) -> Iterator[Actor]:
    config = stage.scenario.actors.consumer
    fds = SharedTdpFd(stage)
    for number in range(config.devices):
        worker = IopfWorker(stage, f"iopf{number}")
        consumer = Consumer(stage, number, worker, fds)
        if config.engines:
            yield DmaEngine(stage, number, consumer)
        yield consumer
        yield worker


def performed(stage: Stage) -> dict[str, list[Op]]:
    """What everybody has done since the start, by actor: the parts of a script that does the same
    again. Needs `record_ops`."""
    return {actor.name: list(actor.performed) for actor in stage.cast if not actor.serves}
