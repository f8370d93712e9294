"""`stress list parts`: every part with what it stands for, and every method that a variant may
override."""

from __future__ import annotations

import ast
import inspect
import re
import sys

import pytest

from mmu.machine.vm import PART_BASES
from stress.commands import catalogue
from stress.commands.parts import described, first_sentence, methods_of, titles
from tests.command import ROOT

KERNEL_FILE = r"(?:arch|drivers|kernel|mm|virt)/[\w/]+\.c(?: of the series)?(?:: \S.*)?"
PARTS = pytest.mark.parametrize("part", PART_BASES, ids=lambda part: part.__name__)


@PARTS
def test_a_part_says_which_kernel_file_or_hardware_it_stands_for(part: type) -> None:
    for place in titles()[part.__name__].split("; "):
        assert re.fullmatch(rf"hardware: \S.*|{KERNEL_FILE}", place)


def docstrings_around(part: type) -> str:
    """Every docstring of the module that the part is written in."""
    tree = ast.parse(inspect.getsource(sys.modules[part.__module__]))
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return " ".join(
        ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)
    )


@PARTS
def test_the_functions_that_a_part_stands_for_are_cited_where_it_is_written(part: type) -> None:
    cited = docstrings_around(part)
    named = re.findall(r"(\w+)\(\)", titles()[part.__name__])
    assert [name for name in named if f"{name}()" not in cited] == []


@PARTS
def test_every_method_is_listed_with_its_sentence(part: type) -> None:
    lines = list(described())
    start = lines.index(f"  {part.__name__}")
    ends = (i for i in range(start + 1, len(lines)) if not lines[i].startswith("   "))
    text = " ".join(" ".join(lines[start : next(ends, len(lines))]).split())
    public = {name for name, _ in inspect.getmembers(part, inspect.isfunction) if name[0] != "_"}
    assert set(methods_of(part)) == public
    for name, method in methods_of(part).items():
        assert f" {name}(self" in text
        assert f" {first_sentence(method)}" in text
        assert len(first_sentence(method)) > 5


def names_read() -> set[str]:
    """Every attribute that the model or the harness asks something for."""
    return {
        node.attr
        for path in [*ROOT.glob("mmu/**/*.py"), *ROOT.glob("stress/**/*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }


def test_every_method_of_a_part_is_called_so_that_an_override_takes_effect() -> None:
    called = names_read()
    assert [
        f"{part.__name__}.{name}"
        for part in PART_BASES
        for name in methods_of(part)
        if name not in called
    ] == []


def test_signatures_are_shown_as_an_override_repeats_them() -> None:
    lines = [line.strip() for line in described()]
    assert "flush_range(self, reason: str, gfn: int, pages: int) -> None" in lines


def test_the_methods_are_listed_only_where_parts_are_asked_for() -> None:
    assert "notify_importers(self" in catalogue.listing("parts")
    assert "notify_importers(self" not in catalogue.listing("all")
    assert "RemoteTlb " in catalogue.listing("all")


def documented() -> None:
    """First of two: it ends
    here. The second does not count."""


def test_a_sentence_ends_at_its_full_stop() -> None:
    assert first_sentence(documented) == "First of two: it ends here."
