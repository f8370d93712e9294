"""Which lines of a recording `conform` reads: one line for each call of a function.

A recording may have several probes on one function, each with other arguments: the one with the
most is read, the others are left out. Where a function has no probe, but its entry was recorded by
the function tracer, the entry stands in for the probe if its arguments do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from stress.trace.conform_translate import ConformNames
from stress.trace.events import Event, FieldError, ProbeEvent, parse_probe
from stress.trace.names import FUNCTIONS

STAND_INS: Final = frozenset(
    {
        "mn_end",
        "destroy_vm",
        "flush_shadow_all",
        "zap_all",
        "uninit_tdp",
        "flush_remote",
    }
)
"""Probes whose function's entry says as much. (Which vCPU is meant, an entry does not say.)"""


def read_lines(events: Iterable[Event]) -> list[Event]:
    """The events that `conform` reads, by their canonical names."""
    everything = list(events)
    wanted = _richest(everything)
    names = ConformNames()
    kept = []
    for event in everything:
        if event.text.startswith("(") and wanted.get(event.name, event.name) != event.name:
            continue
        kept.append(event._replace(name=names.of(event)))
    present = {event.name for event in kept}
    missing = {f"{name}()": name for name in STAND_INS - present}
    symbols = {f"{canonical}()": symbol for symbol, canonical in FUNCTIONS.items()}
    return [
        event._replace(name=missing[event.name], text=f"({symbols[event.name]}+0x0)")
        if event.name in missing
        else event
        for event in kept
    ]


def _richest(events: Iterable[Event]) -> dict[str, str]:
    """For each probe event's name, the name of the probe to read for the same function: the one
    with the most arguments, of equal ones the first."""
    probes: dict[str, ProbeEvent] = {}
    for event in events:
        if event.name not in probes and event.text.startswith("("):
            try:
                probes[event.name] = parse_probe(event.text)
            except FieldError:
                continue
    best: dict[tuple[str, str], str] = {}
    for name, probe in probes.items():
        key = probe.function, probe.caller and "return"
        if key not in best or len(probe.args) > len(probes[best[key]].args):
            best[key] = name
    return {name: best[probe.function, probe.caller and "return"] for name, probe in probes.items()}
