"""The recording script: valid shell, complete for what it promises, and readable."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from stress.trace import record
from stress.trace.checker import ORDER_OF_CHECKS
from stress.trace.conform_translate import FUNCTIONS as CONFORM_FUNCTIONS
from stress.trace.names import FUNCTIONS


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("shell", ["sh", "bash", "shellcheck"])
def test_the_script_is_valid(level: int, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell}")
    arguments = [program, "-"] if shell == "shellcheck" else [program, "-n"]
    done = subprocess.run(
        arguments, input=record.script(level, 64), text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_each_level_proves_more_and_the_last_everything() -> None:
    proven = [set(record.provable(level)) for level in (1, 2, 3)]
    assert proven[0] < proven[1] < proven[2] == set(ORDER_OF_CHECKS)


def test_every_probe_is_one_that_check_understands() -> None:
    assert {probe.function for probe in record.PROBES} <= {*FUNCTIONS, *CONFORM_FUNCTIONS}
    names = [probe.name for probe in record.PROBES]
    assert len(names) == len(set(names))


def test_the_script_says_what_it_is_for_and_takes_everything_down() -> None:
    script = record.script(3, 16)
    assert "buffer_size_kb 16384" in script
    assert (
        "check` can judge: slots, transitions, frozen, flushes, roots, tables, statistics, obsolete"
        in script
    )
    assert "rmdir" in script
    assert "set_event_pid" in script
