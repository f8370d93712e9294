"""The files that a run was made of besides its scenario, so that it can be made again, and only
from the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import frozen

from stress.scenario.errors import ResultError


@frozen
class VariantFile:
    """A Python file with variants: its path as it was given, and the SHA-256 of what was in it."""

    path: str
    sha256: str


def fingerprints(files: Iterable[str | Path]) -> tuple[VariantFile, ...]:
    """Each file once, with its digest. A file that can no longer be read has an empty one, which
    nothing equals."""
    return tuple(
        VariantFile(name, _digest(Path(name)) or "") for name in dict.fromkeys(map(str, files))
    )


def check(files: Iterable[VariantFile], where: str) -> None:
    """Raises `ResultError` naming every file that is missing, or is not what it was."""
    problems = list(_problems(files))
    if problems:
        raise ResultError(
            "\n".join(
                [
                    f"{where} cannot be run again as it was:",
                    *(f"  {problem}" for problem in problems),
                ]
            )
        )


def _problems(files: Iterable[VariantFile]) -> Iterator[str]:
    for file in files:
        found = _digest(Path(file.path))
        if found is None:
            base = (
                ""
                if Path(file.path).is_absolute()
                else f" below {Path.cwd()}, where this was called"
            )
            yield (
                f"variant file {file.path}: there is no such file{base}; put it back, or go to "
                "where the run was started"
            )
        elif found != file.sha256:
            yield (
                f"variant file {file.path}: it has changed since (SHA-256 was {file.sha256[:12]}, "
                f"is {found[:12]}); restore what was run"
            )


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
