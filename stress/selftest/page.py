"""One variant explained (`stress explain NAME`): the rule, where it comes from, the interleaving,
the splat."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator

from mmu.numbers.lookup import NUMBERS, cited_in
from mmu.numbers.oracles import RULES
from mmu.report import Report
from mmu.variant import overridden
from stress.engines.carrier import pinned
from stress.mutants import commits
from stress.mutants.case import Case, Control, Mutant
from stress.report import explanation
from stress.results.schedule_file import stored
from stress.runs.explore import exploration_for
from stress.runs.explore_request import ExploreRequest
from stress.runs.replay import explain_stored
from stress.search.exploration import Failure, SearchBudget
from stress.search.minimise import Minimiser
from stress.selftest.registry import entry, scenario_of

WIDTH = 100
CONFIDENCE = {
    "V": "read in the source, the commit or the mail",
    "Vt": "commit and subject verified, the course of the bug from memory",
    "M": "from memory",
    "A": "follows from reading the source, not shown on hardware",
}
"""What the reference's marks mean."""
LEGEND = (
    "B-numbers are upstream bugs, R-numbers posted defects, O-numbers the rules of "
    "'stress list oracles', and 'reference' is a section of docs/reference. 'stress list numbers' "
    "says what each number means."
)
LIMIT_S = 20.0
TRIES = 5
CONTINUATIONS = 10
"""Random continuations of each prefix that is looked at, for a page that is there soon; 'stress
explain FILE' tries more."""


def page(name: str) -> Iterator[str]:
    """The page of a mutant, a posted defect, or a control, a piece at a
    time, because the last ones have to be found first; raises `StressError` for other names."""
    found = entry(name)
    yield from facts(found)
    if isinstance(found, Mutant):
        yield from _evidence(found)
    yield ""
    yield from textwrap.wrap(LEGEND, WIDTH)


def facts(variant: Mutant | Control) -> Iterator[str]:
    """What is known of it beforehand, in lines of at most `WIDTH` columns."""
    yield variant.name
    yield "=" * len(variant.name)
    yield from textwrap.wrap(variant.title, WIDTH)
    yield ""
    yield from _of_mutant(variant) if isinstance(variant, Mutant) else _of_control(variant)


def _of_mutant(mutant: Mutant) -> Iterator[str]:
    yield from _origin(mutant, f" [{CONFIDENCE[mutant.confidence]}]")
    yield from _block("rule broken", mutant.rule)
    yield from _story(mutant)
    yield "must be caught by" + (" one of" if len(mutant.expects) > 1 else "")
    yield from (f"  {rule:<5}{RULES.get(rule, '')}" for rule in mutant.expects)
    yield ""
    yield from _parts(mutant)
    yield "see it"
    yield from _continued(command("explore", mutant.controlled, mutant))
    if mutant.threads is not None:
        yield from _continued(command("run", mutant.threads, mutant))
    else:
        yield from _wrapped(f"real threads cannot show it: {mutant.threads_cannot}")
    yield ""


def _of_control(control: Control) -> Iterator[str]:
    yield "a control: it looks wrong and is right, and nothing may fire"
    yield ""
    if control.origin:
        yield from _origin(control)
    yield from _block("looks wrong because", control.looks_wrong)
    yield from _block("is right because", control.right_because)
    yield from _story(control)
    yield from _parts(control)
    yield "must stay silent on"
    for case in control.tried:
        yield from _continued(
            command("explore" if case.scenario.startswith("explore/") else "run", case, control)
        )


def command(verb: str, case: Case, variant: Mutant | Control) -> str:
    """The command that runs a case by hand."""
    named = [] if case.scenario == f"BUSTED/{variant.name}" else [f'vm.variants=["{variant.name}"]']
    settings = [*named, *case.settings]
    if case.scenario.startswith("rfc-v1/"):
        settings.insert(0, 'vm.profile="hardened"')
    chosen = ["--strategy", case.strategy] if case.strategy and verb == "explore" else []
    return shlex.join(
        [
            "stress",
            verb,
            "--config",
            f"configs/{case.scenario}.toml",
            *(word for item in settings for word in ("--set", item)),
            *chosen,
        ]
    )


