"""The glossary page of the reference: every number, and where the code judges or models it.

`python -m stress.commands.glossary > docs/reference/glossary.md` writes the page anew.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click
from attrs import frozen

from mmu.invariants import INVARIANTS, RULE_OF, STANDS_FOR
from mmu.numbers.bugs import BUGS
from mmu.numbers.defects import DEFECTS
from mmu.numbers.differences import DIFFERENCES
from mmu.numbers.lookup import NUMBERS, cited_in
from mmu.numbers.measurements import ELSEWHERE
from mmu.numbers.oracles import RULES
from mmu.numbers.points import NOT_A_POINT
from mmu.posted import POSTED
from mmu.variant import Variant
from stress.mutants import MUTANTS
from stress.mutants.case import Control
from stress.mutants.commits import COMMITS
from stress.mutants.controls import CONTROLS
from stress.observe.gauges import GAUGES
from stress.observe.histograms import OPERATIONS, Latency
from stress.observe.rules_judged import JUDGED
from stress.results.figures import figures_of
from stress.scenario.counters import COUNTERS
from stress.scenario.shipped import configs_root
from stress.selftest.litmus.registry import LITMUS

WIDTH = 100
_RULE: Final = re.compile(r"O\d+|INV")
_OF_INTEREST: Final = re.compile(r"\"(O\d+|INV)\"|\.point\(")
"""What a file has that reports a rule or stops at a point; parsing all of them would take long."""
_NOT_REPORTING: Final = (
    "mmu/numbers/",
    "mmu/posted/",
    "stress/commands/",
    "stress/mutants/",
    "stress/selftest/",
)
"""Rooms that name rules without reporting them."""


@frozen
class Letter:
    """One chapter of the glossary: the numbers of a letter, and how to say where each is found."""

    letter: str
    title: str
    intro: str
    where: Callable[[str], Iterator[str]]


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([*_opening(), *(line for each in LETTERS for line in _chapter(each)), ""])


def _opening() -> Iterator[str]:
    yield "# Glossary of numbers"
    yield ""
    yield from _wrapped(
        "Every number that code, configurations, reports and documents cite. This page is "
        "generated from `mmu.numbers` and from the code that judges or models each number: "
        "`python -m stress.commands.glossary > docs/reference/glossary.md`. `stress list numbers` "
        "prints the lines alone, and `stress explain VARIANT` shows a variant at work."
    )
    yield ""
    for each in LETTERS:
        yield f"* [{each.letter}](#{each.letter.lower()}): {each.title}"


def _chapter(each: Letter) -> Iterator[str]:
    yield ""
    yield f'<a id="{each.letter.lower()}"></a>'
    yield f"## {each.letter}: {each.title}"
    yield ""
    yield from _wrapped(each.intro)
    yield ""
    for number in _of(each.letter):
        yield from _entry(number, each.where)


def _of(letter: str) -> list[str]:
    """The numbers of one letter; INV, which has none, stands with the oracles."""
    shaped = re.compile(letter + r"\d+[a-z]?" if letter != "O" else r"O\d+|INV")
    return [number for number in NUMBERS if shaped.fullmatch(number)]


def _entry(number: str, where: Callable[[str], Iterator[str]]) -> Iterator[str]:
    lead = f'* <a id="{number}"></a>**{number}** '
    yield from _wrapped(lead + NUMBERS[number].rstrip(".") + ".", hanging=True)
    for line in where(number):
        yield from _wrapped(f"  *{line}", hanging=True)


def _wrapped(text: str, *, hanging: bool = False) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent="  " if hanging else "",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _labelled(label: str, items: Iterable[str], between: str = ", ") -> Iterator[str]:
    """`label: a, b.` if there are items, without the asterisk that opens it."""
    listed = list(dict.fromkeys(items))
    if listed:
        yield f"{label}:* {between.join(listed)}."


def _code(words: Iterable[str]) -> list[str]:
    return [f"`{word}`" for word in words]


# What each letter can say.


def _where_judged(rule: str) -> Iterator[str]:
    yield from _labelled("Reported by", _code(reporters().get(rule, ())))
    yield from _labelled("One judgement", [JUDGED[rule]])
    yield from _labelled(
        "Also reported for it",
        [name for name in INVARIANTS if {**RULE_OF, **STANDS_FOR}.get(name) == rule],
    )


def _where_checked(name: str) -> Iterator[str]:
    yield from _labelled("Checked at rest by", [f"`mmu.invariants.{INVARIANTS[name].__name__}()`"])
    rule = RULE_OF.get(name)
    yield from _labelled("Reported as", [rule or f"INV, standing for {STANDS_FOR[name]}"])


def _where_posted(number: str) -> Iterator[str]:
    defect = DEFECTS[number]
    yield from _labelled("Not among the posted variants", [defect.absent] if defect.absent else [])
    for variant in POSTED.values():
        if cited_in(variant.title)[:1] == [number]:
            yield from _variant("Variant", [variant])
            yield from _labelled("Shown as", variant.expects)
    yield from _labelled("Scenario", _code(_scenarios(number)))
    yield from _labelled("Litmus programs", _code(_litmus(number)))


def _scenarios(number: str) -> Iterator[str]:
    for path in sorted(configs_root().glob(f"rfc-v1/R{int(number[1:]):02}-*.toml")):
        yield f"configs/rfc-v1/{path.name}"


def _where_recreated(number: str) -> Iterator[str]:
    bug = BUGS[number]
    yield from _labelled("Commits", [_commit(digits) for digits in bug.commits])
    yield from _variant("Variants", _citing(number, MUTANTS))
    yield from _variant("Inverted controls", _citing(number, CONTROLS))
    yield from _labelled("Litmus programs", _code(_litmus(number)))
    yield from _labelled("Not re-created", [bug.absent] if bug.absent else [])


def _commit(digits: str) -> str:
    release, subject = COMMITS.get(digits, ("", ""))
    return f'{digits} ("{subject}", {release})' if subject else digits


def _variant(label: str, variants: Iterable[Variant]) -> Iterator[str]:
    yield from _labelled(
        label,
        [f"`{each.name}` (`{variant_files()[each.name]}`)" for each in variants],
    )


def _citing(number: str, variants: Mapping[str, Variant]) -> list[Variant]:
    return [each for each in variants.values() if number in cited_in(said(each))]


def said(variant: Variant) -> str:
    """What a variant says of where it comes from."""
    said = f"{variant.origin} {variant.rule}"
    return f"{said} {variant.right_because}" if isinstance(variant, Control) else said


def _litmus(number: str) -> list[str]:
    return [name for name, program in LITMUS.items() if number in cited_in(program.source)]


def _where_stopped(number: str) -> Iterator[str]:
    yield from _labelled("In", _code(f"{place}()" for place in points().get(number, ())))
    yield from _labelled("Not a point", [NOT_A_POINT[number]] if number in NOT_A_POINT else [])


def _where_measured(number: str) -> Iterator[str]:
    yield from _labelled("Figures", figures().get(number, ()), "; ")
    yield from _labelled("Elsewhere", [ELSEWHERE[number]] if number in ELSEWHERE else [])


def _where_different(number: str) -> Iterator[str]:
    each = DIFFERENCES[number]
    yield f"Rate:* {each.rate}. *Here:* {each.here}."


@cache
def figures() -> dict[str, list[str]]:
    """The names of the figures for each measurement, as a run has them in which everything
    happened; the percentiles of one operation are one name."""
    once = dict.fromkeys((*COUNTERS, *GAUGES), 1)
    latencies = {name: Latency(name, 1, 1, 1, 1, 1, 1, ()) for name in OPERATIONS}
    found: dict[str, list[str]] = {}
    for figure in figures_of(once, latencies, once, once, 0):
        name = figure.name.rpartition(", ")[0] if figure.timed else figure.name
        found.setdefault(figure.number, []).append(name)
    return found


LETTERS: Final = (
    Letter(
        "O",
        "oracles",
        "The rules that a report says were broken; [0.2](0-names.md#0.2) defines each. INV is an "
        "invariant that is wrong at rest and that no other rule covers.",
        _where_judged,
    ),
    Letter(
        "I",
        "invariants",
        "What must hold of a VM ([appendix A](appendices.md#A)).",
        _where_checked,
    ),
    Letter(
        "R",
        "defects of the posted series",
        'Found by reading; [1.11](1-series.md#1.11) has each in full. `vm.profile = "rfc-v1"` has '
        "all that are variants, `hardened` none.",
        _where_posted,
    ),
    Letter(
        "B",
        "upstream bugs",
        "[Chapter 4](4-bugs.md) has each in full. A variant re-creates the bug or its shape.",
        _where_recreated,
    ),
    Letter(
        "P",
        "preemption points",
        "Places where a delay can be injected ([2.16](2c-tables.md#2.16)), and the functions of "
        "the model that have them.",
        _where_stopped,
    ),
    Letter(
        "M",
        "measurements",
        "What a maintainer would want measured ([5.3](5-discussion.md#5.3)), and the figures of a "
        "run's report that stand for it.",
        _where_measured,
    ),
    Letter(
        "D",
        "differences between the kernel and a model",
        "[7.1](7-differences.md#7.1) has each in full, with the kernel's functions.",
        _where_different,
    ),
)


# What is read off the sources.


def _root() -> Path:
    """The directory that holds both packages."""
    spec = find_spec("mmu")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def _files(*rooms: str) -> Iterator[tuple[str, str]]:
    """The name and the text of every source file below `rooms`."""
    root = _root()
    for room in rooms:
        for path in sorted((root / room).rglob("*.py")):
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for name, text in _files("mmu", "stress"):
        if not name.startswith(_NOT_REPORTING) and _OF_INTEREST.search(text):
            yield name, ast.parse(text)


@cache
def variant_files() -> dict[str, str]:
    """The file of each shipped variant, by the variant's name."""
    return {
        name: file
        for file, text in _files("mmu/posted", "stress/mutants")
        for name in re.findall(r"^    name=\"(.+)\",$", text, re.MULTILINE)
    }


