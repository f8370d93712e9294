"""What must be the same wherever tasks of one batch are carried out, or their results could not
be put together."""

from __future__ import annotations

import functools
import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

import mmu
import stress
from stress.results.environment import PACKAGES, version_of
from stress.results.inputs import fingerprints

SHOWN = 12
"""So many digits of a digest tell two apart."""


@frozen
class Identity:
    """The program and what it runs on: the version of tdp-stress and a digest of its sources,
    Python and how it was built, the packages that a run uses, and the user's own files that tasks
    read, each with its digest."""

    version: str
    sources: str
    python: str
    free_threaded_build: bool
    packages: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...] = ()


def identity(files: tuple[str, ...] = ()) -> Identity:
    """Of this process; `files` are paths."""
    return Identity(
        version=version_of("tdp-stress"),
        sources=sources_digest(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        free_threaded_build=bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        packages=tuple((name, version_of(name)) for name in PACKAGES),
        files=tuple((file.path, file.sha256) for file in fingerprints(files)),
    )


@functools.cache
def sources_digest() -> str:
    """SHA-256 over every Python file of `mmu` and `stress`, names included."""
    digest = hashlib.sha256()
    for package in (mmu, stress):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            content = path.read_bytes()
            digest.update(
                f"{package.__name__}/{path.relative_to(root).as_posix()} {len(content)}\n".encode()
            )
            digest.update(content)
    return digest.hexdigest()


def differences(wanted: Identity, found: Identity) -> Iterator[str]:
    """What is not as it has to be, in words; nothing where all is."""
    if found.version != wanted.version:
        yield f"tdp-stress {found.version}, here it is {wanted.version}"
    elif found.sources != wanted.sources:
        yield (
            f"tdp-stress {found.version} with other sources ({found.sources[:SHOWN]}, here "
            f"{wanted.sources[:SHOWN]})"
        )
    if found.python != wanted.python:
        yield f"{found.python}, here it is {wanted.python}"
    if found.free_threaded_build != wanted.free_threaded_build:
        yield f"a {_build(found)} build of Python, here it is a {_build(wanted)} one"
    there = dict(found.packages)
    for name, version in wanted.packages:
        if there.get(name) != version:
            yield f"{name} {there.get(name, 'not installed')}, here it is {version}"
    yield from _other_files(wanted, found)


def _build(found: Identity) -> str:
    return "free-threaded" if found.free_threaded_build else "GIL"


def _other_files(wanted: Identity, found: Identity) -> Iterator[str]:
    there = dict(found.files)
    for path, digest in wanted.files:
        if not there.get(path):
            yield f"no file {path}: variant files must be at the same place on every machine"
        elif there[path] != digest:
            yield f"another {path} ({there[path][:SHOWN]}, here {digest[:SHOWN]})"
