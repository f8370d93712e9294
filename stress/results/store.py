"""Result directories: there from their first record on, and written so that a killed run can still
be read."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import psutil

from stress.results import crash
from stress.results.known import KNOWN, Known, Owner
from stress.results.printable import printable
from stress.results.run_record import RUN_FORMAT, RunRecord
from stress.results.verdict import Verdict
from stress.scenario.errors import ResultError

LATEST = "latest"
RUN_JSON = "run.json"
CONSOLE_TXT = "console.txt"
REPORT_HTML = "report.html"
NEW: Final = ".new-"
"""How the name of a directory begins until its first record is in it."""
INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command in order."""


class RunDirectory:
    """The directory of one result. A new one appears as a whole, with the first file written to it,
    and `latest` then points to it."""

    def __init__(self, path: Path, *, new: bool = False, linked: bool = True) -> None:
        self.path = path
        self._new = new
        self._linked = linked

    @classmethod
    def create(cls, root: Path, name: str, seed: int) -> RunDirectory:
        """A new directory under `root`, named after the time, the scenario and the seed. Raises
        `ResultError` if there can be none."""
        stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        return cls.named(root, f"{stamp}-{name}-s{seed}-{secrets.token_hex(3)}")

    @classmethod
    def named(cls, root: Path, name: str) -> RunDirectory:
        """A new directory of this name."""
        latest = root / LATEST
        if latest.exists() and not latest.is_symlink():
            raise ResultError(
                f"{latest} is in the way: it must be a link to the newest run; choose another "
                "place with --results"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(
                f"cannot make {root}: {error.strerror}; choose another with --results"
            ) from None
        return cls(root / name, new=True)

    def write(self, record: RunRecord) -> None:
        """Replace run.json as a whole: a reader, or a kill, sees the old one or the new one."""
        self.write_text(RUN_JSON, RUN_FORMAT.text(record))

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the directory atomically; somebody may look at it in a terminal."""
        self.write_bytes(name, printable(text).encode())

    def write_bytes(self, name: str, content: bytes, *, durable: bool = False) -> None:
        """Write a file of the directory atomically. A `durable` one outlives a loss of power.
        Raises `ResultError` if it cannot be written."""
        try:
            if self._new:
                self._appear(name, content)
            else:
                _replace(self.path / name, content, durable=durable)
        except OSError as error:
            hint = "; choose another place with --results" if self._new else ""
            raise ResultError(f"cannot write {self.path / name}: {error.strerror}{hint}") from None

    def read(self) -> RunRecord:
        """The stored run; raises `ResultError` if there is none that this version can read."""
        return RUN_FORMAT.load(self.path / RUN_JSON)

    def _appear(self, name: str, content: bytes) -> None:
        root = self.path.parent
        root.mkdir(parents=True, exist_ok=True)
        hidden = root / f"{NEW}{secrets.token_hex(4)}"
        try:
            hidden.mkdir()
            (hidden / name).write_bytes(content)
            hidden.rename(self.path)
        except OSError:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        self._new = False
        if self._linked:
            link = root / f".latest-{secrets.token_hex(3)}"
            link.symlink_to(self.path.name)
            link.replace(root / LATEST)


def _replace(path: Path, content: bytes, *, durable: bool) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def keep(
    directory: RunDirectory,
    verdict: Verdict,
    record: tuple[str, str],
    reports: Callable[[], None],
    files: Mapping[str, bytes] | None = None,
    known: Known = KNOWN,
) -> tuple[Verdict, str]:
    """Store a result with its verdict: the record (the name of its file, and its text), other
    files, and the reports. Interrupts have to wait.

    Whatever cannot be written, the rest is, and the verdict stands: returns the verdict, which is
    HARNESS_ERROR at best if something is not where it belongs, and what that is.
    """
    known.judged(verdict)
    with undisturbed():
        name, text = record
        content = printable(text).encode()
        troubles = [
            _elsewhere(_tried(lambda: directory.write_bytes(name, content, durable=True)), *record),
            *(
                _tried(lambda each=each: directory.write_bytes(*each))  # type: ignore[misc]
                for each in (files or {}).items()
            ),
            _tried(reports),
        ]
        trouble = "; ".join(dict.fromkeys(filter(None, troubles)))
        if trouble:
            verdict = max(verdict, Verdict.HARNESS_ERROR)
            known.judged(verdict)
    return verdict, f"the results could not all be kept: {trouble}" if trouble else ""


def _tried(step: Callable[[], None]) -> str:
    """What went wrong in `step`, or nothing."""
    try:
        step()
    except ResultError as error:
        return str(error)
    except Exception as error:  # a report that cannot be made hides no verdict
        return crash.line_of(error)
    return ""


def _elsewhere(trouble: str, name: str, text: str) -> str:
    """A record that cannot be written where it belongs goes to the folder for temporary files."""
    if not trouble:
        return ""
    try:
        path = Path(tempfile.mkdtemp(prefix="stress-")) / name
        path.write_text(printable(text), encoding="utf-8")
    except OSError:
        return trouble
    return f"{trouble}; {name} is in {path.parent}"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore interrupts for a while."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def now() -> str:
    """The time, as results say it: UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def command_line() -> str:
    """What the user has typed."""
    return shlex.join(["stress", *sys.argv[1:]])


def was_killed(record: RunRecord) -> bool:
    """Whether a run that never came to its end is not running any more."""
    return record.status == "running" and is_gone(record.pid, record.pid_started)


def owner() -> tuple[int, float]:
    """The process that answers for what this one writes: its number, and when it began."""
    pid = Owner.pid or os.getpid()
    return pid, psutil.Process(pid).create_time()


def is_gone(pid: int, started: float) -> bool:
    """Whether the process with this number that began at this time has ended."""
    try:
        process = psutil.Process(pid)
        replaced = abs(process.create_time() - started) > 1
        return bool(replaced or process.status() == psutil.STATUS_ZOMBIE)
    except (psutil.Error, ValueError, OverflowError):
        return True
