"""The lab's parts: what is fetched, what is booted, and a boot with a stand-in for QEMU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stress.lab import emulator, initramfs
from stress.lab.supplies import LabError, LabKernel, collect_modules, natural, need
from stress.lab.workloads import WORKLOADS
from tests.standins import program


def test_a_boot_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    sleeper = program(tmp_path / "qemu", "import time\nwhile True: time.sleep(60)")
    kernel = LabKernel("own", "own", tmp_path / "bzImage", tmp_path)
    machine = emulator.EmulatedMachine(limit_s=0.2)
    with pytest.raises(LabError, match="limit"):
        emulator.boot([str(sleeper)], machine, kernel, tmp_path / "i", tmp_path, tmp_path / "out")


def test_the_guest_runs_what_was_asked_for_at_the_level_asked_for() -> None:
    workloads = (WORKLOADS["w1_delete"], WORKLOADS["w6_close"])
    assert initramfs.script_of(workloads, "full").splitlines() == [
        "trace w1_delete fullf w1 pages=16",
        "trace w6_close fullf w6 how=close pages=8",
    ]
    assert initramfs.script_of(workloads[:1], "2") == (
        "record w1_delete record.sh -- /kvmwl w1 pages=16\n"
    )


@pytest.mark.parametrize("level", initramfs.LEVELS)
def test_the_archive_has_what_the_guest_needs(tmp_path: Path, level: str) -> None:
    (tmp_path / "mods").mkdir()
    (tmp_path / "mods" / "kvm.ko").write_bytes(b"module")
    kernel = LabKernel("own", "own", tmp_path / "bzImage", tmp_path / "mods")
    busybox = program(tmp_path / "busybox", "cat", "/bin/sh")
    workloads = (WORKLOADS["w1_delete"],)
    initramfs.build(tmp_path / "root", kernel, busybox, busybox, workloads, level)
    files = {str(path.relative_to(tmp_path / "root")) for path in (tmp_path / "root").rglob("*")}
    assert {"init", "run.sh", "kvmwl", "bin/busybox", "mods/kvm.ko", "probes.txt"} <= files
    assert ("extra/record.sh" in files) == (level != "full")
    assert os.access(tmp_path / "root" / "init", os.X_OK)


def test_modules_are_found_wherever_they_are(tmp_path: Path) -> None:
    deep = tmp_path / "lib" / "modules" / "9.9" / "kernel"
    deep.mkdir(parents=True)
    (deep / "kvm.ko").write_bytes(b"plain")
    into = tmp_path / "into"
    into.mkdir()
    collect_modules(tmp_path / "lib", into)
    assert (into / "kvm.ko").read_bytes() == b"plain"


def test_versions_sort_as_people_sort_them() -> None:
    versions = ["6.12.9", "6.9.1", "7.3", "7.3~rc7", "6.1.192"]
    assert sorted(versions, key=natural) == ["6.1.192", "6.9.1", "6.12.9", "7.3~rc7", "7.3"]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(LabError, match="no-such-tool"):
        need("sh", "no-such-tool")
