"""Marks: named pipes by which a test sees another process come and go, and never waits forever."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

from tests.patience import PATIENCE

HERE = b"here"


class Mark:
    """A named pipe. A process that has `announce`d itself on it holds it open until its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._seen = b""

    def wait_until_here(self, may_go_on: Callable[[], bool] = lambda: True) -> None:
        """Wait until a process has announced itself. `may_go_on` says whether that may still
        happen: whether what starts it is alive, for instance."""
        self._read(lambda: self._seen == HERE, "no process has announced itself", may_go_on)

    def wait_until_gone(self) -> None:
        """Wait until every process that holds the mark has ended."""
        gone = select.poll()
        gone.register(self._reader, 0)
        self._read(lambda: bool(gone.poll(0)), f"still held after {self._seen!r}", lambda: True)

    def close(self) -> None:
        """Close the test's own end."""
        os.close(self._reader)

    def _read(self, done: Callable[[], bool], what: str, may_go_on: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline, f"{self.path.name}: {what} in {PATIENCE:g} s"
            might = may_go_on()
            if select.select([self._reader], [], [], 0.05)[0]:
                self._seen += os.read(self._reader, 64)
            assert done() or might, f"{self.path.name}: {what}, and none will any more"


def announce(path: str) -> int:
    """In the other process: announce it on the mark at `path`; returns what holds it open."""
    pipe = os.open(path, os.O_WRONLY)
    os.write(pipe, HERE)
    return pipe