def _origin(variant: Mutant | Control, confidence: str = "") -> Iterator[str]:
    """Where it comes from, what the numbers in that mean, the subjects of the commits, and how sure
    that is."""
    yield "origin"
    yield from _wrapped(variant.origin + confidence)
    numbers = [
        f"{number}: {NUMBERS[number]}"
        for number in cited_in(variant.origin)
        if number not in cited_in(variant.title)
    ]
    for line in (*numbers, *commits.named_in(variant.origin)):
        yield from textwrap.wrap(
            line, WIDTH, initial_indent="    ", subsequent_indent=" " * 8, break_on_hyphens=False
        )
    yield ""


def _block(title: str, text: str) -> Iterator[str]:
    yield title
    yield from _wrapped(text)
    yield ""


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


def _continued(command: str) -> Iterator[str]:
    """A command over several lines, as a shell takes it."""
    line = " "
    for piece in command.replace(" --", "\n--").split("\n"):
        if len(line) + 1 + len(piece) > WIDTH - 2:
            yield f"{line} \\"
            line = "     "
        line = f"{line} {piece}"
    yield line


def _story(variant: Mutant | Control) -> Iterator[str]:
    """The smallest interleaving, one column for each who takes part."""
    if variant.story:
        yield "smallest interleaving"
        who = max(len(step.partition(": ")[0]) for step in variant.story)
        for number, step in enumerate(variant.story, 1):
            actor, _, what = step.partition(": ")
            head = f"  {number}  {actor:<{who}}  "
            yield from textwrap.wrap(
                what or step,
                WIDTH,
                initial_indent=head,
                subsequent_indent=" " * len(head),
                break_on_hyphens=False,
            )
        yield ""


def _parts(variant: Mutant | Control) -> Iterator[str]:
    """Where the code is, and what it replaces."""
    yield "code"
    for part in variant.parts:
        base = part.__mro__[1]
        yield (
            f"  {part.__module__.replace('.', '/')}.py: {part.__name__} in place of "
            f"{base.__module__}.{base.__name__}"
        )
        names = [
            name for name in dict.fromkeys(overridden(part, base)) if callable(getattr(part, name))
        ]
        yield from textwrap.wrap(
            f"replaces {', '.join(f'{name}()' for name in names)}",
            WIDTH,
            initial_indent="    ",
            subsequent_indent=" " * 8,
        )
    yield ""


def _evidence(mutant: Mutant) -> Iterator[str]:
    """What the harness prints, found here and now under control, with a schedule of few turns, and
    how it came to that."""
    found = kill(mutant)
    if found is None:
        yield f"not shown within {LIMIT_S:.0f} s: see 'stress selftest {mutant.name}'"
        return
    yield (
        f"the report (schedule {found.after_schedules:,} of strategy {found.strategy}, after "
        f"{found.after_s:.2f} s; with fewer turns now)"
    )
    case = mutant.controlled
    minimiser = Minimiser(
        case.scenario,
        (),
        report_of(found, mutant).signature,
        predicted=found.predicted,
        first=False,
    )
    with pinned():
        small = minimiser.simplify(scenario_of(case, mutant), found.schedule)
    failure = small.failure if small is not None else found
    report = report_of(failure, mutant)
    yield report.render()
    if small is not None:
        schedule = stored(case.scenario, small.scenario, (), failure)
        yield explanation.course(
            explain_stored(schedule, tries=CONTINUATIONS, about={report.signature})
        ).rstrip("\n")


def report_of(failure: Failure, mutant: Mutant) -> Report:
    """The first expected report of a failure, which others may precede; the state at rest only
    where nothing was seen before."""
    expected = [report for report in failure.reports if report.names() & set(mutant.expects)]
    return min(
        expected, key=lambda report: report.rule not in mutant.expects, default=failure.report
    )


def kill(mutant: Mutant) -> Failure | None:
    """The first expected failure under control, with a fixed seed."""
    scenario = scenario_of(mutant.controlled, mutant)
    strategy = mutant.controlled.strategy or scenario.explore.strategy
    wanted = frozenset(scenario.expect.rules)
    for seed in range(1, TRIES + 1):
        with pinned():
            tally = exploration_for(
                ExploreRequest(scenario, mutant.controlled.scenario, seed, strategy), seed
            ).run(SearchBudget(seconds=LIMIT_S / TRIES, wanted=wanted))
        found = next(
            (failure for failure in tally.failures.values() if failure.names() & wanted), None
        )
        if found is not None:
            return found
    return None
