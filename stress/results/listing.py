"""A result in one line: what a list of thousands of them shows, sorts and filters by."""

from __future__ import annotations

import json
import re
import time
from calendar import timegm
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from attrs import evolve, frozen

from stress.results.kinds import FILES, Kind
from stress.results.serialise import Format
from stress.results.store import is_gone
from stress.results.verdict import Verdict

NAME: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d)-(\d\d)-(\d\d)Z-(.+)-s(\d+)-[0-9a-f]{6}")
"""The names that stress gives to result directories."""
DAMAGED: Final = "damaged"
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@frozen
class ListedResult:
    """One result. `status` is running, finished, interrupted, killed, unfinished (a study that can
    be resumed) or damaged; `started` is UTC, `findings` counts what must not have been found (for a
    selftest: variants that are not as they should be), `told` is the first reason for the verdict,
    `design` what was run where that is not the default, `pid` and `pid_started` whose it is."""

    directory: str
    kind: Kind
    name: str
    verdict: str
    status: str
    seed: int | None
    started: str
    wall_s: float
    findings: int
    design: str
    told: str
    version: str
    python: str
    gil_enabled: bool
    pid: int | None = None
    pid_started: float | None = None


@frozen
class Listing:
    """Results below one directory, oldest first."""

    results: str
    entries: tuple[ListedResult, ...]


LISTING_FORMAT: Final = Format(Listing, 1, "stress-listing")


@frozen
class Filter:
    """Which results are wanted; what is empty or None does not matter. `since` and `before` are UTC
    texts as `started` is."""

    names: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    since: str | None = None
    before: str | None = None

    def takes(self, entry: ListedResult) -> bool:
        """Whether `entry` is wanted. A name may have wildcards; it is that of the scenario, or the
        directory's."""
        named = not self.names or any(
            fnmatchcase(text, name) for name in self.names for text in (entry.name, entry.directory)
        )
        judged = not self.verdicts or entry.verdict in self.verdicts
        of_kind = not self.kinds or entry.kind in self.kinds
        in_time = (self.since is None or entry.started >= self.since) and (
            self.before is None or entry.started < self.before
        )
        return named and judged and of_kind and in_time


def moment(text: str, now: float) -> str | None:
    """An age before `now` or a date as UTC text; None for what is neither."""
    age = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if age is not None:
        return _utc(now - int(age[1]) * UNITS[age[2]])
    date = re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?Z?)?", text)
    if date is None:
        return None
    whole = f"{date[1]}T{date[2] or '00:00'}{date[3] or ':00'}Z"
    try:
        timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return None
    return whole


def entry_of(directory: Path, kind: Kind, text: str, written: float) -> ListedResult:
    """What the JSON text of a result says of it; one that cannot be understood is damaged, and
    dated by its name or by when it was written."""
    try:
        data = json.loads(text)
        return _READERS[kind](directory, data)
    except (
        *(LookupError, TypeError, ValueError, ArithmeticError, AttributeError),
        RecursionError,
    ) as error:
        return _damaged(directory, kind, f"{FILES[kind]} is damaged: {error!r}", written)


def alive(entry: ListedResult) -> ListedResult:
    """The entry, with what has become of its process since: a run that never came to its end, and
    is not going on, was killed."""
    if entry.status != "running" or not is_gone(entry.pid or 0, entry.pid_started or 0.0):
        return entry
    return evolve(entry, status="killed")


def chosen(
    entries: Iterable[ListedResult], wanted: Filter, last: int | None = None
) -> tuple[ListedResult, ...]:
    """Those that are wanted, oldest first; of them the newest `last`, where that is a number."""
    found = sorted(
        (entry for entry in entries if wanted.takes(entry)),
        key=lambda entry: (entry.started, entry.directory),
    )
    return tuple(found[max(0, len(found) - last) :] if last is not None else found)


def _of_run(directory: Path, data: dict[str, Any]) -> ListedResult:
    return _entry(
        directory,
        "run",
        data,
        status=str(data["status"]),
        wall_s=float(data["run_s"]),
        findings=len(data["findings"]),
        pid=int(data["pid"]),
        pid_started=float(data["pid_started"]),
    )


