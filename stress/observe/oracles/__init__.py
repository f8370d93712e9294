"""Oracles: who judges a run. Rules that the model's own primitives enforce (O2-O5, O7, O9, O11,
O17) need no observer."""

from __future__ import annotations

from mmu.machine.vm import VirtualMachine
from stress.observe.oracles.base import Oracle
from stress.observe.oracles.dirty import DirtyOracle
from stress.observe.oracles.flush import FlushOracle
from stress.observe.oracles.frames import FrameOracle
from stress.observe.oracles.importers import ImporterOracle
from stress.observe.oracles.lifetime import LifetimeOracle
from stress.observe.oracles.liveness import LivenessOracle
from stress.observe.oracles.mmio import MmioOracle
from stress.observe.oracles.nx import NxOracle
from stress.observe.oracles.ranges import RangeOracle
from stress.observe.oracles.roots import RootOracle
from stress.observe.oracles.slots import SlotOracle
from stress.observe.oracles.translation import TranslationOracle
from stress.observe.oracles.unmapping import UnmapOracle
from stress.observe.oracles.walks import WalkOracle
from stress.scenario.types import Limits

ORACLES: tuple[type[Oracle], ...] = (
    TranslationOracle,
    FlushOracle,
    SlotOracle,
    RangeOracle,
    FrameOracle,
    RootOracle,
    ImporterOracle,
    DirtyOracle,
    MmioOracle,
    NxOracle,
    WalkOracle,
    LifetimeOracle,
    UnmapOracle,
    LivenessOracle,
)
"""Every oracle that observes; all are on by default."""


def attach_all(vm: VirtualMachine, limits: Limits) -> list[Oracle]:
    """Make every oracle for `vm` and connect it."""
    oracles = [oracle(vm, limits) for oracle in ORACLES]
    vm.kvm.probe.attach(*oracles)
    return oracles
