"""The certificate as lines of text, a hundred columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from stress.observe.close_calls import WITHIN
from stress.results.bounds import CONFIDENCE, percent
from stress.results.certificate import (
    COMMON,
    DISTURBANCES,
    Bound,
    Certificate,
    CloseCall,
    Disturbance,
)
from stress.results.known_kills import Kill, KnownKills

_WIDTH = 100
_INDENT = 15


def lines(certificate: Certificate) -> Iterator[str]:
    """A line or a few for each part."""
    yield heading(certificate.verdict)
    before = ""
    for name, text in parts(certificate):
        yield from _entry(name if name != before else "", text)
        before = name


def heading(verdict: str) -> str:
    """What the certificate may be read as."""
    return (
        f"what this {verdict} rests on"
        if verdict == "PASS"
        else f"what this run has done; it certifies nothing, as it is {verdict}"
    )


def parts(certificate: Certificate) -> Iterator[tuple[str, str]]:
    """Every part as (name, text). What risk is left, and what was not touched, is of no interest
    when something has failed."""
    yield "budget", certificate.budget
    yield "operations", operations(certificate)
    yield "obligations", obligations(certificate)
    if certificate.disturbances:
        yield (
            "disturbances",
            "; ".join(_disturbance(item) for item in certificate.disturbances),
        )
    yield "rules judged", rules(certificate)
    yield "close calls", close_calls(certificate)
    if certificate.verdict == "FAIL":
        return
    yield "would catch", would_catch(certificate.selftest)
    yield from (("risk left", text) for text in risk(certificate))
    yield from (("not touched", f"{gap.what}: {', '.join(gap.names)}") for gap in certificate.gaps)


def operations(certificate: Certificate) -> str:
    """How many of each kind."""
    total = sum(count for _, count in certificate.operations)
    return (
        f"{total:,}" + _listed(f"{kind} {count:,}" for kind, count in certificate.operations)
        if total
        else "none"
    )


def obligations(certificate: Certificate) -> str:
    """How many were met, and by how much the tightest was."""
    demanded = certificate.obligations
    met = [item for item in demanded if item.met]
    text = f"{len(met)} of {len(demanded)} met"
    if not met or len(met) < len(demanded):
        return text
    tightest = min(met, key=lambda item: item.reached / item.needed)
    return (
        f"{text}; the tightest: {tightest.counter} {tightest.reached:,}, {tightest.needed:,} needed"
    )


def rules(certificate: Certificate) -> str:
    """Every rule that had something to decide, with how often."""
    return (
        ", ".join(f"{rule} {_short(count)}" for rule, count in certificate.judged if count)
        or "none"
    )


def close_calls(certificate: Certificate) -> str:
    """Those that were seen, the commonest first."""
    seen = sorted(
        (call for call in certificate.close_calls if call.seen), key=lambda call: -call.seen
    )
    if not seen:
        return "none"
    grades = (
        (grade, [call for call in seen if call.grade == grade]) for grade in ("common", "rare")
    )
    text = "; ".join(f"{grade}: {', '.join(map(_call, calls))}" for grade, calls in grades if calls)
    near = ", ".join(call.name for call in seen if call.name in WITHIN)
    window = f"{near}: within {certificate.close}; " if near else ""
    return f"{text} ({window}common is {COMMON:g} per million operations)"


def would_catch(selftest: KnownKills | None) -> str:
    """What the last selftest says of this scenario and budget."""
    if selftest is None:
        return "no selftest among these results: run `stress selftest`"
    engine = "threads" if selftest.engine == "threads" else "the controlled engine"
    all_of_them = (
        f"{selftest.killed} of {selftest.tried} mutants are killed by {engine}, in "
        f"at most {selftest.slowest_s:.1f} s each"
    )
    own = f"with this scenario {'; '.join(map(_kill, selftest.here))}; " if selftest.here else ""
    return (
        f"{own}{all_of_them}, {selftest.within} of them within the time of this run, "
        f"each with its own scenario (selftest {selftest.directory}, {selftest.date}, version "
        f"{selftest.version})"
    )


def risk(certificate: Certificate) -> Iterator[str]:
    """What may still be wrong, with the assumption that it rests on."""
    if certificate.proof:
        yield certificate.proof
    if certificate.bounds:
        yield (
            f"no failure; with {100 * CONFIDENCE:.0f} % confidence its probability is below "
            + ", ".join(map(_bound, certificate.bounds))
        )
    yield from certificate.guarantees
    if certificate.assumption:
        yield f"assuming that {certificate.assumption}"
    if not (certificate.proof or certificate.bounds or certificate.guarantees):
        yield "not bounded by this run"


def _bound(bound: Bound) -> str:
    return f"{percent(bound.upper)} for each of {bound.trials:,} {bound.what}"


def _call(call: CloseCall) -> str:
    return f"{call.name} {call.seen:,}"


def _disturbance(item: Disturbance) -> str:
    attempts = f"{item.attempts:,} {DISTURBANCES.get(item.name, '')}".rstrip()
    return f"{item.name} {item.hits:,} of {attempts}"


def _kill(kill: Kill) -> str:
    soon = "" if kill.median_s is None else f" in {kill.median_s:.1f} s"
    return f"{kill.name} {kill.killed}/{kill.of}{soon}"


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10 * size:
            return f"{count // size:,}{letter}"
    return f"{count:,}"


def _listed(items: Iterable[str]) -> str:
    text = ", ".join(items)
    return f": {text}" if text else ""


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        f"{name:<{_INDENT - 2}}{text}",
        _WIDTH,
        initial_indent="  ",
        subsequent_indent=" " * _INDENT,
        break_on_hyphens=False,
    )
