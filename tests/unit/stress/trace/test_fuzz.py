"""Mutated recordings: whatever a file holds, `check` answers with a verdict or a `TraceError`."""

from __future__ import annotations

import random
import re

import pytest

from stress.results.verdict import Verdict
from stress.trace import show
from stress.trace.checker import Checker
from stress.trace.events import TraceError
from stress.trace.reader import TraceReader
from tests.forms import FORMS
from tests.recordings import lines_of

NAMES = ("w1_delete_thp", "w8_roots", "6.1/w1_delete", "7.2/w1_delete")
VALUES = (
    "0",
    "-1",
    "ffffffffffffffff",
    "7",
    "9" * 26,
    "0x",
    "1_0",
    "zz",
    "5a0",
    "",
    "1e5",
    "(fault)",
)
NUMBER = re.compile(r"\b(0x)?[0-9a-f]+\b")


def mutated(lines: list[str], chance: random.Random) -> bytes:
    """A part of a recording in some form, with lines, words and bytes of it changed."""
    form = chance.choice([None, *FORMS])
    lines = FORMS[form](lines) if form else list(lines)
    first = chance.randrange(len(lines))
    lines = lines[first : first + chance.randrange(2, 500)]
    for _ in range(chance.choice([1, 5, 30])):
        at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        line = lines[at]
        match chance.randrange(6):
            case 0:
                lines[at] = line[: chance.randrange(len(line) + 1)]
            case 1:
                lines[at], lines[other] = lines[other], line
            case 2:
                lines.insert(other, line)
            case 3:
                head, text = line.partition(": ")[0], lines[other].partition(": ")[2]
                lines[at] = f"{head}: {text}"
            case 4:
                words = line.split(" ")
                lines[at] = " ".join(word for word in words if chance.random() < 0.95)
            case _:
                numbers = list(NUMBER.finditer(line))
                if numbers:
                    start, end = chance.choice(numbers).span()
                    lines[at] = line[:start] + chance.choice(VALUES) + line[end:]
    if chance.random() < 0.5:  # or else most of it is blind behind a time that goes back
        lines = [re.sub(r" +\d+: ", f" {at}: ", line, count=1) for at, line in enumerate(lines)]
    raw = bytearray("\n".join(lines).encode() + b"\n")
    for _ in range(chance.choice([0, 0, 4])):
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw)


def verdict_of(raw: bytes) -> Verdict | None:
    checker, reader = Checker(), TraceReader(iter([raw]), "mutated")
    try:
        for event in reader:
            if not checker.feed(event):
                reader.ignore.add(event.name)
    except TraceError:
        return None
    result = checker.result(reader, None)
    assert show.text(result)
    assert show.as_data(result)["verdict"] == result.judgement.verdict.name
    return result.judgement.verdict


@pytest.mark.parametrize("name", NAMES)
def test_no_file_makes_it_crash(name: str) -> None:
    verdicts = [verdict_of(mutated(lines_of(name), random.Random(seed))) for seed in range(40)]
    assert Verdict.INCONCLUSIVE in verdicts


CRASHED = (
    "kvm_tdp_mmu_spte_changed: as id 0 gfn 40000 level -1 old_spte 87f9e67 new_spte 0",
    "kvm_tdp_mmu_spte_changed: as id 0 gfn 40000 level 0 old_spte 87f9ee7 new_spte 5a0",
    "kvm_tdp_mmu_spte_changed: as id 0 gfn 40000 level 1 old_spte 0 new_spte",
    "kvm_tdp_mmu_spte_changed: (tdp+0x4/0xd0 [kvm]) gfn=0x1",
    "flush_remote_range: (kvm_flush_remote_tlbs_range+0x4/0x30 [kvm]) gfn=(fault) n=0x200",
    "put_root: (kvm_tdp_mmu_put_root+0x4/0x30 [kvm]) root=(fault) ref=(fault)",
)


@pytest.mark.parametrize("payload", CRASHED)
def test_payloads_that_made_it_crash_once(payload: str) -> None:
    lines = lines_of("w1_delete_thp")
    middle = len(lines) // 2
    head = lines[middle].partition(": ")[0]
    raw = "\n".join([*lines[:middle], f"{head}: {payload}", *lines[middle:], ""]).encode()
    assert verdict_of(raw) in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS)
