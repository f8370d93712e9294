"""What a boot needs, and where it comes from: kernels, QEMU and busybox out of Debian packages, and
the workload program, compiled here.

Nothing is installed and nothing needs root: apt runs with lists, status and cache of its own in the
lab's directory, and packages are unpacked there. A kernel of the user's needs no apt at all.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from attrs import field, frozen

from stress.scenario.errors import StressError

SUITES: Final = ("bookworm", "trixie", "sid", "experimental")
"""Suites of Debian in which kernels are looked for."""
QEMU_SUITE: Final = "trixie"
KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
DAY: Final = 86_400
MODULES: Final = (
    "irqbypass",
    "kvm",
    "kvm-amd",
    "virtio_blk",
    "virtio",
    "virtio_ring",
    "virtio_pci",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
)
"""Kernel modules that the guest loads, where they are not built in."""


class LabError(StressError):
    """Something that the lab needs is not to be had; the text says what to do."""


def default_directory() -> Path:
    """`STRESS_LAB_DIR`, else a folder in the user's cache."""
    chosen = os.environ.get("STRESS_LAB_DIR")
    if chosen:
        return Path(chosen).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "tdp-stress" / "lab"


@frozen
class LabKernel:
    """A kernel to boot: its name and version, the image, and the folder with its modules."""

    name: str
    version: str
    image: Path
    modules: Path


