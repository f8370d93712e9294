"""Which lines of a recording `conform` reads: one line for each call of a function.

A recording may have several probes on one function, each with other arguments: their lines become
one, with the arguments of all. Of two functions that stand for the same thing, and call one
another, the outer one is read. Where a function has no probe, but its entry was recorded by the
function tracer, the entry stands in for the probe if its arguments do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from stress.trace.conform_translate import ConformNames
from stress.trace.events import Event, FieldError, parse_probe
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

INNER: Final = {
    "direct_page_fault": "kvm_tdp_page_fault",
    "kvm_make_all_cpus_request_except": "kvm_make_all_cpus_request",
}
"""Functions that others of the same canonical name call: of the two, the outer one is read."""


def read_lines(events: Iterable[Event]) -> list[Event]:
    """The events that `conform` reads, by their canonical names."""
    names = ConformNames()
    everything = [(event, names.of(event)) for event in events]
    calls = _Calls({name for _, name in everything if name.endswith("_ret")})
    for event, name in everything:
        calls.add(event, name)
    kept = calls.of_outer_functions()
    present = {event.name for event in kept}
    missing = {f"{name}()": name for name in STAND_INS - present}
    symbols = {f"{canonical}()": symbol for symbol, canonical in FUNCTIONS.items()}
    return [
        event._replace(name=missing[event.name], text=f"({symbols[event.name]}+0x0)")
        if event.name in missing
        else event
        for event in kept
    ]


class _Calls:
    """Events under their canonical names, those of one call in one line."""

    def __init__(self, returns: set[str]) -> None:
        self._returns = returns
        self._kept: list[Event] = []
        self._last: dict[int, int] = {}
        """Where the last event of each task is."""
        self._probes: dict[int, str] = {}
        """The own name of the last probe of each task."""
        self._functions: dict[str, set[str]] = {}
        """The functions of each canonical name that have probes."""

    def add(self, event: Event, name: str) -> None:
        """The next event, and its canonical name."""
        named = event._replace(name=name)
        if event.text.startswith("("):
            last = self._last.get(event.pid)
            if last is not None and self._joins(last, named, event.name):
                return
            self._functions.setdefault(name, set()).add(_function(event))
            self._probes[event.pid] = event.name
        self._last[event.pid] = len(self._kept)
        self._kept.append(named)

    def _joins(self, last: int, event: Event, probe: str) -> bool:
        """Whether it is another probe's line about the call that the task's line before is about:
        then that one gets its arguments."""
        before = self._kept[last]
        if before.name != event.name or not before.text.startswith("("):
            return False
        try:
            first, second = parse_probe(before.text), parse_probe(event.text)
        except FieldError:
            return False
        if first[:2] != second[:2] or any(
            first.args.get(name, value) != value for name, value in second.args.items()
        ):
            return False
        other = (
            probe != self._probes[event.pid]
            or first.args.keys() != second.args.keys()
            or f"{event.name}_ret" in self._returns  # no call returned, so none began
        )
        if other:
            more = (
                f" {name}={value}" for name, value in second.args.items() if name not in first.args
            )
            self._kept[last] = before._replace(text=before.text + "".join(more))
        return other

    def of_outer_functions(self) -> list[Event]:
        """All of them, but the probes of functions that are called by one that has a probe, too."""
        inner = {
            name: {each for each in functions if INNER.get(each) in functions}
            for name, functions in self._functions.items()
        }
        dropped = {name: functions for name, functions in inner.items() if functions}
        return [
            event
            for event in self._kept
            if event.name not in dropped
            or not event.text.startswith("(")
            or _function(event) not in dropped[event.name]
        ]


def _function(event: Event) -> str:
    try:
        return parse_probe(event.text).function
    except FieldError:
        return ""
