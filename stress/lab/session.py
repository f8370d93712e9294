"""One session in the lab: boot a kernel, run workloads in it, record them, check and conform."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from attrs import evolve, frozen

from stress.lab import emulator, initramfs
from stress.lab.emulator import EmulatedMachine
from stress.lab.supplies import LabKernel, Supplies
from stress.lab.workloads import Workload, smaller
from stress.results.verdict import Verdict
from stress.trace.checker import check
from stress.trace.conform import conform
from stress.trace.events import TraceError

Say = Callable[[str], None]
"""What hears of progress, a line at a time."""


@frozen
class Judged:
    """One workload as it was recorded and judged. `file` is the recording, empty if the guest has
    left none; `why` is what stands behind each verdict, a line each."""

    workload: Workload
    file: str
    lines: int
    check: str
    conform: str
    why: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """The worse of both verdicts."""
        return max(Verdict[self.check], Verdict[self.conform])

    @property
    def differs(self) -> bool:
        """Whether a rule was broken, or the model did something else."""
        return Verdict.FAIL in (Verdict[self.check], Verdict[self.conform])


@frozen
class LabSession:
    """One boot of one kernel with several workloads, recorded at one level."""

    kernel: str
    version: str
    level: str
    boots: int
    seconds: float
    folder: str
    judged: tuple[Judged, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of any workload; INCONCLUSIVE when there is none."""
        return max((each.verdict for each in self.judged), default=Verdict.INCONCLUSIVE)


def run(
    supplies: Supplies,
    kernel: LabKernel,
    workloads: Sequence[Workload],
    level: str,
    machine: EmulatedMachine,
    out: Path,
    say: Say,
) -> LabSession:
    """Boot `kernel`, record every workload into `out`, and judge each recording.

    Raises `LabError` if something is missing or the kernel does not come up.
    """
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    qemu, busybox, program = supplies.qemu(), supplies.busybox(), supplies.workload_program()
    with (
        tempfile.TemporaryDirectory(prefix="tdp-stress-lab-") as folder,
        emulator.alone(supplies.folder),
    ):
        work = Path(folder)
        archive = initramfs.build(work / "root", kernel, busybox, program, workloads, level)
        say(f"booting {kernel.name} ({kernel.version}), {len(workloads)} workloads")
        boots = emulator.boot(qemu, machine, kernel, archive, work, out)
        shutil.copy(work / "console.txt", out / "console.txt")
    judged = []
    for each in workloads:
        judged.append(judge(each, out))
        say(line_of(judged[-1]))
    seconds = time.monotonic() - began
    return LabSession(kernel.name, kernel.version, level, boots, seconds, str(out), tuple(judged))


def judge(workload: Workload, out: Path) -> Judged:
    """Check and conform one recording; one that is missing or unreadable is INCONCLUSIVE."""
    file = out / f"{workload.name}.trace"
    if not file.is_file():
        nothing = Verdict.INCONCLUSIVE.name
        why: tuple[str, ...] = ("the guest has left no recording; see console.txt",)
        return Judged(workload, "", 0, nothing, nothing, why)
    with file.open("rb") as raw:
        lines = sum(1 for _ in raw)
    checked, why_checked = _verdict_of("check", lambda: check(file).judgement)
    conformed, why_conformed = _verdict_of("conform", lambda: conform(file))
    why = (*why_checked, *why_conformed)
    return Judged(workload, file.name, lines, checked.name, conformed.name, why)


class _HasVerdict(Protocol):
    @property
    def verdict(self) -> Verdict: ...
    @property
    def reasons(self) -> tuple[str, ...]: ...


def _verdict_of(what: str, call: Callable[[], _HasVerdict]) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict of one judge and its reasons. A judge that fails must not take the other's
    verdict, or that of other recordings, with it."""
    try:
        found = call()
    except TraceError as error:
        return Verdict.INCONCLUSIVE, (f"{what}: {error}",)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(where.filename).name}:{where.lineno}"
        return Verdict.HARNESS_ERROR, (f"{what}: {type(error).__name__}: {error} ({at})",)
    return found.verdict, tuple(f"{what}: {reason}" for reason in found.reasons)


def minimise(
    found: Judged, repeat: Callable[[Sequence[Workload]], LabSession], say: Say, rounds: int = 4
) -> Judged:
    """Make a workload that was judged FAIL smaller, one key at a time, as long as a smaller one
    fails, too. `repeat` boots and runs; each round is one boot with every smaller workload."""
    for number in range(rounds):
        candidates = list(smaller(evolve(found.workload, name=f"m{number}")))
        if not candidates:
            break
        failing = [each for each in repeat(candidates).judged if each.differs]
        if not failing:
            break
        found = min(failing, key=lambda each: each.lines)
        say(f"smaller: kvmwl {found.workload.arguments} ({found.lines:,} lines)")
    return found


def line_of(each: Judged) -> str:
    """One workload in a line."""
    name = each.workload.name
    return f"{name:<22} {each.lines:>9,} lines   check {each.check:<13} conform {each.conform}"


def markdown(session: LabSession) -> str:
    """The whole session as a Markdown page."""
    rows = [
        f"| {each.workload.name} | `kvmwl {each.workload.arguments}` | {each.lines:,} "
        f"| {each.check} | {each.conform} |"
        for each in session.judged
    ]
    reasons = [
        f"* **{each.workload.name}**: " + "; ".join(each.why)
        for each in session.judged
        if each.verdict is not Verdict.PASS and each.why
    ]
    return "\n".join(
        [
            f"# Kernel {session.version}: {session.verdict.name}",
            "",
            f"{len(session.judged)} workloads recorded at level {session.level}, in "
            f"{session.seconds:.0f} s and {session.boots} boots.",
            "",
            "| workload | arguments | lines | check | conform |",
            "|---|---|--:|---|---|",
            *rows,
            "",
            *reasons,
            "",
        ]
    )