def need(*tools: str) -> None:
    """Raise `LabError` if a program is not on the PATH, naming all that are missing."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise LabError(f"the lab needs {', '.join(missing)}; install the Debian packages with them")


def call(command: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """Run a program and return what it printed; `LabError` with its last lines if it failed."""
    done = subprocess.run(  # noqa: S603 - programs of this module's own choice
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-5:])
        raise LabError(f"{command[0]} {command[-1]} failed ({done.returncode}):\n{last}")
    return done.stdout


@frozen
class Packages:
    """Debian's packages, by an apt whose state is all in one folder."""

    folder: Path
    suites: tuple[str, ...] = SUITES

    def _options(self) -> list[str]:
        apt = self.folder
        places = {
            "Dir::State": apt / "state",
            "Dir::State::Lists": apt / "lists",
            "Dir::State::status": apt / "status",
            "Dir::Cache": apt / "cache",
            "Dir::Etc::sourcelist": apt / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Log": apt / "log",
            "APT::Sandbox::User": "root",
            "APT::Architecture": "amd64",
            "Acquire::Languages": "none",
        }
        return [f"-o{key}={value}" for key, value in places.items()]

    def update(self) -> None:
        """Fetch the lists of packages, once a day. Raises `LabError` where there is no apt."""
        need("apt-get", "apt-cache", "dpkg-deb")
        stamp = self.folder / "stamp"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < DAY:
            return
        for name in ("lists/partial", "cache/archives/partial", "state", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        mirror = _mirror()
        lines = [
            f"deb [signed-by={KEYRING}] {mirror} {suite} main\n"
            for suite in sorted({*self.suites, QEMU_SUITE})
        ]
        (self.folder / "sources.list").write_text("".join(lines), encoding="utf-8")
        call(["apt-get", *self._options(), "-q", "update"])
        stamp.touch()

    def kernels(self) -> dict[str, tuple[str, ...]]:
        """Every kernel offered, oldest first: version to packages. From 7.x on, image and modules
        are two packages."""
        self.update()
        found: dict[str, tuple[str, ...]] = {}
        for name in call(["apt-cache", *self._options(), "pkgnames", "linux-"]).split():
            match = re.fullmatch(r"linux-(binary|image)-(\d.*)-cloud-amd64", name)
            if match and (match[1] == "binary" or match[2] not in found):
                modules = (f"linux-modules-{match[2]}-cloud-amd64",) if match[1] == "binary" else ()
                found[match[2]] = (name, *modules)
        return dict(sorted(found.items(), key=lambda item: natural(item[0])))

    def closure(self, package: str) -> list[str]:
        """A package with the libraries that it needs, each as name=version."""
        self.update()
        shown = call(
            [
                "apt-get",
                *self._options(),
                "-s",
                f"-oAPT::Default-Release={QEMU_SUITE}",
                "--no-install-recommends",
                "install",
                package,
            ]
        )
        wanted = r"Inst ((?:lib|seabios|zlib1g|qemu-system-(?:x86|data))\S*) \((\S+)"
        return [f"{name}={version}" for name, version in re.findall(wanted, shown)]

    def unpack(self, names: Sequence[str], into: Path) -> None:
        """Download packages and unpack them below `into`."""
        self.update()
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            call(["apt-get", *self._options(), "-q", "download", *names], cwd=Path(folder))
            for package in Path(folder).glob("*.deb"):
                call(["dpkg-deb", "-x", package, into])


def natural(version: str) -> list[tuple[int, int, str]]:
    """A key that sorts versions as Debian does: 6.9 before 6.12, 7.3~rc7 before 7.3."""
    key = []
    for part in re.findall(r"\d+|[^\d]+", version):
        rank = 2 if part.isdigit() else -1 if part.startswith("~") else 1
        key.append((rank, int(part) if rank == 2 else 0, "" if rank == 2 else part))
    return [*key, (0, 0, "")]


def _mirror() -> str:
    """The Debian mirror that this system is set up for."""
    form = "$(ORIGIN)\t$(RELEASE)\t$(REPO_URI)"
    shown = call(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    for line in shown.splitlines():
        origin, release, uri = line.split("\t")
        if origin == "Debian" and not re.search("security|updates|backports", release):
            return uri
    raise LabError(
        "no Debian mirror in this system's apt configuration: run 'apt-get update' as root first, "
        "or give a kernel of your own with --kernel IMAGE --modules FOLDER, and --qemu, --busybox"
    )


@frozen
class Supplies:
    """Everything that a boot needs, fetched when it is first asked for and kept in `folder`.

    `qemu_program` and `busybox_program` are the user's own, if given.
    """

    folder: Path = field(factory=default_directory)
    qemu_program: Path | None = None
    busybox_program: Path | None = None
    suites: tuple[str, ...] = SUITES

    @property
    def packages(self) -> Packages:
        """Debian's packages."""
        return Packages(self.folder / "apt", self.suites)

    def kernel(self, name: str) -> LabKernel:
        """The newest packaged kernel whose version begins with `name` (6.1, 6.12, 7.2)."""
        place = self.folder / "kernels" / name
        stored = place / "version"
        if stored.is_file():
            version = stored.read_text(encoding="utf-8").strip()
            return LabKernel(name, version, place / "vmlinuz", place / "modules")
        offered = self.packages.kernels()
        fits = [each for each in offered if re.match(rf"{re.escape(name)}(?!\d)", each)]
        if not fits:
            raise LabError(f"no kernel {name} is offered: there are {', '.join(offered) or 'none'}")
        return self._unpacked(name, fits[-1], offered[fits[-1]])

    def _unpacked(self, name: str, version: str, packages: tuple[str, ...]) -> LabKernel:
        place = self.folder / "kernels" / name
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            self.packages.unpack(packages, Path(folder))
            shutil.rmtree(place, ignore_errors=True)
            (place / "modules").mkdir(parents=True)
            image = next(Path(folder).rglob("vmlinuz*"), None)
            if image is None:
                raise LabError(f"{', '.join(packages)}: there is no kernel image in it")
            shutil.copy(image, place / "vmlinuz")
            modules = collect_modules(Path(folder), place / "modules")
        (place / "version").write_text(version + "\n", encoding="utf-8")
        return LabKernel(name, version, place / "vmlinuz", modules)

    def own_kernel(self, image: Path, modules: Path | None) -> LabKernel:
        """A kernel that the user has built: its image, and the folder below which its modules are
        (as `make modules_install INSTALL_MOD_PATH=` leaves them); None if all is built in."""
        if not image.is_file():
            raise LabError(f"{image} is no kernel image, and no version that packages have")
        place = self.folder / "own" / f"{image.name}-{image.stat().st_mtime_ns:x}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if modules is not None:
            collect_modules(modules, place)
        return LabKernel(image.name, str(image), image.absolute(), place)

    def qemu(self) -> list[str]:
        """The command line that QEMU's options follow."""
        if self.qemu_program is not None:
            return [str(self.qemu_program)]
        root = self.folder / "qemu"
        binary = root / "usr/bin/qemu-system-x86_64"
        if not binary.exists():
            wanted = self.packages.closure("qemu-system-x86")
            if not wanted:
                raise LabError(f"QEMU cannot be had from {QEMU_SUITE}; give yours with --qemu")
            self.packages.unpack(wanted, root)
        loader = next(root.rglob("ld-linux-x86-64.so.2"), None)
        if loader is None or not binary.exists():
            raise LabError(f"{root} is not whole; remove it, and it is fetched again")
        libraries = ":".join(str(root / part / "x86_64-linux-gnu") for part in ("usr/lib", "lib"))
        share = root / "usr/share"
        firmware = ["-L", str(share / "seabios"), "-L", str(share / "qemu")]
        return [str(loader), "--library-path", libraries, str(binary), *firmware]

    def busybox(self) -> Path:
        """A static busybox."""
        if self.busybox_program is not None:
            return self.busybox_program
        place = self.folder / "busybox"
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=self._made()) as folder:
                self.packages.unpack([f"busybox-static/{QEMU_SUITE}"], Path(folder))
                found = next(path for path in Path(folder).rglob("busybox") if path.is_file())
                shutil.copy(found, place)
        return place

    def workload_program(self) -> Path:
        """`kvmwl`, compiled from the source that the package has."""
        place = self._made() / "kvmwl"
        source = resources.files("stress.lab").joinpath("src", "kvmwl.c").read_bytes()
        kept = self.folder / "kvmwl.c"
        if not place.exists() or not kept.exists() or kept.read_bytes() != source:
            need("gcc")
            kept.write_bytes(source)
            call(["gcc", "-O2", "-static", "-pthread", "-o", place, kept])
        return place

    def _made(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder


def collect_modules(source: Path, into: Path) -> Path:
    """Copy the modules that the guest loads out of a tree, unpacked."""
    for name in MODULES:
        for found in sorted(source.rglob(f"{name}.ko*"))[:1]:
            (into / f"{name}.ko").write_bytes(_module_bytes(found))
    return into


def _module_bytes(path: Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        need("zstd")
        return subprocess.run(  # noqa: S603 - a module of the kernel that was just unpacked
            ["zstd", "-qdc", str(path)],  # noqa: S607 - found on the PATH
            capture_output=True,
            check=True,
        ).stdout
    return path.read_bytes()
