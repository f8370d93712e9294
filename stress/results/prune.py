"""Removing results that nobody needs any more: what would go is a value, so that it can be told
before anything is deleted."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from stress.results.kinds import FILES
from stress.results.listing import NAME, ListedResult
from stress.results.store import LATEST, NEW, is_gone
from stress.scenario.errors import ResultError

GOING: Final = ".pruned-"
"""How a directory is called while it is being deleted: a prune that is killed leaves no half
results."""
STILL_WRITING_S: Final = 60.0
"""A run that wrote so lately is taken to be going on, even if no process of its number is here: it
may be on another machine."""


@frozen
class Plan:
    """What goes, oldest first, with its size in bytes, and how many stay for which reason."""

    going: tuple[ListedResult, ...]
    sizes: tuple[int, ...]
    spared: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.sizes)


def plan(
    results: Path, chosen: Sequence[ListedResult], keep: int | None, now: float | None = None
) -> Plan:
    """What of `chosen` (oldest first) may be deleted: all but the newest `keep`, what is going on,
    and what somebody has renamed, which is how a result is kept for good."""
    now = time.time() if now is None else now
    mine = [entry for entry in chosen if NAME.fullmatch(entry.directory)]
    done = [entry for entry in mine if not _going_on(results, entry, now)]
    going = done[: max(0, len(done) - (keep or 0))]
    spared = (
        ("whose names stress has not given (rename a result to keep it)", len(chosen) - len(mine)),
        ("going on", len(mine) - len(done)),
        ("the newest", len(done) - len(going)),
    )
    sizes = tuple(size_of(results / entry.directory) for entry in going)
    return Plan(tuple(going), sizes, tuple((why, count) for why, count in spared if count))


def carry_out(results: Path, wanted: Plan) -> int:
    """Delete what the plan says; returns how many directories this call has deleted. Raises
    `ResultError` where it may not."""
    sweep(results)
    deleted = 0
    for entry in wanted.going:
        hidden = results / f"{GOING}{secrets.token_hex(4)}"
        try:
            (results / entry.directory).rename(hidden)
        except FileNotFoundError:  # somebody else prunes, too
            continue
        except OSError as error:
            _relink(results)
            raise ResultError(
                f"cannot delete {results / entry.directory}: {error.strerror}; {deleted} were "
                "deleted before it"
            ) from None
        shutil.rmtree(hidden, ignore_errors=True)
        deleted += 1
    _relink(results)
    return deleted


def sweep(results: Path) -> None:
    """Delete what a prune that was killed has left behind."""
    for left in results.glob(f"{GOING}*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in results.glob(f"{NEW}*"):  # a result that was killed before it had a record
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STILL_WRITING_S:
                shutil.rmtree(left, ignore_errors=True)


def size_of(directory: Path) -> int:
    """Bytes in the files of a directory."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{folder}/{name}").st_size
    return total


def _going_on(results: Path, entry: ListedResult, now: float) -> bool:
    if entry.status == "running" or _is_being_written(entry):
        return True
    try:
        written = (results / entry.directory / FILES[entry.kind]).stat().st_mtime
    except OSError:
        return False
    return entry.status == "killed" and now - written < STILL_WRITING_S


def _is_being_written(entry: ListedResult) -> bool:
    """Whether the process that made a result is still there: its reports come after its record."""
    if not entry.pid or entry.pid == os.getpid():
        return False
    return not is_gone(entry.pid, entry.pid_started or 0.0)


def _relink(results: Path) -> None:
    """`latest` leads to the newest result that is left, or is gone."""
    link = results / LATEST
    if not link.is_symlink() or link.exists():
        return
    left: Iterable[str] = (
        path.name for path in results.iterdir() if path.is_dir() and NAME.fullmatch(path.name)
    )
    newest = max(left, default=None)
    with contextlib.suppress(OSError):
        if newest is None:
            link.unlink()
        else:
            fresh = results / f".latest-{secrets.token_hex(3)}"
            fresh.symlink_to(newest)
            fresh.replace(link)
