"""`stress explore`: a campaign over one scenario, in one process or several, judged, stored and told."""

from __future__ import annotations

import json
import multiprocessing
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from attrs import define, evolve, field, frozen

from stress.engines.carrier import pinned
from stress.engines.exploration import ScenarioProgram
from stress.engines.session import variants_of
from stress.observe.points import POINTS
from stress.report import certificate_text
from stress.report.certificate import Certificate, as_plain
from stress.report.exploration import certificate_of_exploration
from stress.results import environment
from stress.results.selftests import KnownKills, known_kills
from stress.results.store import CONSOLE_TXT, RunDirectory
from stress.run import expected_of, suspects_of
from stress.scenario.load import unstructure
from stress.scenario.types import Scenario
from stress.search.campaign import Budget, Campaign, Tally
from stress.search.store import stored
from stress.search.strategies import EVERYTHING, is_exhaustive, strategy_for
from stress.variants import variants_from
from stress.verdict import Evidence, Judgement, Obligation, Verdict, judge

EXPLORE_JSON = "explore.json"
SLICE_S = 1.0
"""How long a process explores before it reports."""
PROGRAMS = 64
"""A scenario that draws its operations is explored with so many schedules of each draw, one draw after another."""


@frozen
class ExploreRequest:
    """What to explore: the scenario, variants from files, the strategy, and how much. `exhaustive`: a search that does not
    come to its end proves nothing. `jobs` is how many processes may share the work; a search that keeps a list of what is left
    cannot be shared, and runs in one."""

    scenario: Scenario
    name: str
    seed: int
    strategy: str
    variant_files: tuple[str, ...] = ()
    schedules: int | None = None
    seconds: float | None = None
    exhaustive: bool = False
    jobs: int = 1
    keep_going: bool = False

    @property
    def processes(self) -> int:
        """How many processes do explore."""
        return 1 if is_exhaustive(self.strategy) else self.jobs


