"""Result directories: made when a run starts, written so that a killed run can still be read."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import sys
import time
from pathlib import Path

import psutil

from stress.results.run_record import RUN_FORMAT, RunRecord
from stress.scenario.errors import ResultError

RUN_JSON = "run.json"
CONSOLE_TXT = "console.txt"
REPORT_HTML = "report.html"


class RunDirectory:
    """One run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, root: Path, name: str, seed: int) -> RunDirectory:
        """A new directory under `root`, named after the time, the scenario and the seed; `latest`
        points to it."""
        stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        return cls.named(root, f"{stamp}-{name}-s{seed}-{secrets.token_hex(3)}")

    @classmethod
    def named(cls, root: Path, name: str) -> RunDirectory:
        """A new directory of this name, for a result that was made elsewhere; `latest` points to
        it."""
        path = root / name
        latest = root / "latest"
        if latest.exists() and not latest.is_symlink():
            raise ResultError(
                f"{latest} is in the way: it must be a link to the newest run; choose another "
                "place with --results"
            )
        try:
            path.mkdir(parents=True)
            link = root / f".latest-{secrets.token_hex(3)}"
            link.symlink_to(path.name)
            link.replace(latest)
        except OSError as error:
            raise ResultError(
                f"cannot create a result directory under {root}: {error.strerror}; choose another "
                "with --results"
            ) from None
        return cls(path)

    def write(self, record: RunRecord) -> None:
        """Replace run.json as a whole: a reader, or a kill, sees the old one or the new one."""
        self.write_text(RUN_JSON, RUN_FORMAT.text(record))

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the directory atomically."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Likewise for what is not text."""
        temporary = self.path / f".{name}.{os.getpid()}"
        try:
            temporary.write_bytes(content)
            temporary.replace(self.path / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise ResultError(f"cannot write {self.path / name}: {error.strerror}") from None

    def read(self) -> RunRecord:
        """The stored run; raises `ResultError` if there is none that this version can read."""
        return RUN_FORMAT.load(self.path / RUN_JSON)


def now() -> str:
    """The time, as results say it: UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def command_line() -> str:
    """What the user has typed."""
    return shlex.join(["stress", *sys.argv[1:]])


def was_killed(record: RunRecord) -> bool:
    """Whether a run that never came to its end is not running any more."""
    return record.status == "running" and is_gone(record.pid, record.pid_started)


def is_gone(pid: int, started: float) -> bool:
    """Whether the process with this number that began at this time has ended."""
    try:
        process = psutil.Process(pid)
        replaced = abs(process.create_time() - started) > 1
        return bool(replaced or process.status() == psutil.STATUS_ZOMBIE)
    except (psutil.Error, ValueError):
        return True
