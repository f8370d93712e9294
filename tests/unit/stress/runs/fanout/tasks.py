"""Tasks for tests: functions of a module that every process can import."""

from __future__ import annotations

import os
import sys
import threading

import psutil

from stress.runs.fanout.task import current_slot
from tests.marks import announce


def add(a: int, b: int) -> int:
    return a + b


def shout(text: str) -> int:
    """Writes where answers would go, if they went to stdout."""
    sys.stdout.write(text)
    os.write(1, text.encode())
    sys.stdout.flush()
    return len(text)


def fail(text: str) -> None:
    raise ValueError(text)


def slot() -> int:
    return current_slot()


def hold(mark: str) -> None:
    """Announce this process on a mark and do nothing until it is ended."""
    announce(mark)
    threading.Event().wait()


def end_worker() -> None:
    """Kill the worker whose task this is, and with it ourselves."""
    agent = next(
        process
        for process in psutil.Process().parents()
        if "stress.runs.fanout.agent" in process.cmdline()
    )
    worker = agent.parent()
    assert worker is not None
    worker.kill()
    threading.Event().wait()