@define
class Explored:
    """The result: the tally, the verdict, and where it is kept."""

    request: ExploreRequest
    tally: Tally
    judgement: Judgement
    wall_s: float
    directory: RunDirectory | None = None
    files: list[str] = field(factory=list)
    selftest: KnownKills | None = None

    @property
    def certificate(self) -> Certificate:
        """What the verdict rests on."""
        request, tally = self.request, self.tally
        asked = [f"{request.schedules:,} schedules" if request.schedules else "", f"{request.seconds:g} s" if request.seconds else ""]
        wanted = " or ".join(filter(None, asked)) or "everything"
        return certificate_of_exploration(
            request.scenario,
            request.strategy,
            f"{tally.schedules:,} schedules of {tally.steps:,} steps in {self.wall_s:.1f} s; {wanted} asked for",
            tally,
            self.judgement.verdict,
            obligations_of(request.scenario, tally),
            self.selftest,
            -(-tally.schedules // PROGRAMS),
        )


def explore(request: ExploreRequest, on_progress: Callable[[Tally], None] = lambda _: None) -> Explored:
    """Explore, and judge what came of it."""
    start = time.perf_counter()
    if request.processes > 1:
        tally = _in_processes(request, on_progress)
    else:
        with pinned():
            tally = campaign_for(request, request.seed).run(_budget(request), on_progress)
    return Explored(request, tally, judgement_of(request, tally), time.perf_counter() - start)


def campaign_for(request: ExploreRequest, seed: int) -> Campaign:
    """The campaign of one process."""
    scenario = request.scenario
    drawn = not scenario.script
    exhaustive = is_exhaustive(request.strategy)
    base = seed if drawn else 0
    return Campaign(
        ScenarioProgram(request.name, scenario, variants_from(request.variant_files)),
        strategy_for(request.strategy, seed),
        seeds=(lambda number: base + number // PROGRAMS) if drawn and not exhaustive else (lambda _: base),
        exercised=True,
    )


def _budget(request: ExploreRequest) -> Budget:
    return Budget(request.schedules, request.seconds, not request.keep_going, frozenset(expected_of(request.scenario)))


_state: dict[tuple[int, int], Campaign] = {}
"""A worker process's campaign, continued from slice to slice."""


def _slice(request: ExploreRequest, slot: int, schedules: int | None, seconds: float) -> Tally:
    """In a worker: go on for a while, and report what that added."""
    key = (slot, request.seed)
    campaign = _state.get(key)
    if campaign is None:
        campaign = _state[key] = campaign_for(request, request.seed + slot * 1_000_003)
    campaign.tally = Tally()
    with pinned(slot):
        return campaign.run(evolve(_budget(request), schedules=schedules, seconds=seconds))


def _in_processes(request: ExploreRequest, on_progress: Callable[[Tally], None]) -> Tally:
    """One process a job, each with seeds of its own, until the budget is used or a failure ends it."""
    total = Tally()
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    jobs = request.processes
    share = -(-request.schedules // jobs) if request.schedules is not None else None
    left = [share] * jobs
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(jobs)]
    try:
        running: dict[Future[Tally], int] = {}

        def submit(slot: int) -> None:
            elapsed = time.perf_counter() - start
            seconds = SLICE_S if request.seconds is None else min(SLICE_S, request.seconds - elapsed)
            if seconds > 0 and left[slot] != 0:
                running[pools[slot].submit(_slice, request, slot, left[slot], seconds)] = slot

        for slot in range(jobs):
            submit(slot)
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                slot = running.pop(future)
                part = future.result()
                total.seconds = time.perf_counter() - start
                total.merge(part, total.seconds - part.seconds)
                known = left[slot]
                left[slot] = None if known is None else max(0, known - part.schedules)
                if not total.errors and not _budget(request).is_met(total.failures.values()):
                    submit(slot)
            on_progress(total)
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
    total.curve.append((total.schedules, total.classes))
    return total


def obligations_of(scenario: Scenario, tally: Tally) -> tuple[Obligation, ...]:
    """What the scenario demands of all schedules together, beside what was reached."""
    return tuple(Obligation(name, needed, tally.counters.get(name, 0)) for name, needed in scenario.obligations.items())


def judgement_of(request: ExploreRequest, tally: Tally) -> Judgement:
    """The verdict. A limit that was hit is never a pass."""
    scenario = request.scenario
    obligations = obligations_of(scenario, tally)
    expected = expected_of(scenario)
    finished = tally.schedules - tally.cut - tally.unfinished
    judgement = judge(
        Evidence(
            findings=len(tally.failures),
            harness_errors=tuple(tally.errors),
            obligations=obligations,
            expected_missing=() if tally.fired() & set(expected) else expected,
            completed=_completed(request, tally),
            clean_end=not tally.unfinished or bool(tally.failures),
            quiescent_checks=finished,
        )
    )
    wants_all = request.exhaustive or request.strategy in EVERYTHING
    if wants_all and not tally.exhausted and judgement.verdict <= Verdict.INCONCLUSIVE:
        others = judgement.reasons if judgement.verdict is Verdict.INCONCLUSIVE else ()
        return Judgement(Verdict.INCONCLUSIVE, ("the search did not come to its end: what it has not seen may be broken", *others))
    return judgement


def _completed(request: ExploreRequest, tally: Tally) -> bool:
    """Whether the budget was used, or the space exhausted, or a failure ended it."""
    used = request.schedules is not None and tally.schedules >= request.schedules
    timed = request.seconds is not None and tally.seconds >= request.seconds * 0.99
    return used or timed or tally.exhausted or bool(tally.failures)


def keep(explored: Explored, results: Path) -> RunDirectory:
    """Store the result with one file for each failing schedule; returns the directory."""
    request = explored.request
    directory = RunDirectory.create(results, f"explore-{request.name}", request.seed)
    explored.directory = directory
    explored.selftest = known_kills(results, "controlled", request.name, explored.wall_s)
    for number, failure in enumerate(explored.tally.failures.values(), 1):
        name = f"schedule-{number}.json"
        directory.write_text(name, stored(request.name, request.scenario, request.variant_files, failure).to_json())
        explored.files.append(str(directory.path / name))
    directory.write_text(EXPLORE_JSON, json.dumps(as_data(explored), indent=1))
    directory.write_text(CONSOLE_TXT, "\n".join(lines(explored)) + "\n")
    return directory


def as_data(explored: Explored) -> dict[str, Any]:
    """The result as plain data."""
    request, tally = explored.request, explored.tally
    return {
        "schema": 2,
        "kind": "stress-exploration",
        "name": request.name,
        "verdict": explored.judgement.verdict.name,
        "reasons": list(explored.judgement.reasons),
        "strategy": request.strategy,
        "seed": request.seed,
        "jobs": request.processes,
        "wall_s": round(explored.wall_s, 3),
        "schedules": tally.schedules,
        "schedules_per_s": round(tally.schedules / max(explored.wall_s, 1e-9), 1),
        "steps": tally.steps,
        "steps_per_s": round(tally.steps / max(explored.wall_s, 1e-9)),
        "classes": tally.classes,
        "unseen_mass": tally.unseen_mass,
        "curve": tally.curve,
        "cut": tally.cut,
        "unfinished": tally.unfinished,
        "exhausted": tally.exhausted,
        "failing": tally.failing,
        "members": tally.members,
        "counters": tally.counters,
        "judged": tally.judged,
        "points": [name for name in POINTS if name in tally.points],
        "certificate": as_plain(explored.certificate),
        "failures": [
            {
                "signature": failure.report.signature,
                "others": [report.signature for report in failure.others],
                "headline": failure.report.headline,
                "predicted": failure.predicted,
                "schedule": failure.schedule.encode(),
                "after_schedules": failure.after_schedules,
                "after_s": round(failure.after_s, 4),
                "strategy": failure.strategy,
                "splat": failure.report.render(),
            }
            for failure in tally.failures.values()
        ],
        "environment": {
            "python": environment.observe().python,
            "gil_enabled": environment.gil_enabled(),
            "cpus": os.cpu_count(),
        },
        "scenario": unstructure(request.scenario),
    }


def lines(explored: Explored) -> Iterator[str]:
    """The console summary."""
    request, tally = explored.request, explored.tally
    vm = request.scenario.vm
    yield f"{request.name}: {request.scenario.title}".rstrip(": ")
    variants = [*vm.variants, *(Path(file).stem for file in request.variant_files)]
    yield f"policy {vm.policy}, profile {vm.profile}, kernel {vm.kernel}" + (f", variants {', '.join(variants)}" if variants else "")
    yield f"strategy {request.strategy}, seed {request.seed}, {_processes(request)}"
    yield ""
    rate = max(explored.wall_s, 1e-9)
    yield f"schedules  {tally.schedules:,} in {explored.wall_s:.2f} s, {tally.schedules / rate:,.0f} a second"
    yield f"steps      {tally.steps:,}, {tally.steps / rate:,.0f} a second, {tally.steps / max(1, tally.schedules):,.0f} a schedule"
    yield f"classes    {tally.classes:,} distinct orders of events"
    yield from _coverage(request, tally)
    for name, counts in tally.members.items():
        yield f"  {name:<10} {counts.get('schedules', 0):>9,} schedules {counts.get('classes', 0):>9,} new classes"
    yield ""
    yield from _failures(explored)
    yield verdict_line(explored)
    yield from certificate_text.lines(explored.certificate)


def _processes(request: ExploreRequest) -> str:
    count = request.processes
    why = f" (not {request.jobs}: {request.strategy} cannot be shared)" if count < request.jobs else ""
    return f"{count} process{'es' if count > 1 else ''}{why}"


def _coverage(request: ExploreRequest, tally: Tally) -> Iterator[str]:
    if tally.exhausted:
        what = "every order of events" if request.strategy in EVERYTHING else f"everything within the bound of {request.strategy}"
        yield f"coverage   EXHAUSTED: {what}; {tally.cut:,} schedules were given up as repetitions"
        return
    if is_exhaustive(request.strategy):
        left = "unknown" if tally.remaining is None else f"about {tally.remaining:,.0f} (an estimate that tends to grow)"
        yield f"coverage   not exhausted; schedules left: {left}"
    else:
        yield f"coverage   {tally.unseen_mass:.1%} of what such schedules meet was never seen (Good-Turing)"
    points = tally.curve[:: max(1, len(tally.curve) // 6)] if tally.curve else []
    yield "saturation " + ", ".join(f"{classes:,} after {schedules:,}" for schedules, classes in points)


def _failures(explored: Explored) -> Iterator[str]:
    request = explored.request
    known = [variant for variant in [*variants_of(request.scenario), *variants_from(request.variant_files)] if variant.expects]
    for number, failure in enumerate(explored.tally.failures.values()):
        yield failure.report.render()
        suspects = suspects_of(failure.report, known)
        if suspects:
            yield f"known defects of this build that break rule {failure.report.rule}:"
            yield from (f"  {title}" for title in suspects)
        yield from (f"also: {report.rule} {report.headline}" for report in failure.others)
        how = (
            "a race that did no harm in it"
            if failure.predicted
            else f"{len(failure.schedule.choices)} steps, {len(failure.schedule.turns())} turns"
        )
        yield f"found by {failure.strategy} in schedule {failure.after_schedules:,}, after {failure.after_s:.2f} s: {how}"
        if number < len(explored.files):
            file = explored.files[number]
            yield f"replay:   stress replay {file}"
            yield f"minimise: stress minimise {file}"
        yield from textwrap.wrap(f"schedule: {failure.schedule.encode()}", 100, subsequent_indent="  ", break_on_hyphens=False)
        yield ""


def verdict_line(explored: Explored) -> str:
    """The verdict in one line."""
    request, judgement = explored.request, explored.judgement
    expected = expected_of(request.scenario)
    note = ""
    if expected:
        fired = explored.tally.fired()
        seen = [name for name in expected if name in fired]
        note = f"; expected {' or '.join(expected)}: {'seen ' + ', '.join(seen) if seen else 'NOT seen'}"
    return f"{judgement.verdict.name}  {request.name}, {request.strategy}, seed {request.seed}: {'; '.join(judgement.reasons)}{note}"
