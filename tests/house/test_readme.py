"""The README and the guides are true: their examples run, the two commands are the ones that CI
runs, what is shown is what is printed, and links and names lead somewhere."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path

import pytest

from stress.commands.command_line import VERBS
from tests.command import ROOT, Done, python

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = "\n".join(
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("running", "exploring", "detection", "designs", "threads")
)
EXAMPLES = re.findall(r"```python\n(.*?)```", README + GUIDES, re.DOTALL)


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


def test_every_file_that_is_named_exists() -> None:
    for name in re.findall(r"`((?:configs|stress|mmu|tests)/[\w./*-]+)`", README + GUIDES):
        assert list(ROOT.glob(name)), name


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 8_000


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_commands_of_a_verb_are_understood(verb: str) -> None:
    """Every command that is shown, up to what a shell does with it, without carrying it out."""
    for page in (README, GUIDES):
        for words in commands(page):
            if words[0] == verb:
                VERBS[verb].load().make_context(f"stress {verb}", words[1:])


def commands(page: str) -> list[list[str]]:
    """The words after `stress` of every command in a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    after = [line.partition("bin/stress ")[2] for line in lines]
    told = [re.split(r" [>|&]|;", command)[0] for command in after if command]
    return [shlex.split(command.replace("$seed", "1"), comments=True) for command in told]


def test_the_failure_that_is_shown_is_the_one_that_is_found(tmp_path: Path) -> None:
    shown = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    (command,) = (words for words in commands(README) if words[0] == "explore")
    explored = python("-m", "stress", *command, "--results", tmp_path)
    assert explored.code == 1, explored.err
    assert plain(shown[0], tmp_path) == plain(explored.out[explored.out.index("FAIL") :], tmp_path)
    explained = python("-m", "stress", "explain", "r22-exported-zap-after-break")
    for line in shown[1].splitlines():
        assert line in explained.out.splitlines()


def plain(text: str, results: Path) -> str:
    """A text without times, and with the results where they are by default."""
    return re.sub(r"after \d+\.\d+ s", "after a while", text.replace(str(results), "results"))
