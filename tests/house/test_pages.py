"""Every name and path that the pages about the code put into code type exists, and so does every
function that the differences and absences in `mmu.numbers` name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mmu.numbers.bugs import BUGS
from mmu.numbers.defects import DEFECTS
from mmu.numbers.differences import DIFFERENCES
from tests.command import ROOT
from tests.house.floors import FLOORS

PAGES = ("CONTRIBUTING.md", "docs/architecture.md", "docs/design.md")
ROOMS = ("mmu", "stress", "tests")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
PATH = re.compile(r"\.?\w[\w.-]*/[\w./-]*")
METHOD = re.compile(r"([A-Z]\w+)\.(\w+)\(\)")
FUNCTION = re.compile(r"([a-z_]\w+)\(\)")
CLASS = re.compile(r"[A-Z]\w*[a-z]\w*")
CONSTANT = re.compile(r"[A-Z][A-Z_]+")
DEFINITION = re.compile(r"^(    )?(?:(class|def) (\w+)|([A-Z][A-Z_]+)(?:: .*)? = )", re.MULTILINE)
IN_PROSE = re.compile(r"\b(?:[A-Z]\w+\.)?[a-z_]\w+\(\)")

BROKEN = {
    "a method": "`Zapper.zap_all_slow()`",
    "a class's method elsewhere": "`Roots.zap_all_fast()`",
    "a function": "`judge_kindly()`",
    "a class": "`Zappper`",
    "a constant": "`OWN_STATES`",
    "a path": "`mmu/tdp/zapp.py`",
    "a directory": "`stress/zoo/`",
}


@cache
def lines() -> tuple[tuple[str, str, str], ...]:
    """Every definition at the left margin or one step in: the class it is in, its kind, its name;
    read line by line, because parsing takes long."""
    found = []
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        owner = ""
        for indent, kind, name, constant in DEFINITION.findall(path.read_text(encoding="utf-8")):
            if not indent:
                owner = name if kind == "class" else ""
            found.append((owner if indent else "", kind or "constant", name or constant))
    return tuple(found)


@cache
def names(kind: str) -> set[str]:
    """The names of all classes, functions (methods too) or constants."""
    return {name for _, each, name in lines() if each == kind}


@cache
def methods() -> set[tuple[str, str]]:
    """Every class with each of its functions."""
    return {(owner, name) for owner, kind, name in lines() if owner and kind == "def"}


def missing(text: str) -> Iterator[str]:
    """What is in code type in `text` and is not in the source: paths, classes, functions."""
    for code in CODE.findall(" ".join(FENCED.sub("", text).split())):
        if PATH.fullmatch(code):
            found = (ROOT / code).exists()
        elif method := METHOD.fullmatch(code):
            found = method.groups() in methods()
        elif function := FUNCTION.fullmatch(code):
            found = function.group(1) in names("def")
        elif CLASS.fullmatch(code):
            found = code in names("class")
        elif CONSTANT.fullmatch(code):
            found = code in names("constant")
        else:
            continue
        if not found:
            yield code


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_what_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(CODE.findall(text)) > 20
    assert list(missing(text)) == []


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_name_that_does_not_exist_is_found(text: str) -> None:
    assert list(missing(f"See {text}.")) == [text.strip("`")]


def test_every_room_is_on_the_floors_of_the_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in (room for floor in FLOORS for room in floor):
        path = Path(room.replace(".", "/"))
        name = f"{path}/" if (ROOT / path).is_dir() else f"{path}.py"
        if path.name != "__main__":
            assert f"`{name}`" in page, name


def test_what_is_said_of_a_number_names_functions_that_exist() -> None:
    said = [
        *(each.here for each in DIFFERENCES.values()),
        *(each.absent for each in BUGS.values()),
        *(each.absent for each in DEFECTS.values()),
    ]
    kernel = ("kvm_",)
    named = [name for text in said for name in IN_PROSE.findall(text)]
    assert len(named) > 10
    quoted = " ".join(f"`{name}`" for name in named if not name.startswith(kernel))
    assert list(missing(quoted)) == []


MADE_UP = {"assert-": '"assert-" +', "leak-": 'f"leak-{'}
"""Beginnings of codes that are put together where they are reported."""


def test_the_page_of_warnings_names_codes_that_are_reported() -> None:
    page = (ROOT / "docs" / "warnings.md").read_text(encoding="utf-8")
    codes = set(re.findall(r"\| O\d+ ([a-z0-9-]+) \|", page))
    assert len(codes) > 25
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for room in ("mmu", "stress")
        for path in (ROOT / room).rglob("*.py")
    )
    made = {
        code: next((how for start, how in MADE_UP.items() if code.startswith(start)), f'"{code}"')
        for code in codes
    }
    assert [code for code, written in made.items() if written not in source] == []
