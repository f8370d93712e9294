"""Recordings for tests: the small ones that are kept, and a script that damages copies of them."""

from __future__ import annotations

import lzma
import random
import re
from functools import cache
from pathlib import Path

from stress.trace.checker import Checker, CheckResult
from stress.trace.names import FUNCTIONS
from stress.trace.reader import TraceReader
from stress.trace.record import MORE_FUNCTIONS, PROBES, ProbeSpec

DATA = Path(__file__).parent / "data" / "traces"
NAMES = sorted(path.name.removesuffix(".trace.xz") for path in DATA.glob("*.trace.xz"))

OTHER_KERNELS = sorted(
    f"{path.parent.name}/{path.name.removesuffix('.trace.xz')}"
    for kernel in ("6.1", "7.2")
    for path in (DATA / kernel).glob("*.trace.xz")
)


def path_of(name: str) -> Path:
    return DATA / f"{name}.trace.xz"


@cache
def _text(name: str) -> tuple[str, ...]:
    return tuple(lzma.decompress(path_of(name).read_bytes()).decode().splitlines())


def lines_of(name: str) -> list[str]:
    """A fresh copy of a recording's lines."""
    return list(_text(name))


def judge(lines: list[str], **options: str) -> CheckResult:
    """What `check` says to these lines."""
    checker = Checker(**options)
    reader = TraceReader.of_lines(lines)
    for event in reader:
        if not checker.feed(event):
            reader.ignore.add(event.name)
    return checker.result(reader, None)


def find(lines: list[str], pattern: str, start: int = 0) -> list[int]:
    """Indices of the lines that match."""
    return [index for index in range(start, len(lines)) if re.search(pattern, lines[index])]


def pick(lines: list[str], pattern: str, seed: int) -> int:
    """The index of one line that matches."""
    return random.Random(seed).choice(find(lines, pattern))


def pid_of(line: str) -> str:
    return re.search(r"-(\d+) +\[", line)[1]  # type: ignore[index]


def without(lines: list[str], indices: set[int]) -> list[str]:
    return [line for index, line in enumerate(lines) if index not in indices]


def never(lines: list[str], indices: set[int]) -> list[str]:
    """The lines of a kernel that did not do what these lines say: as many as the header
    announces."""
    return header_for(without(lines, indices))


def flush_removed(lines: list[str], seed: int) -> tuple[list[str], int]:
    """All that says that one remote flush happened is gone, the request that it makes, too; the
    line after it."""
    at = pick(lines, r" flush_remote: ", seed)
    gone = {index for index in range(at - 3, at + 4) if re.search(r"flush_remote", lines[index])}
    own = pid_of(lines[at])
    for index in range(at, at + 12):
        if pid_of(lines[index]) == own and "make_all" in lines[index]:
            gone.add(index)
        if "make_all_req_ret" in lines[index]:
            break
    return never(lines, gone), at


def put_doubled(lines: list[str], seed: int) -> tuple[list[str], int]:
    at = pick(lines, r" put_root: ", seed)
    return [*lines[: at + 1], lines[at], *lines[at + 1 :]], at + 2


def leaf_revived(lines: list[str], seed: int) -> tuple[list[str], int]:
    """After a slot was deleted, one of its pages is mapped again."""
    deletes = find(lines, r" set_memslot: .*change=1 ")
    call = random.Random(seed).choice(deletes)
    gfn = int(re.search(r"old_gfn=0x([0-9a-f]+)", lines[call])[1], 16)  # type: ignore[index]
    ret = find(lines, r" set_memslot_ret: ", call)[0]
    change = (
        f"kvm_tdp_mmu_spte_changed: as id 0 gfn {gfn:x} level 1 old_spte 8000000000000000 new_spte "
        "2402e67"
    )
    revived = re.sub(r"set_memslot_ret: .*", change, lines[ret])
    return [*lines[: ret + 1], revived, *lines[ret + 1 :]], ret + 2