@cache
def reporters() -> dict[str, list[str]]:
    """The files that report each rule: it is an argument of a call there, or a default of one."""
    found: dict[str, list[str]] = {rule: [] for rule in RULES}
    for name, tree in _sources():
        for rule in sorted({rule for node in ast.walk(tree) for rule in _rules_in(node)}):
            found[rule].append(name)
    return found


def _rules_in(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and not _is_table(node):
        values = [*node.args, *(word.value for word in node.keywords if word.arg == "rule")]
    elif isinstance(node, ast.FunctionDef):
        values = [*node.args.defaults, *(each for each in node.args.kw_defaults if each)]
    else:
        return
    for value in values:
        match value:
            case ast.Constant(value=str(rule)) if _RULE.fullmatch(rule):
                yield rule
            case _:
                pass


def _is_table(call: ast.Call) -> bool:
    """`dict.fromkeys()`, which maps numbers and reports nothing."""
    return isinstance(call.func, ast.Attribute) and call.func.attr == "fromkeys"


@cache
def points() -> dict[str, list[str]]:
    """The functions that stop at each preemption point, as `module.Class.function`."""
    found: dict[str, list[str]] = {}
    for name, tree in _sources():
        for owner in ast.walk(tree):
            if isinstance(owner, ast.ClassDef):
                for method in owner.body:
                    module = name.removesuffix(".py").replace("/", ".")
                    place = f"{module}.{owner.name}.{getattr(method, 'name', '')}"
                    for number in _points_in(method):
                        found.setdefault(number, []).append(place)
    return found


def _points_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="point"), args=[ast.Constant(value=str(number))]):
                yield number
            case _:
                pass


if __name__ == "__main__":
    click.echo(page(), nl=False)
