"""The floors of the house, and how an import between them is found.

A room may import only what stands below it. Counted are plain imports wherever they stand (in a
function, under TYPE_CHECKING), and strings that name a module or a file of a room, as
`importlib.import_module`, a preload list or `python -m` take them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

MMU_FLOORS = (
    (
        "mmu.sync",
        "mmu.numbers",
        *(f"mmu.{name}" for name in ["errors", "pulse", "report", "runtime", "stack", "task"]),
    ),
    ("mmu.lock_order", "mmu.variant"),
    ("mmu.paging",),
    ("mmu.kvm", "mmu.probe", "mmu.memory", "mmu.tdp", "mmu.export", "mmu.machine"),
    ("mmu.candidates", "mmu.invariants", "mmu.kernels", "mmu.parts", "mmu.posted"),
)
"""Floors of the model, ground first; what shares a floor may know each other."""

STRESS_FLOORS = (
    ("stress.mutants",),
    ("stress.scenario",),
    ("stress.observe",),
    ("stress.actors",),
    ("stress.engines",),
    ("stress.search",),
    ("stress.testing",),
    ("stress.results",),
    ("stress.report",),
    ("stress.trace",),
    ("stress.lab",),
    ("stress.runs",),
    ("stress.selftest",),
    ("stress.commands",),
    ("stress.pytest_plugin", "stress.cli", "stress.__main__"),
)
"""Floors of the harness, all above the model, one room a floor but for the top."""

FLOORS = (*MMU_FLOORS, *STRESS_FLOORS)

_MODULE = re.compile(r"(?:mmu|stress)(?:\.\w+)+")
_FILE = re.compile(r"(?:mmu|stress)(?:/\w+)*/(?:\w+\.py)?")


@frozen
class Arrow:
    """`importer` names `imported`, in a line of its file."""

    importer: str
    imported: str
    line: int


def floor_of(module: str) -> int | None:
    """The number of the floor that a module stands on, None for a module on none."""
    for number, rooms in enumerate(FLOORS):
        if any(module == room or module.startswith(room + ".") for room in rooms):
            return number
    return None


def module_of(path: Path, root: Path) -> str:
    """The dotted name of the module in a file below `root`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(module: str, text: str) -> Iterator[Arrow]:
    """Every name of another module in the source `text` of `module`, docstrings left out."""
    tree = ast.parse(text)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [] if id(node) in prose else list(named_in(node.value))
        else:
            continue
        yield from (Arrow(module, name, node.lineno) for name in names)


def named_in(text: str) -> Iterator[str]:
    """The module that a string names, as a dotted name or as a file of ours."""
    if _MODULE.fullmatch(text):
        yield text
    elif _FILE.fullmatch(text):
        yield text.removesuffix(".py").strip("/").replace("/", ".")


def upward(module: str, text: str) -> list[Arrow]:
    """The arrows of `module` that lead to a floor above its own."""
    mine = floor_of(module)
    found = []
    for arrow in arrows(module, text):
        theirs = floor_of(arrow.imported)
        if mine is not None and theirs is not None and theirs > mine:
            found.append(arrow)
    return found
