"""Every citation leads somewhere: in code, configurations, documents, and in what is printed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from mmu.invariants import INVARIANTS
from mmu.lock_order import DOCUMENTED, SOURCE
from mmu.numbers import invariants as numbered
from mmu.numbers.bugs import BUGS
from mmu.numbers.defects import DEFECTS
from mmu.numbers.lookup import NUMBERS, cited_in
from mmu.numbers.measurements import ELSEWHERE, MEASUREMENTS
from mmu.numbers.oracles import RULES
from mmu.numbers.points import NOT_A_POINT, POINTS
from mmu.posted import POSTED
from stress.commands import catalogue, glossary
from stress.mutants.case import Control, Mutant
from stress.mutants.commits import HASH
from stress.mutants.controls import CONTROLS
from stress.observe import points
from stress.selftest import page
from stress.selftest.registry import all_mutants
from tests.command import ROOT
from tests.house import citations

VARIANTS: dict[str, Mutant | Control] = {**all_mutants(), **CONTROLS}
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
MADE_UP = {
    # Numbers that tests invent to see them refused.
    "tests/unit/stress/scenario/test_load.py": {"O99", "P99"},
    "tests/house/test_words.py": {"O99"},
    "tests/unit/stress/selftest/test_judgement.py": {"O99"},
}
BROKEN = {
    "a number": ("see R99 and R10", ["R99"]),
    "a number without its zero": ("shape of B7", ["B7"]),
    "a section": ('"reference 2.99, B06"', ["reference 2.99"]),
    "a later section": ("(reference 2.7, 2.8, 2.17)", ["reference 2.17"]),
    "a section in the next line": ('"the kernel; reference "\n    "1.12 R1"', ["reference 1.12"]),
    "a section in a comment": ("# as in reference\n# 4g says", ["reference 4g"]),
    "a rule": ("reference 2.1 rules 6 and 9", ["reference 2.1 item 9"]),
    "a step": ("reference 2.7 step 10", ["reference 2.7 item 10"]),
    "an appendix": ("appendix C of the reference", ["appendix C"]),
    "a section of the design": ("what design 3.9 asks for", ["design 3.9"]),
}
NO_CITATIONS = (
    "os.O_RDONLY, 0xB55, -O99, #B99, p99, R023_x, M4.5 GHz, PM99",
    '<path d="M99 12 R99 3"/>',
    "a reference count of 2.7, by reference; design: 3.9 files",
    "since 6.99, reference machine",
)


def unresolved_in(paths: Iterable[Path]) -> dict[str, set[str]]:
    """What leads nowhere, by file."""
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}
    found = {name: set(citations.unresolved(text)) for name, text in texts.items()}
    return {name: words for name, words in found.items() if words}


def test_every_citation_in_a_source_resolves() -> None:
    mine = Path(__file__)
    assert unresolved_in(path for path in citations.sources() if path != mine) == MADE_UP


def test_every_citation_in_a_stored_output_resolves() -> None:
    assert len(citations.outputs()) > 20
    assert unresolved_in(citations.outputs()) == {}


@pytest.mark.parametrize(("text", "found"), BROKEN.values(), ids=BROKEN)
def test_a_citation_that_leads_nowhere_is_found(text: str, found: list[str]) -> None:
    assert citations.unresolved(text) == found


@pytest.mark.parametrize("text", NO_CITATIONS)
def test_what_only_looks_like_a_citation_is_none(text: str) -> None:
    assert citations.unresolved(text) == []


def test_every_citation_in_a_listing_resolves() -> None:
    assert citations.unresolved(catalogue.listing("all")) == []


def test_every_citation_in_the_page_of_a_variant_resolves() -> None:
    pages = {name: "\n".join(page.facts(variant)) for name, variant in VARIANTS.items()}
    assert [name for name, text in pages.items() if citations.unresolved(text)] == []


def test_the_source_that_lockdep_reports_resolves() -> None:
    assert [rule for rule, *_ in DOCUMENTED if citations.unresolved(f"{SOURCE}{rule}")] == []


# The reference itself.


def test_an_anchor_stands_before_the_heading_that_it_names() -> None:
    for name, text in citations.sections().items():
        heading = re.search(r"^#+ (.*)$", text, re.MULTILINE)
        assert heading is not None
        assert re.match(rf"(Appendix )?{re.escape(name)}[ :]", heading.group(1)), name


def test_chapters_name_sections_that_exist() -> None:
    for path in citations.REFERENCE.glob("*.md"):
        assert citations.unresolved_within(path.read_text("utf-8")) == [], path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_an_anchor(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if not re.match(r"https?://", target):
            name, _, anchor = target.partition("#")
            text = ((path.parent / name) if name else path).read_text("utf-8")
            assert not anchor or anchor in anchors(text), target


def anchors(page: str) -> set[str]:
    """What a link can name in a page: its own marks, and its headings as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    named = {re.sub(r"[^\w -]", "", text).strip().lower().replace(" ", "-") for text in headings}
    return named | set(re.findall(r'<a id="([^"]+)"></a>', page))


