"""The same recording as other programs print it: trace-cmd report, perf script, the kernel's log,
tracefs with its options."""

from __future__ import annotations

import re
from collections.abc import Callable

_LINE = re.compile(r"(.{16})-(\d+) +\[(\d+)\] (\S+) +(\d+): ([\w.$]+)(: | <-)(.*)")


def as_trace_cmd(lines: list[str], flags: bool = True) -> list[str]:
    """What `trace-cmd report` prints of the same events."""
    out = ["cpus=2"]
    for found in (_LINE.match(line) for line in lines):
        if found is not None:
            task, pid, cpu, state, time, name, kind, text = found.groups()
            event, text = _reported(name, kind, text)
            column = f" {state}" if flags else ""
            stamp = f"{int(time) / 1e6:12.6f}"
            out.append(
                f"{task.strip():>16}-{pid:<5} [{cpu}]{column} {stamp}: {event + ':':<21} {text}"
            )
    return out


_PAGE = re.compile(
    r"sp gen \w+ gfn (\w+) l(\d) \S+ q0 direct (\w+) \S+ \S+ root (\d+) sync ?(new|existing)?"
)


def _reported(name: str, kind: str, text: str) -> tuple[str, str]:
    if kind == " <-":
        return "function", f"{name} <-- {text}"
    if name == "tracing_mark_write":
        return "print", f"tracing_mark_write: {text}"
    if page := _PAGE.match(text):
        gfn, level, access, count, new = page.groups()
        made = f"{new} sp gfn {gfn} " if new else ""
        # the plugin does not know that the access has one bit more since 7.x
        invalid = " invalid" if access == "rwux" else ""
        return name, f"{made}{level} q0 direct wux{invalid} !pae !nxe !wp root {count} sync"
    if name == "kvm_exit":
        vcpu, reason = re.findall(r"vcpu (\d+) reason (\S+)", text)[0]
        return name, f"reason {reason} rip 0x1000 info 0 0 vcpu {vcpu}"
    return name, _addressed(text)


def _addressed(text: str) -> str:
    """Neither trace-cmd nor perf resolves the addresses of probes."""
    if not text.startswith("("):
        return text
    where, _, args = text.partition(")")
    address = "ffffffffc0a51234 <- ffffffffc0a55678" if " <- " in where else "ffffffffc0a51234"
    return f"({address}){args}"


def as_perf_script(lines: list[str]) -> list[str]:
    """What `perf script` prints of the same events."""
    out = ["# ========", "# captured on    : Mon Mar  2 10:00:00 2026", "# ========", "#"]
    for found in (_LINE.match(line) for line in lines):
        if found is None or found[6] == "tracing_mark_write":
            continue
        task, pid, cpu, _, time, name, kind, text = found.groups()
        system = "kvm" if name in ("kvm_entry", "kvm_exit", "kvm_page_fault") else "kvmmmu"
        if kind == " <-":
            system, name, text = "ftrace", "function", f" {name} <-- {text}"
        elif text.startswith("("):
            system, name = "tdp_stress", re.sub(r"_ret$", "__return", name)
        stamp = f"{int(time) / 1e6:12.6f}"
        event = f"{system}:{name}"
        out.append(f"{task.strip():>16} {pid:>7} [{cpu}] {stamp}: {event:>40}: {_addressed(text)}")
    return out


def as_kernel_log(lines: list[str], prefix: str = "[   12.345678] ") -> list[str]:
    """What ftrace_dump() writes to the kernel's log."""
    out = [f"{prefix}Dumping ftrace buffer:", f"{prefix}---------------------------------"]
    for found in (_LINE.match(line) for line in lines):
        if found is not None:
            task, pid, cpu, state, time, name, kind, text = found.groups()
            rest = f"{name} <-{text}" if kind == " <-" else f"{name}: {text}"
            out.append(f"{prefix}{task[-8:]}-{pid:<7} {int(cpu):3d}{state} {time}us : {rest}")
    return [*out, f"{prefix}---------------------------------"]


def as_journal(lines: list[str]) -> list[str]:
    """`journalctl -k`, with other messages of the kernel before, between and behind."""
    other = "Mar 02 10:00:00 host kernel: usb 1-1: new high-speed USB device number 2"
    log = as_kernel_log(lines, "Mar 02 10:00:00 host kernel: ")
    return [other, *log[:40], other, *log[40:], other]


def as_pstore(lines: list[str]) -> list[str]:
    """A dump that pstore has kept: levels, time stamps, and the rest of the log."""
    oops = ["<1>[   11.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000"]
    return [
        *oops,
        *as_kernel_log(lines, "<4>[   12.345678] "),
        "<4>[   13.000000] Modules linked in:",
    ]


