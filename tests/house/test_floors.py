"""The floors hold: no room of `mmu` or `stress` names a module that stands above it."""

from __future__ import annotations

import pytest

from tests.command import ROOT
from tests.house import floors

SOURCES = sorted([*ROOT.glob("mmu/**/*.py"), *ROOT.glob("stress/**/*.py")])

UPWARD = {
    "plain": "from stress.commands.run import run",
    "in a function": "def late():\n    import stress.commands.run",
    "of a room": "from stress import commands",
    "for types only": "if TYPE_CHECKING:\n    from stress.runs.run import RunRequest",
    "by its name": 'LATER = ["stress.commands.run"]',
    "by its file": 'HIDDEN = ("stress/commands/",)',
}


def test_every_module_stands_on_a_floor() -> None:
    without = [floors.module_of(path, ROOT) for path in SOURCES]
    assert [m for m in without if floors.floor_of(m) is None] == ["mmu", "stress"]


def test_the_top_of_stress_is_doors_only() -> None:
    files = {path.name for path in (ROOT / "stress").glob("*.py")}
    assert files == {"__init__.py", "__main__.py", "cli.py", "pytest_plugin.py"}


def test_nothing_is_imported_from_above() -> None:
    assert [
        arrow
        for path in SOURCES
        for arrow in floors.upward(floors.module_of(path, ROOT), path.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize("text", UPWARD.values(), ids=UPWARD)
@pytest.mark.parametrize("module", ["mmu.tdp.zap", "stress.scenario.load", "stress.results.store"])
def test_an_import_from_above_is_found(module: str, text: str) -> None:
    (arrow,) = floors.upward(module, text)
    assert arrow.importer == module


def test_an_import_from_below_is_none() -> None:
    assert (
        floors.upward("stress.runs.run", "from stress.results import store\nimport mmu.kvm") == []
    )
