"""The `[script]` table of a scenario: who does what, what is done before the start, and what is
wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import frozen

from stress.scenario.errors import Problem
from stress.scenario.names import nearest
from stress.scenario.operations import (
    CPU,
    FIRST_GFN,
    REGION,
    SLOT,
    VERBS,
    VOCABULARY,
    Op,
    OpError,
    gfns_of,
    kind_of,
    parse,
)
from stress.scenario.types import Scenario

SETUP = "setup"
"""The key of what is done before the start."""
WORKER = "memslot-worker"

Place = Callable[[str], str]
"""The file and line of a key."""


@frozen
class Script:
    """What the actors do: `parts` by actor; `setup` before the start, the memslot updates first,
    with who does it."""

    parts: dict[str, tuple[Op, ...]]
    setup: tuple[tuple[str, Op], ...] = ()

    def part(self, actor: str) -> tuple[Op, ...]:
        """What this actor does; nothing if the script does not name it."""
        return self.parts.get(actor, ())

    def slot_updates(self) -> list[Op]:
        """The memslot updates before the start."""
        return [op for name, op in self.setup if name == WORKER]

    def turns(self) -> list[tuple[str, Op]]:
        """What the actors do before the start, one after the other, with who does it."""
        return [(name, op) for name, op in self.setup if name != WORKER]


def script_of(scenario: Scenario) -> Script | None:
    """The scenario's script; None when its actors draw what they do. Raises `OpError` if a line is
    wrong."""
    if not scenario.script:
        return None
    parts = {
        name: tuple(parse(line, kind_of(name)) for line in lines)
        for name, lines in scenario.script.items()
        if name != SETUP
    }
    return Script(parts, tuple(prepared(line) for line in scenario.script.get(SETUP, ())))


def prepared(line: str) -> tuple[str, Op]:
    """One line of the setup: "vcpu0: write 0x0", or a memslot update; raises `OpError`."""
    actor, separator, text = line.rpartition(":")
    if not separator:
        return WORKER, parse(text, WORKER)
    actor = actor.strip()
    if not kind_of(actor):
        raise OpError(
            f"unknown actor {actor!r}",
            "the name of an actor, such as vcpu0",
            nearest(actor, VOCABULARY),
        )
    return actor, parse(text, kind_of(actor))


def players(scenario: Scenario) -> list[str]:
    """The actors of a scenario that can have a script."""
    actors, exported = scenario.actors, scenario.vm.have_exported_tdp
    names = [f"vcpu{number}" for number in range(scenario.vm.vcpus)]
    if actors.memslot_worker.enabled and scenario.memory.churn_count():
        names.append(WORKER)
    names += [f"host{number}" for number in range(actors.host.threads)]
    names += ["dirty-logger"] if actors.dirty_log.enabled else []
    names += ["nx-admin"] if actors.nx.enabled and actors.nx.toggles else []
    names += ["nx-recovery"] if actors.nx.enabled and actors.nx.recovers else []
    names += [f"exporter{number}" for number in range(actors.exporter.threads if exported else 0)]
    kinds = ("engine", "device") if actors.consumer.engines else ("device",)
    devices = range(actors.consumer.devices if exported else 0)
    return [*names, *(f"{kind}{number}" for number in devices for kind in kinds)]


# What is wrong with it.


def wrong_lines(table: Any, at: Place) -> Iterator[Problem]:
    """Lines that are no operation of their actor, in a table that need not even be one."""
    for name, lines in table.items() if isinstance(table, dict) else ():
        for key, line in _keyed(name, lines):
            try:
                if name == SETUP:
                    prepared(line)
                elif kind_of(name):
                    parse(line, kind_of(name))
            except OpError as error:
                yield Problem(at(key), key, error.found, error.expected, error.hint)


def misfits(scenario: Scenario, at: Place) -> Iterator[Problem]:
    """Actors that do not take part, and frames, slots and pages that are not there."""
    cast = players(scenario)
    for name, lines in scenario.script.items():
        if name != SETUP and name not in cast:
            expected = "one of " + ", ".join([SETUP, *cast])
            yield Problem(
                at(f"script.{name}"),
                f"script.{name}",
                "no actor of this scenario",
                expected,
                nearest(name, [SETUP, *cast]),
            )
            continue
        for key, line in _keyed(name, lines):
            try:
                actor, op = prepared(line) if name == SETUP else (name, parse(line, kind_of(name)))
            except OpError:
                continue  # one of the wrong lines
            if name == SETUP and actor not in (WORKER, *cast):
                yield Problem(
                    at(key),
                    key,
                    f"{actor} is no actor of this scenario",
                    "one of " + ", ".join(cast),
                    nearest(actor, cast),
                )
            for found, expected in _beyond(scenario, op):
                yield Problem(at(key), key, f"{op}: {found}", expected)


def _keyed(name: str, lines: Any) -> Iterator[tuple[str, str]]:
    """The dotted key of each line."""
    for number, line in enumerate(lines if isinstance(lines, list | tuple) else ()):
        if isinstance(line, str):
            yield f"script.{name}.{number}", line


def _beyond(scenario: Scenario, op: Op) -> Iterable[tuple[str, str]]:
    """What an operation names that the scenario does not have: what was found, and what would be
    right."""
    frames = scenario.vm.entries**scenario.vm.levels
    memory = scenario.memory
    for gfn in gfns_of(op):
        if gfn >= frames:
            yield f"there is no gfn {gfn:#x}", f"a gfn up to {frames - 1:#x}"
    match VERBS[op.name].arguments[:1]:
        case (argument,) if argument is SLOT and op.args[0] >= memory.churn_count():
            yield (
                f"there is no churn slot {op.args[0]}",
                f"a churn slot below {memory.churn_count()}",
            )
        case (argument,) if argument is CPU and op.args[0] >= scenario.vm.pcpus:
            yield f"there is no physical CPU {op.args[0]}", f"vm.pcpus above {op.args[0]}"
        case (argument,) if argument is REGION:
            regions = [*memory.fixed_regions(), *memory.churn_regions()]
            yield from _beyond_region(regions, *op.args[:3])
        case (argument,) if argument is FIRST_GFN and not op.args[0] < op.args[1] <= frames:
            yield "no range of guest frames", f"FIRST < LAST <= {frames:#x}"
        case _:
            pass


def _beyond_region(
    regions: list[int], number: int, first: int, last: int
) -> Iterable[tuple[str, str]]:
    if number >= len(regions):
        yield f"there is no region {number}", f"a region below {len(regions)}"
    elif not first < last <= regions[number]:
        yield f"no range of region {number}", f"FIRST < LAST <= {regions[number]}"