def as_latency_format(lines: list[str]) -> list[str]:
    """The option latency-format: the CPU stands with the flags, and a mark behind the time."""
    out = ["# tracer: nop", "#", "# _------=> CPU#"]
    for found in (_LINE.match(line) for line in lines):
        if found is not None:
            task, pid, cpu, state, time, name, kind, text = found.groups()
            rest = f"{name} <-{text}" if kind == " <-" else f"{name}: {text}"
            out.append(f"{task.strip()[-8:]:>8}-{pid:<7} {int(cpu):3d}{state} {time}us+: {rest}")
    return out


def as_trace_pipe(lines: list[str]) -> list[str]:
    """Without a header."""
    return [line for line in lines if not line.startswith("#")]


def with_function_arguments(lines: list[str]) -> list[str]:
    """The option func-args."""
    return [
        re.sub(r": ([\w.]+) <-", r": \1(kvm=0xffffc90000001000, n=0x3) <-", line) for line in lines
    ]


def with_offsets(lines: list[str]) -> list[str]:
    """The option sym-offset."""
    return [
        re.sub(r": ([\w.]+) <-(\S+)", r": \1+0x0/0x90 [kvm] <-\2+0x1f/0x70", line) for line in lines
    ]


_ROLE = {"wux": 7, "rwux": 15}
_HEX = r"([0-9a-f]+)"
_FIELDS: dict[str, tuple[str, str]] = {
    "kvm_tdp_mmu_spte_changed": (
        rf"as id (\d+) gfn {_HEX} level (\d) old_spte {_HEX} new_spte {_HEX}",
        "gfn={1} old_spte={3} new_spte={4} level={2} as_id={0}",
    ),
    "kvm_mmu_set_spte": (
        rf"gfn {_HEX} spte {_HEX} \(\S*\) level (\d) at {_HEX}",
        "gfn={0} spte={1} sptep={3} level={2} r=1 x=1 u=-1",
    ),
    "kvm_mmu_spte_requested": (rf"gfn {_HEX} pfn {_HEX} level (\d)", "gfn={0} pfn={1} level={2}"),
    "kvm_unmap_hva_range": (rf".*: 0x{_HEX} -- 0x{_HEX}", "start={0} end={1}"),
    "kvm_mmu_zap_all_fast": (
        rf"kvm-mmu-valid-gen (\d) used_pages {_HEX}",
        "mmu_valid_gen={0} mmu_used_pages={1}",
    ),
    "mark_mmio_spte": (
        rf"sptep:\S+ gfn {_HEX} access {_HEX} gen {_HEX}",
        "sptep=0x0 gfn={0} access={1} gen={2}",
    ),
}


def as_fields(lines: list[str], before: str = "") -> list[str]:
    """Payloads printed field by field, as `trace-cmd report -R` does, and as trace-cmd and perf do
    where a format is beyond them."""
    return [_as_fields(line, before) for line in lines]


def _as_fields(line: str, before: str) -> str:
    found = _LINE.match(line)
    if found is None:
        return line
    name, text = found[6], found[8]
    if page := _PAGE.match(text):
        gfn, level, access, count, new = page.groups()
        role = int(level) | 1 << 7 | _ROLE[access] << 8
        made = f" created={int(new == 'new')}" if new else ""
        return line[: found.start(8)] + (
            f"{before}mmu_valid_gen=0 gfn={int(gfn, 16)} role={role} root_count={count} unsync=0"
            f"{made}"
        )
    pattern, fields = _FIELDS.get(name, ("$^", ""))
    if not (values := re.match(pattern, text)):
        return line
    decimal = "id (\\d+)" in pattern
    numbers = [
        int(value, 10 if decimal and at in (0, 2) else 16)
        for at, value in enumerate(values.groups())
    ]
    return line[: found.start(8)] + before + fields.format(*numbers)


FORMS: dict[str, Callable[[list[str]], list[str]]] = {
    "trace-cmd report": as_trace_cmd,
    "trace-cmd report without flags": lambda lines: as_trace_cmd(lines, flags=False),
    "trace-cmd report without the plugin": lambda lines: as_trace_cmd(
        as_fields(lines, "[FAILED TO PARSE] ")
    ),
    "trace-cmd report -R": lambda lines: as_trace_cmd(as_fields(lines)),
    "perf script": as_perf_script,
    "perf script without the plugin": lambda lines: as_perf_script(
        as_fields(lines, "[FAILED TO PARSE] ")
    ),
    "kernel log": as_kernel_log,
    "journal": as_journal,
    "pstore": as_pstore,
    "trace_pipe": as_trace_pipe,
    "latency-format": as_latency_format,
    "fields": as_fields,
    "func-args": with_function_arguments,
    "sym-offset": with_offsets,
    "CR LF": lambda lines: [f"{line}\r" for line in lines],
}
"""By name, how the lines of a recording are rewritten."""
