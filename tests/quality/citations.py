"""How code, configurations, documents and output cite the reference and the design, and what of it
leads nowhere.

Cited are numbers (`R10`), sections (`reference 2.7`, `reference 2.1 rules 6 and 7`, `reference
4d`), appendices (`appendix A`) and sections of the design (`design 3.2`). A citation may be broken
over lines, also over the strings of an expression or the lines of a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from mmu.numbers.lookup import NUMBERS
from tests.command import ROOT

REFERENCE = ROOT / "docs" / "reference"
DESIGN = ROOT / "docs" / "design.md"

_NUMBER = re.compile(r"(?<![\w#&.%-])[OIRBPMD][0-9]{1,2}[a-z]?(?!\w)")
_RUN = re.compile(r"\b[Rr]eference,? (?=\d)((?:[^;:\"'`.]|\.(?=\d)){1,120})")
_SECTION = re.compile(r"(?<![\w.])(\d\.\d{1,2}|\d[a-z]|^\d(?!\.))(?![\w.]*\d)")
_ITEMS = re.compile(r"(\d\.\d{1,2})[^,;]*? (?:rules?|steps?) (\d+)(?: (?:and|to) (\d+))?")
_APPENDIX = re.compile(r"\b[Aa]ppendix ([A-Z])\b")
_DESIGN = re.compile(r"\b[Dd]esign (\d(?:\.\d)?)(?![\w.]*\d)")
_BROKEN_LINE = re.compile(r"\s*['\"]?\s*\n\s*(?:#\s?|\*\s?)?f?['\"]?")
_PATHS_OF_CHARTS = re.compile(r"\bd=\\?\"M[^\"]*\"")

_ANCHOR = re.compile(r'^<a id="(\w[\w.]*)"></a>\n#+ (.*)$', re.MULTILINE)
_CHAPTER = re.compile(r"^# (\d) ")
_BARE = re.compile(r"(?<![\w.^/`])([0-24789]\.\d{1,2})(?![\w.]*\d)")
_LIST_ITEM = re.compile(r"^ *(\d+)\. ", re.MULTILINE)


@cache
def sections() -> dict[str, str]:
    """The text of every section of the reference that has an anchor, by the anchor."""
    found = {}
    for path in sorted(REFERENCE.glob("*.md")):
        if path.name != "glossary.md":
            text = path.read_text(encoding="utf-8")
            anchors = list(_ANCHOR.finditer(text))
            for here, there in pairwise([*anchors, None]):
                assert here is not None
                end = len(text) if there is None else there.start()
                found[here.group(1)] = text[here.start() : end]
            if chapter := _CHAPTER.match(text):
                found[chapter.group(1)] = text
    return found


@cache
def design_sections() -> frozenset[str]:
    """The numbers of the design's headings."""
    return frozenset(re.findall(r"^#+ (\d(?:\.\d)?)\.? ", DESIGN.read_text("utf-8"), re.MULTILINE))


def unresolved(text: str) -> list[str]:
    """Every citation in `text` that leads nowhere, as it is written."""
    text = _PATHS_OF_CHARTS.sub("", text)
    text = _BROKEN_LINE.sub(" ", text)
    return [*_numbers(text), *_sections(text), *_appendices(text), *_designs(text)]


def _numbers(text: str) -> Iterator[str]:
    for found in dict.fromkeys(_NUMBER.findall(text)):
        # the files of the posted defects have two digits, so that they sort
        number = f"R{int(found[1:])}" if re.fullmatch("R[0-9]+", found) else found
        if number not in NUMBERS:
            yield found


def _sections(text: str) -> Iterator[str]:
    for run in _RUN.findall(text):
        for section in _SECTION.findall(run):
            if section not in sections():
                yield f"reference {section}"
        for section, *items in _ITEMS.findall(run):
            listed = _LIST_ITEM.findall(sections().get(section, ""))
            for item in items:
                if item and item not in listed:
                    yield f"reference {section} item {item}"


def _appendices(text: str) -> Iterator[str]:
    for letter in _APPENDIX.findall(text):
        if letter not in sections():
            yield f"appendix {letter}"


def _designs(text: str) -> Iterator[str]:
    for section in _DESIGN.findall(text):
        if section not in design_sections():
            yield f"design {section}"


def unresolved_within(text: str) -> list[str]:
    """The sections that a chapter of the reference names without saying `reference`, where there is
    no such section. Numbers that begin with 3, 5 or 6 may be kernel versions and are left alone."""
    return [found for found in _BARE.findall(text) if found not in sections()]


def sources() -> list[Path]:
    """Every file that is written by hand and may cite something."""
    patterns = (
        "*.md",
        "*.toml",
        "bench/**/*.py",
        "configs/**/*.toml",
        "docs/**/*.md",
        "examples/**/*.py",
        "mmu/**/*.py",
        "results/*.md",
        "stress/**/*.py",
        "stress/**/*.html",
        "tests/**/*.py",
    )
    return _globbed(patterns)


def outputs() -> list[Path]:
    """Every file that the product has printed or written, and that is kept."""
    return _globbed(("tests/golden/**/*.txt", "tests/golden/**/*.json", "results/example/*"))


def _globbed(patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