def reload_dropped(lines: list[str], seed: int) -> tuple[list[str], int]:
    """A vCPU's kvm_mmu_load() never happened; the line of its next entry to the guest."""
    begin = random.Random(seed).choice(find(lines, r" mmu_load: ")[1:])
    pid = pid_of(lines[begin])
    end = next(
        index for index in find(lines, r" mmu_load_ret: ", begin) if pid_of(lines[index]) == pid
    )
    left = never(
        lines, {index for index in range(begin - 1, end + 1) if pid_of(lines[index]) == pid}
    )
    return left, next(
        index + 1 for index in find(left, r" kvm_entry: ", begin - 1) if pid_of(left[index]) == pid
    )


def request_dropped(lines: list[str], seed: int) -> tuple[list[str], int]:
    """Nobody was asked to drop the obsolete roots; the line where their zap begins."""
    at = pick(lines, r" make_all_req: .*req=0x327", seed)
    return never(lines, {at - 1, at, at + 1}), find(lines, r" zap_invalidated_roots: ", at)[
        0
    ] + 1 - 3


def spte_altered(lines: list[str], seed: int, which: str = "old_spte") -> tuple[list[str], int]:
    """One hexadecimal digit of one SPTE is another."""
    chance = random.Random(seed)
    at = chance.choice(find(lines, r"kvm_tdp_mmu_spte_changed: "))
    found = re.search(rf"{which} ([0-9a-f]+)", lines[at])
    assert found is not None
    place = chance.randrange(*found.span(1))
    digit = chance.choice([digit for digit in "0123456789abcdef" if digit != lines[at][place]])
    return [
        *lines[:at],
        lines[at][:place] + digit + lines[at][place + 1 :],
        *lines[at + 1 :],
    ], at + 1


def shuffled(lines: list[str], seed: int) -> list[str]:
    """Forty lines of both CPUs in any order."""
    chance = random.Random(seed)
    at = chance.randrange(20, len(lines) - 60)
    some = lines[at : at + 40]
    chance.shuffle(some)
    return [*lines[:at], *some, *lines[at + 40 :]]


def header_for(lines: list[str]) -> list[str]:
    """The same lines, announced by a header that fits them."""
    count = sum(not line.startswith("#") for line in lines)
    return [re.sub(r"(entries-written: )\d+/\d+", rf"\g<1>{count}/{count}", line) for line in lines]


def as_kernel_6_1(lines: list[str]) -> list[str]:
    """The SPTE values that 6.1 writes for the same changes."""
    return [
        re.sub(r"_spte 8000000000000000", "_spte 0", line).replace("80000000000005a0", "5a0")
        for line in lines
    ]


def as_kernel_7_2(lines: list[str]) -> list[str]:
    """The frozen value and the role words of 7.2."""
    swapped = [line.replace("80000000000005a0", "80000000000001a0") for line in lines]
    return parents_last([re.sub(r"role=(0x[0-9a-f]+)", _role_of_7_2, line) for line in swapped])


def parents_last(lines: list[str]) -> list[str]:
    """7.2 reports that a table was let go of after what was in it, where the lines of one task
    stand together."""
    out = list(lines)
    at = 0
    while at < len(out):
        end = at + 1
        if re.search(r"spte_changed: .* level [2-4] old_spte \w{4,9}827 new_spte", out[at]):
            while end < len(out) and (
                _frozen(out[end])
                or ("prepare_zap_page" in out[end] and (end == at + 1 or _frozen(out[end - 1])))
            ):
                end += 1
            moved = (
                [*out[at + 1 : at + 2], *parents_last(out[at + 2 : end]), out[at]]
                if end > at + 1
                else out[at:end]
            )
            stamps = [re.search(r" (\d+): ", line)[1] for line in out[at:end]]  # type: ignore[index]
            out[at:end] = [
                re.sub(r" \d+: ", f" {stamp}: ", line, count=1)
                for stamp, line in zip(stamps, moved, strict=True)
            ]
        at = end
    return out


