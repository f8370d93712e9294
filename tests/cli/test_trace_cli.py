"""`stress trace`, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import recordings
from tests.command import ROOT, Stress


def test_check_passes_on_a_real_kernel(stress: Stress) -> None:
    done = stress("trace", "check", "tests/data/traces/w8_roots.trace.xz")
    assert done.code == 0, done.err
    assert "SPTE layout: kernel 6.12, AMD" in done.out
    printed = [line.rstrip() for line in done.out.splitlines()]
    assert printed[-1].startswith("PASS  ")
    page = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")
    table = printed[
        printed.index("checks") : next(
            index for index, line in enumerate(printed) if line.startswith("what can be proved")
        )
    ]
    assert "\n".join(table) in page, "the page shows what the command prints"
    assert printed[-1] in page


def test_check_of_several_files_has_the_worst_verdict_and_a_line_each(
    stress: Stress, tmp_path: Path
) -> None:
    lines, at = recordings.put_doubled(recordings.lines_of("w6_close"), 1)
    bad = tmp_path / "bad.trace"
    bad.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = stress("trace", "check", "--json", recordings.path_of("w6_close"), bad)
    assert done.code == 1
    good, broken = (json.loads(line) for line in done.out.splitlines())
    assert good["verdict"] == "PASS"
    assert at in {violation["line"] for violation in broken["violations"]}
    assert any(
        "put_root" in row for violation in broken["violations"] for row in violation["lines"]
    ), "the lines are quoted"
    assert stress("trace", "check", "-q", "--only", "transitions", bad).code == 0, (
        "the put is not what this check judges"
    )


def test_several_recordings_are_judged_in_processes_with_the_same_answers(stress: Stress) -> None:
    names = [f"tests/data/traces/{name}.trace.xz" for name in ("w6_close", "w8_roots", "w4_dirty")]
    alone = stress("trace", "check", "--quiet", "--jobs", "1", *names)
    together = stress("trace", "check", "--quiet", "--jobs", "2", *names)
    assert together.out == alone.out
    assert together.code == alone.code == 0
    assert [line.split(":")[0] for line in alone.out.splitlines()] == [f"PASS  {n}" for n in names]


def test_a_file_that_is_none_among_several_is_exit_code_4(stress: Stress, tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"hello\n")
    good = "tests/data/traces/w6_close.trace.xz"
    done = stress("trace", "check", "--quiet", "--jobs", "2", good, str(tmp_path / "none"))
    assert done.code == 4
    assert "no line of the file is an ftrace event" in done.err
    assert done.out.startswith("PASS  ")


def test_a_violation_is_printed_like_a_splat(stress: Stress, tmp_path: Path) -> None:
    lines, entry = recordings.reload_dropped(recordings.lines_of("w1_delete_adj"), 0)
    bad = tmp_path / "bad.trace"
    bad.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = stress("trace", "check", bad)
    assert done.code == 1
    assert (
        f"ROOT-VALIDITY: line {entry}: vCPU 0 enters the guest although it has dropped its root "
        "and loaded no other" in done.out
    )
    assert "rule O12 (no-root)" in done.out
    assert "kvm_entry: vcpu 0" in done.out


@pytest.mark.parametrize("name", ["none", "other", "."])
def test_what_cannot_be_read_is_exit_code_4(stress: Stress, tmp_path: Path, name: str) -> None:
    (tmp_path / "other").write_text("nothing of the kind\n", encoding="utf-8")
    done = stress("trace", "check", tmp_path / name)
    assert done.code == 4
    assert done.out == ""
    assert done.err.startswith(f"stress: {tmp_path / name}: ")


def test_record_prints_the_script_and_explains_its_levels(stress: Stress) -> None:
    done = stress("trace", "record", "--level", 1)
    assert done.code == 0
    assert done.out.startswith("#!/bin/sh\n")
    explained = stress("trace", "record", "--explain")
    assert explained.code == 0
    assert explained.out.count("judges: ") == 3
