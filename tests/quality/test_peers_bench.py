"""Our side of the peers' benchmark runs: it is a command that nothing else would notice breaking."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_our_programs_of_the_peers_benchmark_run() -> None:
    """Every measurement is there, and the correct program's proof takes the executions that its classes need."""
    command = [sys.executable, str(ROOT / "bench" / "peers" / "programs.py"), "1"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    found = [f"{name} {how}" for name in "abc" for how in ("random", "exhaustive")]
    assert sorted(figures) == sorted([*found, "d random", "d campaign", "d proof"])
    assert figures["d proof"]["schedules"] == 20 * 25
