"""The type checker knows the arguments of every hook, where it is emitted and where it is heard."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT

SNIPPET = """
from mmu.paging.table import RootPage
from mmu.probe import Instrument, Listeners, Probe, override


class Right(Instrument):
    @override
    def point(self, name: str) -> None: ...

    @override
    def root_freed(self, root: object) -> None: ...


class Wrong(Instrument):
    @override
    def point(self, name: int) -> None: ...  # wrong: the type of an argument

    @override
    def root_freed(self) -> None: ...  # wrong: too few arguments

    @override
    def dirty_log_read(self, slot: RootPage, pages: set[int]) -> None: ...  # wrong: not a memslot

    @override
    def rooot_freed(self, root: RootPage) -> None: ...  # wrong: not a hook


class Other:
    def point(self, name: str) -> None: ...


def emit(probe: Probe, root: RootPage) -> None:
    probe.point("P1")  # wrong: may be None
    if probe.point is not None:
        probe.point("P1")
        probe.point(1)  # wrong: the type of an argument
    freed = probe.root_freed
    if freed is not None:
        freed(root)
        freed()  # wrong: too few arguments
        freed(root, 1)  # wrong: too many arguments
    if probe.rooot_freed is not None:  # wrong: not a hook
        pass
    probe.attach(Right(), Listeners({"point": print}))
    probe.attach(Other())  # wrong: not an instrument
"""


def test_a_wrong_emitter_and_a_wrong_observer_are_type_errors(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(SNIPPET, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent"]
    command += [f"--config-file={ROOT / 'pyproject.toml'}", f"--cache-dir={tmp_path}"]
    done = subprocess.run(
        [*command, snippet], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    reported = {int(line) for line in re.findall(r"^.*snippet\.py:(\d+): error", done.stdout, re.M)}
    wrong = {n for n, line in enumerate(SNIPPET.splitlines(), 1) if "# wrong: " in line}
    assert reported == wrong, done.stdout
