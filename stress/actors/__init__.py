"""Actors: one thread each, with a part to play."""

from __future__ import annotations

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
    """Everybody who takes part in the scenario. The memslots are what its script's setup says when
    they come."""
    prepare_slots(stage)
    config = stage.scenario.actors
    cast: list[Actor] = [VcpuActor(stage, number) for number in range(stage.scenario.vm.vcpus)]
    if config.memslot_worker.enabled and stage.layout.churn:
        cast.append(MemslotWorker(stage))
    cast += [HostActor(stage, number) for number in range(config.host.threads)]
    if config.dirty_log.enabled:
        cast.append(DirtyLogger(stage))
    if config.nx.enabled and config.nx.toggles:
        cast.append(NxAdmin(stage))
    if config.nx.enabled and config.nx.recovers:
        cast.append(NxRecovery(stage))
    if stage.scenario.vm.have_exported_tdp:
        cast += [ExporterActor(stage, number) for number in range(config.exporter.threads)]
    if config.exit.enabled:
        cast.append(ProcessExit(stage, list(cast)))
    if stage.scenario.vm.have_exported_tdp:
        fds = SharedTdpFd(stage)
        for number in range(config.consumer.devices):
            worker = IopfWorker(stage, f"iopf{number}")
            consumer = Consumer(stage, number, worker, fds)
            engines = [DmaEngine(stage, number, consumer)] if config.consumer.engines else []
            cast += [*engines, consumer, worker]
    if stage.scenario.memory.userfaults:
        cast.append(UserfaultHandler(stage, list(cast)))
    stage.cast[:] = cast
    return cast


def performed(stage: Stage) -> dict[str, list[Op]]:
    """What everybody has done since the start, by actor: the parts of a script that does the same
    again. Needs `record_ops`."""
    return {actor.name: list(actor.performed) for actor in stage.cast if not actor.serves}