def _frozen(line: str) -> bool:
    return "new_spte 80000000000001a0" in line


def _role_of_7_2(found: re.Match[str]) -> str:
    role = int(found[1], 16)
    return f"role={role & 0x7FF | 0x800 | (role & ~0x7FF) << 1:#x}"


def as_intel(lines: list[str]) -> list[str]:
    """EPT: the same tables in Intel's bits, and Intel's functions."""
    changed = [
        re.sub(r"((?:old|new)_spte|spte) ([0-9a-f]+)( |$)", _ept, line)
        for line in lines
        if "mmio_spte" not in line
    ]
    return [line.replace("svm_", "vmx_") for line in changed]


def _ept(found: re.Match[str]) -> str:
    value = int(found[2], 16)
    if not value & 1 << 11:
        mmio = value & 1 and value & 1 << 51
        value = 0b110 | value & 0x7FF8 if mmio else value
        if mmio:
            value |= int(found[2], 16) & ((1 << 51) - 4096)
    else:
        leaf = value & 0x600 or not value & 2 or value & 0x80
        low = 1 | value & 2 | 4 | (value & 0x20) << 3 | (value & 0x40) << 3 | value & 0x80 | 0x800
        high = (value >> 9 & 1) << 57 | (value >> 10 & 1) << 58
        value = value & ~0xFFF & ((1 << 52) - 1) | low | high | (0x70 if leaf else 0)
    return f"{found[1]} {value:x}{found[3]}"


_PROBE_LINE = re.compile(
    r"(.*: )\w+: \((?:\S+(?: \[\w+\])? <- )?([\w.]+)(?:\+\S+)?(?: \[\w+\])?\)(.*)"
)
_ENTERED = re.compile(r": ([\w.]+) <-")
_EVENTS_OF_LEVEL_1 = re.compile(
    r": (kvm_tdp_mmu_\w+|kvm_mmu_\w+|fast_page_fault|\w+_mmio_spte|handle_mmio_page_fault|"
    r"kvm_entry|kvm_exit|kvm_page_fault|kvm_userspace_exit|kvm_unmap_hva_range|"
    r"kvm_smm_transition): [^(]"
)
ENTERED = frozenset({*FUNCTIONS, *MORE_FUNCTIONS})
"""Functions whose entries the script of level 2 records."""


def reduced(lines: list[str], level: int) -> list[str]:
    """What the script of this level would have recorded of the same run: without the workload's
    markers, and without what that level does not record."""
    probes = {
        (probe.function, probe.name.endswith("_ret")): probe
        for probe in PROBES
        if probe.level <= level
    }
    kept = []
    for line in lines:
        if line.startswith("#") or _EVENTS_OF_LEVEL_1.search(line):
            kept.append(line)
        elif found := _PROBE_LINE.match(line):
            probe = probes.get((found[2], " <- " in line[: found.start(3)]))
            if probe is not None:
                kept.append(_with_arguments_of(probe, line, found))
        elif (entered := _ENTERED.search(line)) and level >= 2 and entered[1] in ENTERED:
            kept.append(line)
    return header_for(kept)


def _with_arguments_of(probe: ProbeSpec, line: str, found: re.Match[str]) -> str:
    """The line of a probe with the arguments that the script asks for; there is one VM."""
    wanted = list(dict.fromkeys(re.findall(r"(\w+)=", " ".join(probe.tries))))
    have = dict(re.findall(r"(\w+)=(\S+)", found[3]))
    if "kvm" in wanted:
        have["kvm"] = "0xffffc90000001000"
    args = "".join(f" {name}={have[name]}" for name in wanted if name in have)
    where = line[found.end(1) : found.start(3)].partition(": ")[2]
    return f"{found[1]}{probe.name}: {where}{args}"
