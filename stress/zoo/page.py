"""One variant explained (`stress explain NAME`): the rule, where it comes from, the interleaving, the splat."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator

from mmu.invariants import names_of
from mmu.report import RULES
from stress.engines.carrier import pinned
from stress.explore import ExploreRequest, campaign_for
from stress.search.campaign import Budget, Failure
from stress.zoo.mutant import Case, Control, Mutant
from stress.zoo.registry import entry, scenario_of

CONFIDENCE = {"V": "verified", "Vt": "title and fix verified", "M": "from memory", "A": "found by analysis"}
"""What the reference's marks mean."""
LIMIT_S = 20.0
TRIES = 5


def page(name: str) -> str:
    """The page of a mutant, a defect of the posted series, or an inverted control; raises `StressError` for other names."""
    found = entry(name)
    return "\n".join(_of_mutant(found) if isinstance(found, Mutant) else _of_control(found))


def _of_mutant(mutant: Mutant) -> Iterator[str]:
    yield from _head(mutant)
    yield from _block("origin", f"{mutant.origin} [{mutant.confidence}: {CONFIDENCE[mutant.confidence]}]")
    yield from _block("rule broken", mutant.rule)
    yield from _story(mutant)
    yield "must be caught by"
    yield from (f"  {rule:<5}{RULES.get(rule, '')}" for rule in mutant.expects)
    yield ""
    yield from _parts(mutant)
    yield "see it"
    yield f"  {command('explore', mutant.controlled, mutant)}"
    if mutant.threads is not None:
        yield f"  {command('run', mutant.threads, mutant)}"
    else:
        yield from textwrap.wrap(f"real threads cannot show it: {mutant.threads_cannot}", 100, initial_indent="  ", subsequent_indent="  ")
    yield ""
    yield from _splat(mutant)


def _of_control(control: Control) -> Iterator[str]:
    yield from _head(control)
    yield "an inverted control: it looks wrong and is right, and nothing may fire"
    yield ""
    if control.origin:
        yield from _block("origin", control.origin)
    yield from _block("looks wrong because", control.looks_wrong)
    yield from _block("is right because", control.right_because)
    yield from _story(control)
    yield from _parts(control)
    yield "must stay silent on"
    for case in control.tried:
        yield f"  {command('explore' if case.scenario.startswith('explore/') else 'run', case, control)}"


def command(verb: str, case: Case, variant: Mutant | Control) -> str:
    """The command that runs a case by hand."""
    named = [] if case.scenario == f"BUSTED/{variant.name}" else [f'vm.variants=["{variant.name}"]']
    settings = [*named, *case.settings]
    if case.scenario.startswith("rfc-v1/"):
        settings.insert(0, 'vm.profile="hardened"')
    chosen = ["--strategy", case.strategy] if case.strategy and verb == "explore" else []
    return shlex.join(
        ["stress", verb, "--config", f"configs/{case.scenario}.toml", *(word for item in settings for word in ("--set", item)), *chosen]
    )


def _head(variant: Mutant | Control) -> Iterator[str]:
    yield variant.name
    yield "=" * len(variant.name)
    yield from textwrap.wrap(variant.title, 100)
    yield ""


def _block(title: str, text: str) -> Iterator[str]:
    yield title
    yield from textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    yield ""


def _story(variant: Mutant | Control) -> Iterator[str]:
    """The smallest interleaving, one column for each who takes part."""
    if variant.story:
        yield "smallest interleaving"
        who = max(len(step.partition(": ")[0]) for step in variant.story)
        for number, step in enumerate(variant.story, 1):
            actor, _, what = step.partition(": ")
            head = f"  {number}  {actor:<{who}}  "
            yield from textwrap.wrap(what or step, 100, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
        yield ""


def _parts(variant: Mutant | Control) -> Iterator[str]:
    """Where the code is."""
    yield "code"
    for part in variant.parts:
        base = part.__mro__[1]
        yield f"  {part.__module__.replace('.', '/')}.py: {part.__name__} in place of {base.__module__}.{base.__name__}"
    yield ""


def _splat(mutant: Mutant) -> Iterator[str]:
    """What the harness prints: found here and now, under control."""
    failure = kill(mutant)
    if failure is None:
        yield f"not shown within {LIMIT_S:.0f} s: see 'stress selftest {mutant.name}'"
        return
    expected = set(mutant.expects)
    wanted = next((report for report in failure.reports if names_of(report) & expected), failure.report)
    yield f"the report (found by {failure.strategy} in schedule {failure.after_schedules:,}, after {failure.after_s:.2f} s)"
    yield wanted.render()


def kill(mutant: Mutant) -> Failure | None:
    """The first expected failure under control, with a fixed seed."""
    scenario = scenario_of(mutant.controlled, mutant)
    strategy = mutant.controlled.strategy or scenario.explore.strategy
    wanted = frozenset(scenario.expect.rules)
    for seed in range(1, TRIES + 1):
        with pinned():
            tally = campaign_for(ExploreRequest(scenario, mutant.controlled.scenario, seed, strategy), seed).run(
                Budget(seconds=LIMIT_S / TRIES, wanted=wanted)
            )
        found = next((failure for failure in tally.failures.values() if failure.names() & wanted), None)
        if found is not None:
            return found
    return None