def test_every_defect_and_bug_has_its_entry_in_its_chapter() -> None:
    chapter = citations.sections()["1.11"]
    assert re.findall(r"^\* \*\*(R\d+)", chapter, re.MULTILINE) == list(DEFECTS)
    entries = re.findall(r"^\*\*(B\d\d)", citations.sections()["4"], re.MULTILINE)
    assert sorted(entries) == list(BUGS)


def test_every_commit_of_a_bug_is_in_its_chapter() -> None:
    chapter = citations.sections()["4"]
    for number, bug in BUGS.items():
        assert all(commit in chapter for commit in bug.commits), number


# The numbers and the code that has them.


def test_the_glossary_is_up_to_date() -> None:
    """`python -m stress.commands.glossary > docs/reference/glossary.md` writes it anew."""
    stored = (citations.REFERENCE / "glossary.md").read_text(encoding="utf-8")
    assert stored == glossary.page()


def test_every_number_is_in_the_glossary() -> None:
    assert set(re.findall(r'<a id="(\w+\d[a-z]?|INV)"', glossary.page())) == set(NUMBERS)


def test_every_invariant_is_checked() -> None:
    assert list(INVARIANTS) == list(numbered.INVARIANTS)


def test_every_rule_is_reported_somewhere() -> None:
    assert set(glossary.reporters()) == set(RULES)
    assert all(glossary.reporters().values())


def test_a_defect_is_a_variant_or_says_why_not() -> None:
    variants = [cited_in(variant.title)[0] for variant in POSTED.values()]
    assert variants == [number for number, defect in DEFECTS.items() if not defect.absent]


def test_the_scenario_of_a_defect_has_its_name() -> None:
    for path in (ROOT / "configs" / "rfc-v1").glob("*.toml"):
        number = f"R{int(path.name[1:3])}"
        assert f'title = "{number} {DEFECTS[number].name}' in path.read_text("utf-8"), path


def test_a_bug_is_recreated_or_says_why_not() -> None:
    recreated = {
        number for variant in VARIANTS.values() for number in cited_in(glossary.said(variant))
    }
    for number, bug in BUGS.items():
        assert bool(bug.absent) != (number in recreated), number


def test_the_commits_of_a_variant_are_those_of_its_bugs() -> None:
    for name, variant in VARIANTS.items():
        for number, commits in re.findall(r"(B\d\d) \(([^)]*)\)", variant.origin):
            assert set(HASH.findall(commits)) <= set(BUGS[number].commits), name


def test_every_preemption_point_of_the_model_is_numbered() -> None:
    stopped = set(glossary.points())
    assert stopped == set(POINTS) - set(NOT_A_POINT)
    assert tuple(number for number in POINTS if number in stopped) == points.POINTS


def test_every_measurement_has_a_figure_or_says_why_not() -> None:
    assert set(glossary.figures()) == set(MEASUREMENTS) - set(ELSEWHERE)
