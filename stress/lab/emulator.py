"""Boot a kernel under QEMU's software emulation, and bring back what its guest has left.

The machine's own /dev/kvm is neither needed nor opened: an AMD processor with SVM and nested paging
is emulated.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from stress.lab.supplies import LabError, LabKernel

TRIES: Final = 4
"""Boots before giving up: QEMU's threaded emulation now and then aborts, or lets the guest crash,
while it boots."""
BLOCK: Final = 512
DISK: Final = 512 << 20
"""Bytes of the disk on which the guest leaves its results."""
LIMIT: Final = "the limit of seconds was reached"
SENT: Final = "sent "
"""How the guest's last line begins."""


@frozen
class EmulatedMachine:
    """The emulated machine. `limit_s` bounds one boot with everything that runs in it."""

    cpus: int = 2
    memory_mb: int = 3072
    processor: str = "EPYC"
    limit_s: float = 900.0
    append: str = ""


def options(machine: EmulatedMachine, kernel: LabKernel, initramfs: Path, work: Path) -> list[str]:
    """QEMU's options for one boot."""
    console = f"console=ttyS0 panic=-1 quiet mitigations=off {machine.append}".strip()
    return [
        *("-accel", "tcg,thread=multi", "-cpu", machine.processor),
        *("-smp", str(machine.cpus), "-m", str(machine.memory_mb)),
        *("-kernel", str(kernel.image), "-initrd", str(initramfs), "-append", console),
        *("-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"),
        *("-serial", f"file:{work / 'console.txt'}"),
        *("-drive", f"file={work / 'disk'},format=raw,if=virtio,cache=unsafe"),
    ]


def boot(
    qemu: Sequence[str],
    machine: EmulatedMachine,
    kernel: LabKernel,
    initramfs: Path,
    work: Path,
    out: Path,
) -> int:
    """Boot until the guest has sent its results, and unpack them below `out`; returns the number
    of boots it took. Raises `LabError` with the end of the console if none succeeded."""
    command = [*qemu, *options(machine, kernel, initramfs, work)]
    console, said = work / "console.txt", ""
    for number in range(1, TRIES + 1):
        console.write_bytes(b"")
        with (work / "disk").open("wb") as disk:
            disk.truncate(DISK)
        why = _run(command, machine.limit_s, work / "qemu.err")
        said = console.read_text(encoding="utf-8", errors="replace")
        if any(line.startswith(SENT) for line in said.splitlines()):
            unpack(work / "disk", out)
            return number
        if why == LIMIT:
            break
    last = "\n".join(f"  {line}" for line in said.splitlines()[-12:])
    raise LabError(f"kernel {kernel.name} came to no result in {number} boots ({why}):\n{last}")


def _run(command: Sequence[str], limit_s: float, errors: Path) -> str:
    """Run QEMU to its end; returns how it ended. Whatever happens, no QEMU is left."""
    with errors.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 - our own QEMU, or the user's
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
        )
        try:
            process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return LIMIT
        finally:
            process.kill()
            process.wait()
    last = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return ", ".join([f"QEMU ended with {process.returncode}", *last])


def unpack(disk: Path, out: Path) -> None:
    """The guest leaves a block with the length of an archive, then the archive."""
    with disk.open("rb") as raw:
        length = int(raw.read(BLOCK).split()[0])
        archive = io.BytesIO(raw.read(length))
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=archive, mode="r:gz") as files:
        for member in files:
            member.name = member.name.partition("/")[2]
            if member.isfile() and member.name:
                files.extract(member, out, filter="data")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One QEMU at a time for a lab directory: two would only make each other slower."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
