"""`stress trace`, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stress.cli import invoke
from tests import recordings

ROOT = Path(__file__).parents[2]


def test_check_passes_on_a_real_kernel() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stress", "trace", "check", "tests/data/traces/w8_roots.trace.xz"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "SPTE layout: kernel 6.12, AMD" in done.stdout
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    assert printed[-1].startswith("PASS  ")
    page = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")
    table = printed[printed.index("checks") : next(index for index, line in enumerate(printed) if line.startswith("what happened"))]
    assert "\n".join(table) in page, "the page shows what the command prints"
    assert printed[-1] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_check_of_several_files_has_the_worst_verdict_and_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, at = recordings.put_doubled(recordings.lines_of("w6_close"), 1)
    bad = tmp_path / "bad.trace"
    bad.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert invoke(["trace", "check", "--json", str(recordings.path_of("w6_close")), str(bad)]) == 1
    good, broken = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert good["verdict"] == "PASS"
    assert at in {violation["line"] for violation in broken["violations"]}
    assert any("put_root" in row for violation in broken["violations"] for row in violation["lines"]), "the lines are quoted"
    assert invoke(["trace", "check", "-q", "--only", "transitions", str(bad)]) == 0, "the put is not what this check judges"


def test_a_violation_is_printed_like_a_splat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, entry = recordings.reload_dropped(recordings.lines_of("w1_delete_adj"), 0)
    bad = tmp_path / "bad.trace"
    bad.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert invoke(["trace", "check", str(bad)]) == 1
    printed = capsys.readouterr().out
    assert f"ROOT-VALIDITY: line {entry}: vCPU 0 enters the guest although it has dropped its root and loaded no other" in printed
    assert "rule O12 (no-root)" in printed
    assert "kvm_entry: vcpu 0" in printed


@pytest.mark.parametrize("name", ["none", "other", "."])
def test_what_cannot_be_read_is_exit_code_4(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").write_text("nothing of the kind\n", encoding="utf-8")
    assert invoke(["trace", "check", str(tmp_path / name)]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"stress: {tmp_path / name}: ")


def test_record_prints_the_script_and_explains_its_levels(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["trace", "record", "--level", "1"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/sh\n")
    assert invoke(["trace", "record", "--explain"]) == 0
    assert capsys.readouterr().out.count("judges: ") == 3
