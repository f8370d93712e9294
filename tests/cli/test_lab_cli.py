"""`stress lab` without a kernel: a stand-in for QEMU leaves what a guest would, and everything
after it is the real thing. The test that boots a kernel runs where STRESS_LAB_DIR is set."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stress.lab.supplies import Supplies
from stress.lab.workloads import WORKLOADS
from stress.trace.checker import check
from stress.trace.conform import conform
from tests.command import Stress
from tests.recordings import DATA, lines_of, path_of
from tests.standins import program

QEMU = """
    import io, sys, tarfile
    words = sys.argv[1:]
    disk = next(w[5:].split(",")[0] for w in words if w.startswith("file=") and "raw" in w)
    console = next(w[5:] for w in words if w.startswith("file:"))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as files:
        for name, text in {contents!r}.items():
            member = tarfile.TarInfo("out/" + name)
            member.size = len(text.encode())
            files.addfile(member, io.BytesIO(text.encode()))
    with open(disk, "r+b") as raw:
        raw.write(f"{{len(packed.getvalue()):<512}}".encode() + packed.getvalue())
    open(console, "w").write({console!r})
"""


def a_qemu(folder: Path, contents: dict[str, str], console: str = "sent 12.3\n") -> Path:
    return program(folder / "qemu", QEMU.format(contents=contents, console=console))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for a kernel and a busybox of the user's, and a workload program that is there."""
    (tmp_path / "bzImage").write_bytes(b"kernel")
    kept = tmp_path / "kvmwl"
    kept.write_bytes(b"program")
    monkeypatch.setattr(Supplies, "workload_program", lambda _: kept)
    busybox = program(tmp_path / "busybox", "cat", "/bin/sh")
    return [
        *("--kernel", str(tmp_path / "bzImage"), "--busybox", str(busybox)),
        *("--lab", str(tmp_path / "lab"), "--results", str(tmp_path / "results")),
    ]


def test_a_session_records_and_judges(stress: Stress, tmp_path: Path, own: list[str]) -> None:
    recording = "\n".join([*lines_of("w8_roots"), ""])
    log = (DATA / "w8_roots.log").read_text()
    qemu = a_qemu(tmp_path, {"w8_roots.trace": recording, "w8_roots.log": log})
    done = stress("lab", "run", *own, "--qemu", str(qemu), "-w", "w8_roots", "-w", "w1_delete")
    (folder,) = (tmp_path / "results").iterdir()
    assert "w8_roots" in done.err
    assert f"results: {folder}" in done.out
    data = json.loads((folder / "lab.json").read_text())
    first, second = data["judged"]
    assert first["lines"] == len(lines_of("w8_roots"))
    assert first["check"] == check(path_of("w8_roots")).judgement.verdict.name
    assert first["conform"] == conform(path_of("w8_roots")).verdict.name
    assert second["check"] == second["conform"] == "INCONCLUSIVE"  # no recording was left
    assert "| w8_roots |" in (folder / "summary.md").read_text()
    assert done.code == {"INCONCLUSIVE": 2, "FAIL": 1}[data["verdict"]]


def test_a_kernel_that_does_not_come_up_is_said_with_its_last_words(
    stress: Stress, tmp_path: Path, own: list[str]
) -> None:
    qemu = a_qemu(tmp_path, {}, "Kernel panic - not syncing: no init\n")
    done = stress("lab", "run", *own, "--qemu", str(qemu), "-w", "w1_delete")
    assert done.code == 4
    assert "Kernel panic - not syncing" in done.err


def test_drawn_workloads_are_run_and_the_seed_is_said(
    stress: Stress, tmp_path: Path, own: list[str]
) -> None:
    qemu = a_qemu(tmp_path, {"guest.log": ""})
    done = stress("lab", "fuzz", *own, "--qemu", str(qemu), "-n", "3", "--seed", "5", "--json")
    assert "seed 5" in done.err
    data = json.loads(done.out)
    names = [each["workload"]["name"][:6] for each in data["judged"]]
    assert names == ["f5_000", "f5_001", "f5_002"]
    assert data["verdict"] == "INCONCLUSIVE"


def test_a_kernel_of_ones_own_must_be_there(stress: Stress, tmp_path: Path) -> None:
    done = stress("lab", "run", "-k", str(tmp_path / "none"), "--modules", str(tmp_path))
    assert done.code == 4
    assert "is no kernel image" in done.err


def test_workloads_are_listed(stress: Stress) -> None:
    done = stress("lab", "list")
    assert [line.split()[0] for line in done.out.splitlines()] == list(WORKLOADS)


@pytest.mark.kernel
@pytest.mark.skipif("STRESS_LAB_DIR" not in os.environ, reason="STRESS_LAB_DIR is not set")
def test_a_real_kernel_is_recorded_and_judged(stress: Stress, tmp_path: Path) -> None:
    done = stress("lab", "run", "-w", "w1_delete", "--results", str(tmp_path / "results"), "--json")
    (judged,) = json.loads(done.out)["judged"]
    assert judged["lines"] > 1000
    assert judged["check"] != "FAIL"
