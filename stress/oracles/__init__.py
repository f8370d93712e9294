"""Oracles: who judges a run. Rules that the model's own primitives enforce (O2-O5, O7, O9, O11, O17) need no observer."""

from __future__ import annotations

from mmu.machine.vm import VirtualMachine
from stress.oracles.base import Oracle
from stress.oracles.dirty import DirtyOracle
from stress.oracles.flush import FlushOracle
from stress.oracles.importers import ImporterOracle
from stress.oracles.lifetime import LifetimeOracle
from stress.oracles.liveness import LivenessOracle
from stress.oracles.mmio import MmioOracle
from stress.oracles.nx import NxOracle
from stress.oracles.roots import RootOracle
from stress.oracles.slots import SlotOracle
from stress.oracles.translation import TranslationOracle
from stress.oracles.unmapping import UnmapOracle
from stress.oracles.walks import WalkOracle
from stress.scenario.types import Limits

ORACLES: tuple[type[Oracle], ...] = (
    TranslationOracle,
    FlushOracle,
    SlotOracle,
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