def _of_exploration(directory: Path, data: dict[str, Any]) -> ListedResult:
    return _entry(
        directory,
        "exploration",
        data,
        status=str(data.get("status", "finished")),
        wall_s=float(data["wall_s"]),
        findings=len(data["failures"]),
        pid=int(data.get("pid", 0)),
        pid_started=float(data.get("pid_started", 0.0)),
    )


def _of_selftest(directory: Path, data: dict[str, Any]) -> ListedResult:
    wrong = ("FIRED", "ALIVE", "other oracle", "error", "idle")
    rows = [row for group in ("mutants", "controls", "correct") for row in data[group]]
    whole = {**data, "name": "selftest", "started": data["date"]}
    findings = sum(row["state"] in wrong for row in rows) + sum(
        bool(each["problems"]) for each in data.get("detectors", ())
    )
    return _entry(
        directory,
        "selftest",
        whole,
        status=str(data.get("status", "finished")),
        wall_s=float(data["wall_s"]),
        findings=findings,
        pid=int(data.get("pid", 0)),
        pid_started=float(data.get("pid_started", 0.0)),
    )


def _of_study(directory: Path, data: dict[str, Any]) -> ListedResult:
    """A study has no verdict of its own: it is what its exit code says."""
    findings = sum(int(cell["findings"]) for cell in data["cells"])
    missing = int(data["planned"]) - int(data["made"])
    verdict = Verdict.FAIL if findings else Verdict.INCONCLUSIVE if missing else Verdict.PASS
    reasons = [f"{data['made']} of {data['planned']} runs, {findings} findings"]
    whole = {"environment": {}, **data, "verdict": verdict.name, "reasons": reasons, "seed": None}
    return _entry(
        directory,
        "study",
        whole,
        status="unfinished" if missing else "finished",
        wall_s=0.0,
        findings=findings,
        pid=int(data.get("pid", 0)),
        pid_started=float(data.get("pid_started", 0.0)),
    )


_READERS: Final = {
    "run": _of_run,
    "exploration": _of_exploration,
    "selftest": _of_selftest,
    "study": _of_study,
}


def _entry(directory: Path, kind: Kind, data: dict[str, Any], **more: Any) -> ListedResult:
    """What all kinds have."""
    stamp = NAME.fullmatch(directory.name)
    environment = data["environment"]
    seed = data.get("seed", int(stamp[6]) if stamp else None)
    reasons: Sequence[object] = data["reasons"]
    return ListedResult(
        directory=directory.name,
        kind=kind,
        name=str(data["name"]),
        verdict=str(data["verdict"]),
        seed=None if seed is None else int(seed),
        started=str(data.get("started") or _stamped(stamp) or ""),
        design=_design(data),
        told=str(reasons[0]) if reasons else "",
        version=str(environment.get("version", "")),
        python=str(environment.get("python", "")),
        gil_enabled=bool(environment.get("gil_enabled", True)),
        **more,
    )


def _design(data: dict[str, Any]) -> str:
    """Profile, policy, kernel and variants, those that are not what a run has without being
    told."""
    vm = data.get("scenario", {}).get("vm", {})
    usual = {"profile": "hardened", "policy": "keep-valid", "kernel": "6.6"}
    parts = [str(vm[key]) for key, value in usual.items() if vm.get(key, value) != value]
    return " ".join(
        [*parts, *(f"+{name}" for name in data.get("variants", vm.get("variants", ())))]
    )


def _damaged(directory: Path, kind: Kind, told: str, written: float) -> ListedResult:
    stamp = NAME.fullmatch(directory.name)
    started = _stamped(stamp) or _utc(written)
    seed = int(stamp[6]) if stamp else None
    name = stamp[5] if stamp else directory.name
    return ListedResult(
        directory.name, kind, name, DAMAGED, DAMAGED, seed, started, 0.0, 0, "", told, "", "", True
    )


def _stamped(stamp: re.Match[str] | None) -> str | None:
    return f"{stamp[1]}T{stamp[2]}:{stamp[3]}:{stamp[4]}Z" if stamp is not None else None


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(0.0, seconds)))
