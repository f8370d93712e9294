"""The README is true: its examples run, its two commands are the ones that CI runs, and its tables name what exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_every_python_example_runs(example: str) -> None:
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_library_example_prints_what_its_comments_say() -> None:
    example = next(text for text in EXAMPLES if "create_tdp_fd" in text)
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["Dma.DONE", "None", "False"]
    assert done.stderr == ""


def test_the_lockdep_example_reports_the_inversion() -> None:
    example = next(text for text in EXAMPLES if 'Lock("a"), Lock("b")' in text)
    done = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "possible circular locking dependency detected" in done.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    command = "python3 -m venv .venv-test && .venv-test/bin/pip install -q '.[test]' && .venv-test/bin/pytest -q -n auto"
    assert command in README
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:configs|stress|mmu|tests)/[\w./*-]+)`", README):
        assert list(ROOT.glob(name)), name
