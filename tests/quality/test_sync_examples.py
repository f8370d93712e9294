"""Every example of `mmu.sync` as a library: what it reports, once, and what it prints when it goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "sync"

EXPECTED: dict[str, tuple[list[str], str]] = {
    # the checks that report, in order; then a pattern for what is printed
    "inversion": (["circular-dependency"], "1 payments, 90 left"),
    "rcu_table": (["use-after-free", "suspicious-rcu-usage"], "inside the section: db1.example\nafter the section: 5432"),
    "sleep_in_atomic": (["sleep-in-atomic", "sleep-in-atomic", "sleep-in-rcu"], "done"),
    "readerwriterlock/read_in_read": (["read-in-read"], "size: 3"),
    "readerwriterlock/write_in_write": (["write-in-write"], "refused: .* holds table_lock .* for write and asks for write.*"),
    "readerwriterlock/upgrade": (["write-in-read"], "refused: .* holds table_lock .* for read and asks for write.*"),
    "readerwriterlock/read_in_write": (["read-in-write"], "refused: .* holds table_lock .* for write and asks for read.*"),
    "readerwriterlock/release_twice": (["bad-unlock-balance"], "refused: release unlocked lock"),
    "readerwriterlock/release_by_other": (["released-by-other"], "held by me: False"),
    "readerwriterlock/handle_twice": (["handle-acquired-twice"], "refused: this handle .* is in use by MainThread/1.*\na writer gets in"),
    "readerwriterlock/handle_shared": (["handle-acquired-twice"], "refused: this handle .* is in use by MainThread/1.*\na writer gets in"),
    "readerwriterlock/timed_reacquire": (["handle-acquired-twice"], "again: False\na reader gets in"),
    "readerwriterlock/downgrade": (
        ["downgrade-not-atomic"],
        "refused: RWLockReadD cannot downgrade .*\ndowngraded, writers kept out: True",
    ),
    "readerwriterlock/interrupted": (["interrupted-lock"], "interrupted\nrefused: table_lock .* KeyboardInterrupt in MainThread/1.*"),
    "readerwriterlock/nonblocking_read": ([], r"granted, of 50: [345]\d\nwhile a writer is in: False"),
    "readerwriterlock/locked_of_handle": (["locked-of-fresh-handle"], "locked: True"),
    "readerwriterlock/starved_writer": (["starved"], ""),
    "readerwriterlock/starved_reader": (["starved"], ""),
}


def test_every_example_is_expected_to_do_something() -> None:
    assert {str(path.relative_to(EXAMPLES).with_suffix("")) for path in EXAMPLES.glob("**/*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_is_reported_and_goes_on(name: str) -> None:
    codes, printed = EXPECTED[name]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    splats = re.findall(r"^=+\n(?:BUG|WARNING|INFO): .*\n-+\nrule O\d+ \(([\w-]+)\): ", done.stderr, re.MULTILINE)
    assert splats == codes
    assert re.fullmatch(printed, done.stdout.strip()), done.stdout
    assert not codes or f"{Path(name).name}.py:" in done.stderr  # the report names a line of the example
