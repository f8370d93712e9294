"""An index of result directories, so that thousands of them can be listed at once.

The directories are the truth; the index is a memory of what was read in them. Whoever lists looks
at every directory's file (its time, size and inode: no reading), reads those that are new or have
changed, and forgets those that are gone. So nobody who runs has to write here, nothing can be
missing, and the file may be deleted at any time. It is an SQLite database, as that keeps parallel
writers apart; a rollback journal and not a log ahead, which needs shared memory that some file
systems lack.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
from attrs import frozen

from stress.results.environment import version_of
from stress.results.kinds import FILES, Kind
from stress.results.listing import ListedResult, alive, entry_of
from stress.scenario.errors import ResultError

try:
    import sqlite3

    CAN_REMEMBER = True
except ImportError:  # an interpreter that was built without it: everything is read every time
    CAN_REMEMBER = False

INDEX: Final = ".index.sqlite3"
PATIENCE_S: Final = 30.0
"""How long to wait while others write."""
LAYOUT: Final = (
    zlib.crc32(repr([*attrs.fields_dict(ListedResult), version_of("tdp-stress")]).encode())
    & 0x7FFFFFFF
)
"""What an index must be marked with to be used: whatever another version of this program remembers
is read anew."""


@frozen
class Stamp:
    """What tells one state of a file from every other: it is always replaced as a whole."""

    kind: Kind
    mtime_ns: int
    size: int
    inode: int


def entries(results: Path) -> list[ListedResult]:
    """Every result below `results`, as it is now. An index that cannot be used is made anew, or
    done without."""
    if not results.is_dir():
        raise ResultError(
            f"{results} is no directory: there are no results yet; choose another with --results"
        )
    return [alive(entry) for entry in _found(results).values()]


def _found(results: Path) -> dict[str, ListedResult]:
    """By way of the index, made anew where it is damaged; without it where there can be none."""
    if not CAN_REMEMBER:
        return _unindexed(results)
    for _ in range(2):
        try:
            return _refreshed(results)
        except (
            sqlite3.OperationalError
        ):  # a directory that cannot be written to, or somebody who does not let go
            break
        except (
            sqlite3.DatabaseError,
            TypeError,
            ValueError,
        ):  # not a database, a damaged one, or one with other things in it
            with contextlib.suppress(OSError):
                (results / INDEX).unlink()
    return _unindexed(results)


def _unindexed(results: Path) -> dict[str, ListedResult]:
    """Everything read from the directories."""
    read = ((name, _read(results / name, stamp.kind)) for name, stamp in _present(results).items())
    return {name: pair[1] for name, pair in read if pair is not None}


def _refreshed(results: Path) -> dict[str, ListedResult]:
    """What is known, brought up to date. What is known is asked for before the directories are
    looked at: an entry that somebody adds in between is not taken for one whose directory is
    gone."""
    with contextlib.closing(
        sqlite3.connect(results / INDEX, timeout=PATIENCE_S, isolation_level=None)
    ) as connection:
        _prepare(connection)
        known = _known(connection)
        present = _present(results)
        changed = [
            name for name, stamp in present.items() if name not in known or known[name][0] != stamp
        ]
        read = {
            name: pair
            for name in changed
            if (pair := _read(results / name, present[name].kind)) is not None
        }
        gone = [name for name in known if name not in present]
        if read or gone:
            _store(connection, read, gone)
        known.update(read)
        return {name: known[name][1] for name in present if name in known}


def _prepare(connection: sqlite3.Connection) -> None:
    """The table, in this version's layout."""
    if _layout(connection) == LAYOUT:
        return
    with _transaction(connection):
        if _layout(connection) != LAYOUT:
            connection.execute("DROP TABLE IF EXISTS results")
            connection.execute(
                "CREATE TABLE results (directory TEXT PRIMARY KEY, stamp TEXT NOT NULL, entry TEXT "
                "NOT NULL)"
            )
            connection.execute(f"PRAGMA user_version = {LAYOUT}")


def _layout(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; nobody else writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _known(connection: sqlite3.Connection) -> dict[str, tuple[Stamp, ListedResult]]:
    rows = connection.execute("SELECT directory, stamp, entry FROM results")
    return {
        name: (Stamp(*json.loads(stamp)), ListedResult(*json.loads(entry)))
        for name, stamp, entry in ((json.loads(name), *rest) for name, *rest in rows)
    }


def _store(
    connection: sqlite3.Connection, read: dict[str, tuple[Stamp, ListedResult]], gone: list[str]
) -> None:
    rows = [
        (json.dumps(name), *(json.dumps(attrs.astuple(part)) for part in pair))
        for name, pair in read.items()
    ]  # as JSON, for a name need not be UTF-8
    with _transaction(connection):
        connection.executemany("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", rows)
        connection.executemany(
            "DELETE FROM results WHERE directory = ?", [(json.dumps(name),) for name in gone]
        )


def _present(results: Path) -> dict[str, Stamp]:
    """The directories that hold a result now; names with a dot are ours or somebody else's, links
    lead to the others."""
    found = {}
    with os.scandir(results) as places:
        for place in places:
            if not place.name.startswith(".") and place.is_dir(follow_symlinks=False):
                stamp = _stamp(place.path)
                if stamp is not None:
                    found[place.name] = stamp
    return found


def _stamp(directory: str) -> Stamp | None:
    for kind, name in FILES.items():
        try:
            status = os.stat(f"{directory}/{name}")
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):  # reading from anything else may never end
            return _stamp_of(kind, status)
    return None


def _stamp_of(kind: Kind, status: os.stat_result) -> Stamp:
    return Stamp(kind, status.st_mtime_ns, status.st_size, status.st_ino)


def _read(directory: Path, kind: Kind) -> tuple[Stamp, ListedResult] | None:
    """The entry of a directory and the stamp of just that file that it was read from; None if it
    has gone meanwhile."""
    try:
        with (directory / FILES[kind]).open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    return _stamp_of(kind, status), entry_of(directory, kind, text, status.st_mtime)
