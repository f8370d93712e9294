"""Every example of `mmu.sync` as a library: what it reports, once, and what it prints when it goes
on."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from tests.command import ROOT, python

EXAMPLES = ROOT / "examples" / "sync"

EXPECTED: dict[str, tuple[list[str], str]] = {
    # the checks that report, in order; then a pattern for what is printed
    "inversion": (
        ["circular-dependency"],
        r"pay/2:\n  #0: .* pay \(.*\)\n  #1: .* pay \(.*\)\n1 payments, 90 left",
    ),
    "rcu_table": (
        ["use-after-free", "suspicious-rcu-usage"],
        "inside the section: db1.example\nafter the section: 5432",
    ),
    "sleep_in_atomic": (["sleep-in-atomic", "sleep-in-atomic", "sleep-in-rcu"], "done"),
    "overhead": (
        [],
        r"CPython 3\.\d+\.\d+, (GIL|free-threaded)\n(.+ / .+ +[\d.]+ +\d+ ns / +\d+ ns\n?){6}",
    ),
    "readerwriterlock/read_in_read": (["read-in-read"], "size: 3"),
    "readerwriterlock/write_in_write": (
        ["write-in-write"],
        "refused: .* holds table_lock .* for write and asks for write.*",
    ),
    "readerwriterlock/upgrade": (
        ["write-in-read"],
        "refused: .* holds table_lock .* for read and asks for write.*",
    ),
    "readerwriterlock/read_in_write": (
        ["read-in-write"],
        "refused: .* holds table_lock .* for write and asks for read.*",
    ),
    "readerwriterlock/release_twice": (["bad-unlock-balance"], "refused: release unlocked lock"),
    "readerwriterlock/release_by_other": (["released-by-other"], "held by me: False"),
    "readerwriterlock/handle_twice": (
        ["handle-acquired-twice"],
        "refused: this handle .* is in use by MainThread/1.*\na writer gets in",
    ),
    "readerwriterlock/handle_shared": (
        ["handle-acquired-twice"],
        "refused: this handle .* is in use by MainThread/1.*\na writer gets in",
    ),
    "readerwriterlock/timed_reacquire": (
        ["handle-acquired-twice"],
        "again: False\na reader gets in",
    ),
    "readerwriterlock/downgrade": (
        ["downgrade-not-atomic"],
        "refused: RWLockReadD cannot downgrade .*\ndowngraded, writers kept out: True",
    ),
    "readerwriterlock/interrupted": (
        ["interrupted-lock"],
        "interrupted\nrefused: table_lock .* KeyboardInterrupt in MainThread/1.*",
    ),
    "readerwriterlock/nonblocking_read": (
        [],
        r"granted, of 50: [345]\d\nwhile a writer is in: False",
    ),
    "readerwriterlock/locked_of_handle": (["locked-of-fresh-handle"], "locked: True"),
    "readerwriterlock/starved_writer": (["starved"], ""),
    "readerwriterlock/starved_reader": (["starved"], ""),
}


def test_every_example_is_expected_to_do_something() -> None:
    assert {
        str(path.relative_to(EXAMPLES).with_suffix("")) for path in EXAMPLES.glob("**/*.py")
    } == set(EXPECTED)


output_of = functools.cache(python)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_is_reported_and_goes_on(name: str) -> None:
    codes, printed = EXPECTED[name]
    done = output_of(str(EXAMPLES / f"{name}.py"))
    assert done.code == 0, done.err
    splats = re.findall(
        r"^=+\n(?:BUG|WARNING|INFO): .*\n-+\nrule O\d+ \(([\w-]+)\): ", done.err, re.MULTILINE
    )
    assert splats == codes
    assert re.fullmatch(printed, done.out.strip()), done.out
    # the report names a line of the example
    assert not codes or f"{Path(name).name}.py:" in done.err


DOCUMENT = (ROOT / "docs" / "sync.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    re.findall(r"```text\n(.*?)```", DOCUMENT, re.DOTALL),
    ids=lambda text: text.splitlines()[0][:40],
)
def test_every_output_in_the_document_is_a_real_one(text: str) -> None:
    name = re.search(r"\((\w+)\.py:", text)
    assert name is not None
    (path,) = EXAMPLES.glob(f"**/{name[1]}.py")
    done = output_of(str(path))
    real = iter([*done.err.splitlines(), *done.out.splitlines()])
    # all of them, in this order
    assert [line for line in text.splitlines() if line not in real] == []


@pytest.mark.parametrize(
    "code",
    re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL),
    ids=lambda text: text.splitlines()[0][:40],
)
def test_every_program_in_the_document_runs(code: str) -> None:
    done = output_of("-c", code)
    assert done.code == 0, done.err
    assert done.err == ""


def test_the_document_names_every_example() -> None:
    assert [name for name in EXPECTED if f"{Path(name).name}.py" not in DOCUMENT] == []
