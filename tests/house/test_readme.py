"""The README is true: its examples run, its two commands are the ones that CI runs, and its tables
name what exists."""

from __future__ import annotations

import functools
import re

import pytest

from tests.command import ROOT, Done, python

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@functools.cache
def output_of(example: str) -> Done:
    return python("-c", example)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_every_python_example_runs(example: str) -> None:
    done = output_of(example)
    assert done.code == 0, done.err


def test_the_library_example_prints_what_its_comments_say() -> None:
    example = next(text for text in EXAMPLES if "create_tdp_fd" in text)
    done = output_of(example)
    assert done.out.split() == ["Dma.DONE", "None", "False"]
    assert done.err == ""


def test_the_lockdep_example_reports_the_inversion() -> None:
    example = next(text for text in EXAMPLES if 'Lock("a"), Lock("b")' in text)
    assert "possible circular locking dependency detected" in output_of(example).err


def test_ci_runs_the_readmes_test_command() -> None:
    command = (
        "python3 -m venv .venv-test && .venv-test/bin/pip install -q '.[test]' && "
        ".venv-test/bin/pytest -q -n auto"
    )
    assert command in README
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:configs|stress|mmu|tests)/[\w./*-]+)`", README):
        assert list(ROOT.glob(name)), name
