"""What is booted beside the kernel: busybox, the kernel's modules, the workload program, and a
script that says what to run and how to record it."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from stress.lab.supplies import LabError, LabKernel
from stress.lab.workloads import Workload
from stress.trace import record

FULL: Final = "full"
"""The level at which the guest's own probes record: more than any user's recording has."""
LEVELS: Final = ("1", "2", "3", FULL)
"""How much is recorded: the levels of `stress trace record`, and everything."""


def script_of(workloads: Sequence[Workload], level: str) -> str:
    """The guest's run script: a line for each workload."""
    if level == FULL:
        lines = [f"trace {each.name} fullf {each.arguments}" for each in workloads]
    else:
        lines = [f"record {each.name} record.sh -- /kvmwl {each.arguments}" for each in workloads]
    return "\n".join([*lines, ""])


def build(
    root: Path,
    kernel: LabKernel,
    busybox: Path,
    program: Path,
    workloads: Sequence[Workload],
    level: str,
) -> Path:
    """Lay the guest's files out below `root`, pack them beside it, and return the archive."""
    for name in ("bin", "mods", "extra", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    (root / "bin" / "busybox").chmod(0o755)
    shutil.copy(program, root / "kvmwl")
    for module in kernel.modules.glob("*.ko"):
        shutil.copy(module, root / "mods")
    guest = resources.files("stress.lab").joinpath("guest")
    for name in ("init", "probes.txt", "functions.txt"):
        (root / name).write_bytes(guest.joinpath(name).read_bytes())
    (root / "init").chmod(0o755)
    (root / "run.sh").write_text(script_of(workloads, level), encoding="utf-8")
    if level != FULL:
        (root / "noprobes").touch()
        text = record.script(int(level), buffer_mb=32)
        (root / "extra" / "record.sh").write_text(text, encoding="utf-8")
    return _packed(root, busybox)


def _packed(root: Path, busybox: Path) -> Path:
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*"))) + "\n"
    done = subprocess.run(  # noqa: S603 - busybox, as fetched or as the user has given it
        [str(busybox.absolute()), "cpio", "-o", "-H", "newc"],
        cwd=root,
        input=names.encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise LabError(f"busybox cpio failed: {done.stderr.decode(errors='replace').strip()}")
    archive = root.with_name("initramfs.gz")
    archive.write_bytes(gzip.compress(done.stdout, compresslevel=1))
    return archive
