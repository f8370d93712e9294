"""The supervisor's patience: the first interrupt is passed on, a late one ends the child."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from stress.commands import supervisor
from stress.commands.supervisor import PATIENCE_S, _Relay
from stress.results.verdict import ExitCode
from tests.patience import PATIENCE

DEAF = """
import signal, sys
got = []
signal.signal(signal.SIGTERM, lambda *_: print("heard", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_a_child_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    command = [sys.executable, "-c", DEAF]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        relay = _Relay(child.pid)
        relay(signal.SIGTERM, None)
        assert child.stdout.readline() == "heard\n"
        now[0] += PATIENCE_S - 0.1
        relay(signal.SIGTERM, None)
        assert not relay.forced
        now[0] += 0.1
        relay(signal.SIGTERM, None)
        assert relay.forced
        assert child.wait(PATIENCE) == -signal.SIGKILL
        assert child.stdout.read() == "", "in between nothing was passed on"


def test_the_code_of_an_internal_error_is_the_public_one() -> None:
    assert supervisor.INTERNAL == ExitCode.INTERNAL
