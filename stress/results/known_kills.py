"""What the last `stress selftest` has shown: which mutants are caught, and how
soon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

SELFTEST_JSON = "selftest.json"
SCHEMA = 1
ENGINES = {
    "threads": "threads",
    "controlled": "controlled",
    "explore": "controlled",
    "control": "controlled",
}
"""How an entry may name its engine."""


@frozen
class Kill:
    """One mutant on one engine: caught in `killed` of `of` attempts, in the median after `median_s`
    seconds."""

    name: str
    engine: str
    scenario: str
    killed: int
    of: int
    median_s: float | None

    @property
    def always(self) -> bool:
        """Whether every attempt caught it."""
        return 0 < self.of <= self.killed


@frozen
class KnownKills:
    """The last selftest as one run sees it: `here` are the mutants that were tried with the run's
    own scenario, `within` counts all mutants that die in no more time than the run took."""

    date: str
    version: str
    directory: str
    engine: str
    tried: int
    killed: int
    slowest_s: float
    within: int
    here: tuple[Kill, ...] = ()


def known_kills(results: Path, engine: str, scenario: str, seconds: float) -> KnownKills | None:
    """What the newest selftest below `results` says about a run of this length; None when there is
    none to be read."""
    for path in sorted(results.glob(f"*/{SELFTEST_JSON}"), key=_written, reverse=True):
        data = None if path.parent.is_symlink() or not path.is_file() else _read(path)
        if data is not None:
            return _seen_from(data, path, engine, scenario, seconds)
    return None


def _seen_from(
    data: dict[str, Any], path: Path, engine: str, scenario: str, seconds: float
) -> KnownKills:
    kills = [kill for kill in _kills(data) if kill.engine == engine and kill.of > 0]
    caught = [kill for kill in kills if kill.always]
    return KnownKills(
        date=str(data.get("date", "at an unknown date")),
        version=str(data.get("version", "unknown")),
        directory=path.parent.name,
        engine=engine,
        tried=len(kills),
        killed=len(caught),
        slowest_s=max((kill.median_s or 0.0 for kill in caught), default=0.0),
        within=sum(kill.median_s is not None and kill.median_s <= seconds for kill in caught),
        here=tuple(kill for kill in kills if Path(kill.scenario).stem == scenario),
    )


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> dict[str, Any] | None:
    """A selftest of the known schema, with every rule on; whatever else lies there is not for
    us."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("off"):
        return None
    return data if isinstance(data.get("mutants"), list) else None


def _kills(data: dict[str, Any]) -> Iterator[Kill]:
    """The entries that can be understood."""
    for entry in data["mutants"]:
        try:
            median = entry.get("median_s")
            yield Kill(
                name=str(entry["name"]),
                engine=ENGINES[str(entry["engine"])],
                scenario=str(entry.get("scenario") or ""),
                killed=int(entry["killed"]),
                of=int(entry["of"]),
                median_s=None if median is None else float(median),
            )
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            continue
