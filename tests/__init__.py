"""The tests: `unit` mirrors the packages; the other folders are named after what they test."""

from __future__ import annotations

from pathlib import Path

from mmu.stack import register_package

register_package(Path(__file__).parent)
