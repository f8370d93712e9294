"""The command line for tests: in this process, and as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stress.commands.command_line import invoke
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
UNTIL_MET = ("--set", "budget.until_met=true")
"""Options of `stress run`: go on until what the scenario asks for has happened, however long that
takes here."""
Out = Callable[[], tuple[str, str]]
"""Takes what was printed on stdout and stderr since the last time."""


def until(**obligations: int) -> tuple[str, ...]:
    """Options of `stress run`: go on until these counters are reached, and ask for nothing else."""
    needed = ", ".join(f"{counter}={count}" for counter, count in obligations.items())
    return (*UNTIL_MET, "--set", f"obligations={{{needed}}}")


class Done(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


class Stress:
    """The command line in this process: all of it but the handlers of signals and the last
    flush."""

    def __init__(self, printed: Out) -> None:
        self._printed = printed

    def __call__(self, *arguments: object) -> Done:
        self._printed()
        code = invoke([str(argument) for argument in arguments])
        out, err = self._printed()
        assert "Traceback" not in err
        return Done(int(code), out, err)


def environment(**more: str) -> dict[str, str]:
    """For a Python that a test starts: with these packages, which are compiled once and not by each
    process anew."""
    inherited = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**inherited, "PYTHONPATH": str(ROOT), **more}


def start(*arguments: object) -> subprocess.Popen[str]:
    """The real command, started."""
    command = [sys.executable, "-m", "stress", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def real(*arguments: object) -> Done:
    """The real command, to its end."""
    return python("-m", "stress", *arguments)


def python(*arguments: object, **more: str) -> Done:
    """A Python of its own, to its end, with `more` in its environment."""
    return run(sys.executable, *arguments, **more)


def run(interpreter: str, *arguments: object, **more: str) -> Done:
    """Likewise, of another Python."""
    command = [interpreter, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)
