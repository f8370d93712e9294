"""The harness: scenarios, engines, actors, oracles, observers, reports. Imports `mmu`, never the
other way round."""

from __future__ import annotations

from pathlib import Path

from mmu.stack import register_package

register_package(
    Path(__file__).parent,
    plumbing=("stress/observe/oracles/", "stress/engines/", "stress/actors/base.py"),
)
