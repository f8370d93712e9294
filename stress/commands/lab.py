"""`stress lab`: boot a real kernel under emulation, run virtual machines on its TDP MMU, and judge
what it does. No hardware support, no root, nothing installed."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import click

from stress.commands.options import RESULTS, Seconds, json_option
from stress.lab import session as sessions
from stress.lab.emulator import EmulatedMachine
from stress.lab.initramfs import LEVELS
from stress.lab.session import Judged, LabSession
from stress.lab.supplies import LabKernel, Supplies, default_directory
from stress.lab.workloads import WORKLOADS, Workload, chosen, drawn
from stress.results.verdict import ExitCode

LAB_JSON = "lab.json"
SUMMARY = "summary.md"

Option = Callable[[Callable[..., ExitCode]], Callable[..., ExitCode]]


def _boot_options(command: Callable[..., ExitCode]) -> Callable[..., ExitCode]:
    """The options that every verb that boots has."""
    path = click.Path(path_type=Path)
    options: Sequence[Option] = (
        click.option(
            "--kernel",
            "-k",
            default="6.12",
            show_default=True,
            help="The beginning of a version that Debian packages, or a kernel image of yours.",
        ),
        click.option("--modules", type=path, help="Folder with the modules of your kernel."),
        click.option(
            "--level",
            type=click.Choice(LEVELS),
            default="3",
            show_default=True,
            help="How much to record, as of 'stress trace record', or everything.",
        ),
        click.option("--qemu", type=path, help="A QEMU of yours; by default Debian's is fetched."),
        click.option("--busybox", type=path, help="A static busybox of yours."),
        click.option(
            "--lab",
            type=path,
            help="Where kernels and QEMU are kept; by default $STRESS_LAB_DIR or the user's cache.",
        ),
        click.option(
            "--limit",
            type=Seconds(30.0, min_open=False),
            default=900,
            show_default=True,
            help="Seconds that a boot with all its workloads may take.",
        ),
        click.option(
            "--results",
            type=path,
            default=RESULTS,
            show_default=True,
            help="Where the result directory goes.",
        ),
        json_option("the result"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def lab() -> None:
    """Boot a real kernel under emulation, record what its TDP MMU does, and judge it.

    Needs apt, dpkg-deb and gcc with a static libc (Debian: apt, dpkg, gcc, libc6-dev), 3 GiB of
    memory, and about five minutes the first time. Nothing is installed; no root, no /dev/kvm.
    """


@lab.command("run")
@click.option(
    "--workload",
    "-w",
    "names",
    multiple=True,
    help="A workload (stress lab list), or all. May be repeated; by default all.",
)
@_boot_options
def run_command(names: tuple[str, ...], as_json: bool, **asked: object) -> ExitCode:
    """Run workloads in a kernel, record them, check the recordings and hold the model against
    them."""
    workloads = chosen(names)
    place = _Place.of(asked)
    found = place.run(workloads, place.directory("lab"))
    return _finish(found, as_json)


@lab.command("fuzz")
@click.option(
    "--count",
    "-n",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Workloads to draw.",
)
@click.option("--seed", type=click.IntRange(0), help="Seed of what is drawn; by default a new one.")
@click.option("--no-minimise", is_flag=True, help="Do not look for a smaller workload that fails.")
@_boot_options
def fuzz_command(
    count: int, seed: int | None, no_minimise: bool, as_json: bool, **asked: object
) -> ExitCode:
    """Draw workloads at random, run them in a kernel, and judge them; what fails is made
    smaller."""
    seed = secrets.randbelow(1 << 31) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    place = _Place.of(asked)
    directory = place.directory(f"fuzz-s{seed}")
    found = place.run(drawn(count, seed), directory)
    if not no_minimise:
        for each in found.judged:
            if each.differs:
                _minimise(place, each, directory)
    return _finish(found, as_json)


@lab.command("list")
@click.option("--kernels", is_flag=True, help="List the kernels that could be fetched.")
def list_command(kernels: bool) -> ExitCode:
    """List the workloads, or the kernels that could be fetched."""
    if kernels:
        click.echo("\n".join(Supplies().packages.kernels()))
    else:
        click.echo("\n".join(f"{each.name:<20} {each.title}" for each in WORKLOADS.values()))
    return ExitCode.PASS


@attrs.frozen
class _Place:
    """What the options say: where to boot what, and where results go."""

    supplies: Supplies
    kernel: LabKernel
    level: str
    machine: EmulatedMachine
    results: Path

    @classmethod
    def of(cls, asked: dict[str, object]) -> _Place:
        wanted, modules = str(asked["kernel"]), _path(asked["modules"])
        supplies = Supplies(
            _path(asked["lab"]) or default_directory(),
            _path(asked["qemu"]),
            _path(asked["busybox"]),
        )
        own = modules is not None or Path(wanted).is_file()
        return cls(
            supplies,
            supplies.own_kernel(Path(wanted), modules) if own else supplies.kernel(wanted),
            str(asked["level"]),
            EmulatedMachine(limit_s=float(str(asked["limit"]))),
            _path(asked["results"]) or RESULTS,
        )

    def directory(self, what: str) -> Path:
        stamp = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        return self.results / f"{stamp}-{what}-{self.kernel.name}-{secrets.token_hex(3)}"

    def run(self, workloads: Sequence[Workload], directory: Path) -> LabSession:
        return sessions.run(
            self.supplies, self.kernel, workloads, self.level, self.machine, directory, _say
        )


def _path(value: object) -> Path | None:
    return value if isinstance(value, Path) else None


def _say(line: str) -> None:
    click.echo(line, err=True)


def _minimise(place: _Place, found: Judged, directory: Path) -> None:
    folder = directory / "smaller" / found.workload.name
    numbers = iter(range(100))

    def repeat(workloads: Sequence[Workload]) -> LabSession:
        return place.run(workloads, folder / str(next(numbers)))

    small = sessions.minimise(found, repeat, _say)
    click.echo(f"{found.workload.name} fails as: kvmwl {small.workload.arguments}", err=True)


def _finish(found: LabSession, as_json: bool) -> ExitCode:
    folder = Path(found.folder)
    text = json.dumps(attrs.asdict(found) | {"verdict": found.verdict.name}, indent=1)
    (folder / LAB_JSON).write_text(text + "\n", encoding="utf-8")
    (folder / SUMMARY).write_text(sessions.markdown(found), encoding="utf-8")
    if as_json:
        click.echo(text)
    else:
        click.echo(f"{found.verdict.name}  kernel {found.version}, {len(found.judged)} workloads")
        click.echo(f"results: {folder}")
    return found.verdict.exit_code
