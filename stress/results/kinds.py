"""What kinds of result there are, which file each is read from, and how a user names one."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, get_args

from stress.results.store import RUN_JSON
from stress.scenario.errors import ResultError

Kind = Literal["run", "exploration", "selftest", "study"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
FILES: Final[dict[Kind, str]] = {
    "run": RUN_JSON,
    "exploration": "explore.json",
    "selftest": "selftest.json",
    "study": "study.json",
}
"""The file that everything else in a result directory is made from."""


def kind_of(directory: Path) -> Kind | None:
    """The kind of result in a directory; None when there is none."""
    return next((kind for kind, name in FILES.items() if (directory / name).is_file()), None)


def find(what: str, results: Path) -> tuple[Path, Kind]:
    """The result that a user means: a directory, the name of one below `results` (`latest` is a
    link there), or a beginning that only one name has. Raises `ResultError` with what there is."""
    for candidate in (Path(what), results / what):
        kind = kind_of(candidate)
        if kind is not None:
            return candidate, kind
    known = (
        sorted(path for path in _directories(results) if path.name.startswith(what)) if what else []
    )
    if len(known) > 1:
        shown = "\n".join(f"  {path.name}" for path in known[:10])
        more = f"\n  and {len(known) - 10} more" if len(known) > 10 else ""
        raise ResultError(
            f"{what!r} is the beginning of {len(known)} results below {results}; give more of the "
            f"name:\n{shown}{more}"
        )
    kind = kind_of(known[0]) if known else None
    if kind is None:
        raise ResultError(_nothing(what, results, known[0] if known else None))
    return known[0], kind


def _nothing(what: str, results: Path, found: Path | None) -> str:
    looked = ", ".join(FILES.values())
    place = next(
        (
            path
            for path in (Path(what), results / what, found)
            if path is not None and path.is_dir()
        ),
        None,
    )
    if place is not None:
        return f"{place} holds no result: there is none of {looked} in it"
    return (
        f"there is no result {what!r}, neither a directory nor the beginning of a name below "
        f"{results}; see 'stress results list'"
    )


def _directories(results: Path) -> list[Path]:
    try:
        return [path for path in results.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []
