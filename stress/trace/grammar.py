"""How the lines of a recording are written: one grammar for each program that prints them.

The first line that is an event decides which grammar the rest is read with. Every pattern has the
same groups: task, pid, CPU, flags, time, event name, what follows the name, payload.

Sources: Documentation/trace/ftrace.rst (trace, trace_pipe, the latency format, which ftrace_dump()
uses for the kernel's log); trace-cmd-report(1), libtraceevent's event-parse.c; perf-script(1).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from attrs import frozen

from stress.trace.events import MARKER

Fields = tuple[str, str, str, str | None, str, str, str, str]
"""The groups of a line."""

_HEAD: Final = r"(.{16}|\s*\S.*?)-(\d{1,10}) +"
_REST: Final = r"([\w.$]+)(: *| <-|$|\+0x| <|\()(.*)"
_FLAGS: Final = r"(?:([^\s\d]\S{3,7}) )? *"
_TIME: Final = r"(\d{1,20}(?:\.\d{1,9})?)"

NORMAL: Final = re.compile(
    rf"{_HEAD}(?:\( *(?:\d+|-+)\) +)?\[(\d{{1,5}})\] {_FLAGS}{_TIME}: {_REST}", re.ASCII
)
"""TASK-PID [(TGID)] [CPU] [flags] TIME: NAME, then `: payload` or ` <-caller`."""
_LATENCY: Final = (
    r"(.{8}|\s*\S.*?)-(\d{1,10}) +(\d{1,5})([^\s\d]\S{3,7}) +"
    rf"{_TIME}(?:us)?[ !+#*@$]*: {_REST}"
)
LATENCY: Final = re.compile(_LATENCY, re.ASCII)
"""The latency format: the CPU is glued to the flags, the time has a mark for long delays."""
LOG_PREFIX: Final = re.compile(
    r"(?=\S)(?:<\d{1,3}>|kern +:\w+ +: )?"
    r"(?:(?:\w{3} +\d{1,2} [\d:.]{8,15}|\d{4}-\d\d-\d\dT\S{8,30}) \S+ kernel: )?"
    r"(?:\[(?:[ +]*[\d<]|[A-Z][a-z]{2} )[^\]]{1,40}\](?:\[[^\]]{1,20}\])? ?)?(?:\S+ kernel: )?",
    re.ASCII,
)
"""What dmesg (with and without -d, -T, -x), journalctl and the system's logs put before a line of
the kernel's log."""
_LOOKS_LOGGED: Final = re.compile(r".*-\d{1,10} +\d{1,5}[^\s\d]\S{3,7} +\d{1,20}us?\b", re.ASCII)
_REPORTED: Final = re.compile(
    rf"\s*(\S.*?)-(\d{{1,10}})\s+\[(\d{{1,5}})\] +{_FLAGS}{_TIME}: +([\w.$-]+)(:) *(.*)", re.ASCII
)
"""`trace-cmd report`: names and payloads are padded, functions are events of their own."""
_SCRIPTED: Final = re.compile(
    r"\s*(\S.*?)\s+(?:\d{1,10}/)?(\d{1,10})\s+\[(\d{1,5})\]\s+()(\d{1,20}\.\d{1,9}):\s+(?:\d+\s+)?"
    r"[\w-]+:([\w.$-]+)(:)\s*(.*)",
    re.ASCII,
)
"""`perf script`: the system stands before the event's name."""
_ENTERED: Final = re.compile(r"\s*([\w.$]+)(?:\+0x\w+)?(?: \[\w+\])? *(?:<-+ *(\S*))?")
_PROBED: Final = re.compile(r"_\d{1,3}$")
_CALLER: Final = re.compile(r".* <-([\w.$]+)")


@frozen
class Grammar:
    """A way to write the lines of a recording. `translate` makes the groups what tracefs prints."""

    name: str
    match: Callable[[str], re.Match[str] | None]
    translate: Callable[[re.Match[str]], Fields] | None = None


def _logged(line: str) -> re.Match[str] | None:
    """A line of ftrace_dump() in the kernel's log."""
    prefix = LOG_PREFIX.match(line)
    return LATENCY.match(line, prefix.end()) if prefix is not None and prefix.end() else None


def _reported(found: re.Match[str]) -> Fields:
    """trace-cmd: `function: CALLED <-- CALLER`, `print: tracing_mark_write: TEXT`."""
    task, pid, cpu, flags, time, name, kind, text = found.groups()
    if name == "function" and (entered := _ENTERED.match(text)):
        return task, pid, cpu, flags, time, entered[1], " <-", entered[2] or ""
    if name in ("print", "bprint"):
        marked, colon, rest = text.partition(f"{MARKER}: ")
        name, text = MARKER, rest if colon else marked
    return task, pid, cpu, flags, time, name, kind, text


def _scripted(found: re.Match[str]) -> Fields:
    """perf: probes are named after their function, with a number where there are several; functions
    are `ftrace:function: CALLED <-- CALLER`."""
    task, pid, cpu, flags, time, name, kind, text = found.groups()
    if name == "function" and (entered := _ENTERED.match(text)):
        return task, pid, cpu, flags, time, entered[1], " <-", entered[2] or ""
    if name.endswith("__return"):
        name = f"{name.removesuffix('__return')}_ret"
    elif text.startswith("("):
        name = _PROBED.sub("", name)
    return task, pid, cpu, flags, time, name, kind, text


TRACEFS: Final = Grammar("tracefs", NORMAL.match)
REPORT: Final = Grammar("trace-cmd report", _REPORTED.match, _reported)
LOG: Final = Grammar("kernel log", _logged)
OTHERS: Final = (
    LOG,
    Grammar("tracefs, latency format", LATENCY.match),
    REPORT,
    Grammar("perf script", _SCRIPTED.match, _scripted),
)

ASIDE: Final = re.compile(
    r"\s*=> |.*<(?:user )?stack trace *>|==> .* <==$|"
    r"version = |cpus=\d|CPU \d+ is empty|trace-cmd: |-{8,}$|\s+[0-9a-f]{6,16} |"
    r"Dumping ftrace buffer|Linux version |.*\[SUBBUFFER START\]",
    re.ASCII,
)
"""Lines that are no events and belong there: stacks, banners, names of files."""
LOST: Final = re.compile(
    r"CPU:(\d{1,5}) \[(?:LOST )?(?:(\d{1,20}) )?EVENTS(?: DROPPED)?\]|"
    r"\[?\(?(?:LOST|lost) (\d{1,20}) events?\b|.*PERF_RECORD_LOST\b.* lost (\d+)|"
    r"\*\* (\d{1,20}) printk messages dropped",
    re.ASCII,
)
BEGINS: Final = re.compile(r"# tracer:|cpus=\d|Dumping ftrace buffer")
"""Lines with which a recording begins."""


REPORT_SIGNS: Final = ("cpus=", ": function:  ", ": print:  ", ": bprint:  ")
"""What only `trace-cmd report` prints; its other lines are like those of tracefs."""


def find_grammar(line: str) -> Grammar | None:
    """The grammar that a line fits which is not that of tracefs' default format."""
    return next((grammar for grammar in OTHERS if grammar.match(line) is not None), None)


def aside_in_log(line: str) -> bool:
    """Whether a line of the kernel's log is another message, and no event of a dump."""
    return _LOOKS_LOGGED.match(line) is None


def caller_of(text: str) -> str:
    """The caller in what the option func-args prints after the name: `(kvm=0x1) <-CALLER`."""
    found = _CALLER.match(text)
    return found[1] if found else ""


def without_log_prefix(line: str) -> str:
    """A line as it was before the kernel's log put a time stamp before it."""
    found = LOG_PREFIX.match(line)
    return line[found.end() :] if found else line
