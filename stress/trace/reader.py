"""Read an ftrace recording: streaming, in constant memory, one `Event` a line (see
`stress.trace.events`).

    reader = Reader.open(Path("w1.trace.xz"))       # .xz, .gz, plain; Path("-") is stdin
    for event in reader:                            # in file order
        ...
    reader.counts.lines, .events, .skipped, .lost   # after (or during) the loop
    reader.counts.announced                         # how many events the header says there are

Stable interface for everything that reads recordings:

* `Reader.open(path, wanted=None)`, `Reader.of_lines(lines, wanted=None)`: with `wanted`, a set of
  event names (functions as `name()`), other events are skipped at little cost and counted by name
  in `counts.skipped`.
* Iteration yields events in the order of the file. Lines that cannot be read, lost events, broken
  order, further headers and the end of a truncated file are events too, where they happened, with
  the names in `NOTICES`; nothing raises for them.
* A file that is no recording at all raises `TraceError`, while it is iterated.

Understood: the `trace` file of tracefs in its default and its latency format, with or without the
irq-info and tgid columns, any trace clock, annotations of lost events; stack traces and further
lines of a marker are passed over.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from attrs import define, field

from stress.trace.events import (
    DAMAGE,
    LOST,
    MARKER,
    MISSING,
    ORDER,
    ORDERED,
    RECORDING,
    Event,
    TraceError,
)

BLOCK: Final = 1 << 18
"""Bytes read at a time."""
LONGEST: Final = 1 << 16
"""Longest line in bytes; what has more is no recording."""
PATIENCE: Final = 1000
"""Damaged lines before a file without a single event is called something else than a recording."""
SKEW: Final = 200
"""Microseconds by which clocks of two CPUs may differ (`trace_clock=local`) in what is still one
order."""
FOREIGN: Final = frozenset({"function_graph", "blk", "mmiotrace", "hwlat", "osnoise", "timerlat"})
"""Tracers whose lines are not events."""

_NORMAL = re.compile(
    r"(.{16}|\s*\S.*?)-(\d{1,10}) +(?:\( *(?:\d+|-+)\) +)?\[(\d{1,5})\] (?:([^\s\d]\S{3,7}) )? *"
    r"(\d{1,20}(?:\.\d{1,9})?): ([\w.$]+)(: ?| <-|$|\+0x| <)(.*)",
    re.ASCII,
)
"""TASK-PID [(TGID)] [CPU] [flags] TIME: NAME, then `: payload` or ` <-caller`."""
_LATENCY = re.compile(
    r"(.{8}|\s*\S.*?)-(\d{1,10}) +(\d{1,5})([^\s\d]\S{3,7}) +"
    r"(\d{1,20}(?:\.\d{1,9})?)(?:us)?[ !+#*@$]*: ([\w.$]+)(: ?| <-|$|\+0x| <)(.*)",
    re.ASCII,
)
"""The latency format: the CPU is glued to the flags, the time has a mark for long delays."""
_LOST = re.compile(r"CPU:(\d{1,5}) \[LOST (?:(\d{1,20}) )?EVENTS\]")
_STARTED = re.compile(r"#+ CPU (\d{1,5}) buffer started")
_ENTRIES = re.compile(r"# entries-in-buffer/entries-written: (\d{1,20})/(\d{1,20})")
_STACK = re.compile(r"\s*=> |.*<(?:user )?stack trace>")


@define
class ReadCounts:
    """What was read so far."""

    lines: int = 0
    events: int = 0
    """Lines that are events, wanted or not."""
    skipped: Counter[str] = field(factory=Counter)
    """Events that nobody wanted, by name."""
    lost: int = 0
    """Events that the kernel says it dropped, as far as it says how many."""
    losses: int = 0
    """Places where it says that it dropped some."""
    damaged: int = 0
    """Lines that could not be read."""
    disordered: int = 0
    """Places where time goes back."""
    skewed: int = 0
    """Places where it goes back by no more than `SKEW`, from one CPU to another."""
    announced: int = 0
    """Events in the buffer according to the headers."""
    overwritten: int = 0
    """Events that newer ones had replaced before the buffer was read, according to the headers."""
    recordings: int = 0
    """Headers: how many recordings the file holds."""
    decimal: bool = False
    """Whether the clock prints seconds with decimals (local, global, mono, boot) or whole ticks
    (counter, x86-tsc)."""


class _Numbers(dict[str, int]):
    """Numbers by their text: the same few CPUs and tasks come again and again."""

    def __missing__(self, text: str) -> int:
        value = int(text)
        if len(self) < 10_000:
            self[text] = value
        return value


class _Names(dict[str, str]):
    """One string for each name: function entries get their `()`, tasks lose their padding."""

    def __init__(self, suffix: str) -> None:
        super().__init__()
        self._suffix = suffix

    def __missing__(self, text: str) -> str:
        value = text.strip() + self._suffix
        if len(self) < 10_000:
            self[text] = value
        return value


class TraceReader:
    """An iterator over the events of one file, to be used once."""

    def __init__(
        self, chunks: Iterator[bytes], origin: str, wanted: frozenset[str] | None = None
    ) -> None:
        self.origin = origin
        """What is read, for messages."""
        self.counts = ReadCounts()
        self.ignore: set[str] = set()
        """Names of events to skip from here on; whoever iterates may add to it meanwhile."""
        self._chunks = chunks
        self._wanted = wanted
        self._match = _NORMAL.match
        self._trouble = ""
        self._marker = -1

    @classmethod
    def open(cls, path: Path, wanted: frozenset[str] | None = None) -> TraceReader:
        """A reader of a file, compressed or not, or of stdin where `path` is `-`; raises
        `TraceError` if there is none."""
        try:
            raw: IO[bytes] = sys.stdin.buffer if str(path) == "-" else path.open("rb")
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
        return cls(_chunks(raw), str(path), wanted)

    @classmethod
    def of_lines(cls, lines: Iterable[str], wanted: frozenset[str] | None = None) -> TraceReader:
        """A reader of lines that are already there, without their newlines."""
        return cls(iter([("\n".join(lines) + "\n").encode("utf-8", "replace")]), "lines", wanted)

    def __iter__(self) -> Iterator[Event]:
        """Every wanted event and every notice, in the order of the file."""
        counts, wanted, ignore, match = self.counts, self._wanted, self.ignore, self._match
        last, disorder = -1, False
        numbers, tasks, functions, plain = _Numbers(), _Names(""), _Names("()"), _Names("")
        # an Event without the detour over its own constructor, which costs half of a line's time
        make = tuple.__new__
        for lines in self._blocks():
            first = counts.lines + 1
            for line_number, line in enumerate(lines, first):
                found = match(line) or self._latency(line)
                if found is None:
                    if line.startswith("# tracer:"):
                        last, disorder = -1, False
                    yield from self._odd(line_number, line)
                    continue
                task, pid, cpu, flags, time, name, kind, text = found.groups()
                counts.events += 1
                event = plain[name] if kind[:1] == ":" else functions[name]
                stamp = int(time) if time.isdigit() else self._decimal(time)
                if stamp >= last:
                    if disorder:
                        disorder = False
                        yield _notice(
                            line_number, numbers[cpu], ORDERED, f"time has caught up with {last}"
                        )
                    last = stamp
                elif not disorder and not self._skewed(last - stamp):
                    disorder = True
                    counts.disordered += 1
                    yield _notice(
                        line_number, numbers[cpu], ORDER, f"time goes back from {last} to {stamp}"
                    )
                if event == MARKER:
                    self._marker = line_number
                if event in ignore or (wanted is not None and event not in wanted):
                    counts.skipped[event] += 1
                else:
                    yield make(
                        Event,
                        (
                            line_number,
                            numbers[cpu],
                            numbers[pid],
                            tasks[task],
                            stamp,
                            flags or "",
                            event,
                            text,
                        ),
                    )
                match = self._match
            counts.lines = first + len(lines) - 1
        yield from self._end()

    def _blocks(self) -> Iterator[list[str]]:
        """The lines of the file, a block at a time; a last line without a newline is cut, and left
        out."""
        tail = b""
        try:
            for chunk in self._chunks:
                lines, newline, rest = (tail + chunk).rpartition(b"\n")
                tail = rest
                if newline:
                    yield lines.decode("utf-8", "replace").replace("\r", "").split("\n")
                if len(tail) > LONGEST:
                    self._trouble = f"a line of more than {LONGEST} bytes"
                    return
        except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
            self._trouble = f"the file cannot be read on from here: {error}"
        if tail and not self._trouble:
            self._trouble = (
                f"the file ends in the middle of a line: {tail[-60:].decode('utf-8', 'replace')!r}"
            )

    def _decimal(self, time: str) -> int:
        """A time of a clock that prints decimals, in its last digit."""
        self.counts.decimal = True
        return int(time.replace(".", "", 1))

    def _skewed(self, back: int) -> bool:
        """Is this only the difference between the clocks of two CPUs? Ticks of a counter have no
        such thing."""
        if not self.counts.decimal or back > SKEW:
            return False
        self.counts.skewed += 1
        return True

    def _latency(self, line: str) -> re.Match[str] | None:
        """The first event of a recording in latency format decides how the rest is read."""
        if self.counts.events:
            return None
        found = _LATENCY.match(line)
        if found is not None:
            self._match = _LATENCY.match
        return found

    def _odd(self, line: int, text: str) -> Iterator[Event]:
        """A line that is no event: a header, an annotation, what belongs to the line before, or
        damage."""
        if text.startswith("#"):
            yield from self._comment(line, text)
        elif lost := _LOST.match(text):
            self.counts.losses += 1
            self.counts.lost += int(lost[2] or 0)
            yield _notice(
                line,
                int(lost[1]),
                LOST,
                f"{lost[2] or 'an unknown number of'} events of CPU {lost[1]} were lost",
            )
        elif self._marker == line - 1 and "]" not in text:
            self._marker = line
        elif text.strip() and not _STACK.match(text):
            self.counts.damaged += 1
            if not self.counts.events and self.counts.damaged >= PATIENCE:
                raise self._no_recording()
            yield _notice(line, -1, DAMAGE, f"not a line of a recording: {text[:100]!r}")

    def _comment(self, line: int, text: str) -> Iterator[Event]:
        """A line of the header, or the note that a CPU's events begin here only."""
        if text.startswith("# tracer:"):
            tracer = text.partition(":")[2].strip()
            if tracer in FOREIGN:
                raise TraceError(
                    f"{self.origin}: line {line}: tracer {tracer} is not understood; record with "
                    "tracer function or nop"
                )
            self.counts.recordings += 1
            yield _notice(line, -1, RECORDING, f"tracer {tracer}")
        elif entries := _ENTRIES.match(text):
            self.counts.announced += int(entries[1])
            overwritten = max(0, int(entries[2]) - int(entries[1]))
            self.counts.overwritten += overwritten
            if overwritten:
                yield _notice(
                    line,
                    -1,
                    LOST,
                    f"{overwritten} events were overwritten before the recording was read",
                )
        elif started := _STARTED.match(text):
            self.counts.losses += 1
            yield _notice(
                line,
                int(started[1]),
                LOST,
                f"what CPU {started[1]} did before this line was overwritten",
            )

    def _end(self) -> Iterator[Event]:
        """What is wrong with the end, if anything."""
        counts = self.counts
        if self._trouble:
            counts.damaged += 1
            yield _notice(counts.lines + 1, -1, DAMAGE, self._trouble)
        if not counts.events and not counts.recordings:
            raise self._no_recording()
        if counts.events < counts.announced and not self._trouble:
            yield _notice(
                counts.lines + 1,
                -1,
                MISSING,
                f"the header announces {counts.announced} events, the file has {counts.events}",
            )

    def _no_recording(self) -> TraceError:
        why = f" ({self._trouble})" if self._trouble else ""
        return TraceError(
            f"{self.origin}: no line of the file is an ftrace event{why}; expected the text of "
            "tracefs' trace file, plain, .xz or .gz"
        )


def _notice(line: int, cpu: int, name: str, text: str) -> Event:
    """An event that the reader makes itself."""
    return Event(line, cpu, 0, "", -1, "", name, text)


def _chunks(raw: IO[bytes]) -> Iterator[bytes]:
    """The bytes of a file, decompressed as its first bytes say."""
    with raw:
        stream = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)  # type: ignore[type-var]
        magic = stream.peek(6)[:6]
        unpacked: io.BufferedIOBase = stream
        if magic.startswith(b"\xfd7zXZ"):
            unpacked = lzma.LZMAFile(stream)  # noqa: SIM115 - closed with the file below it
        elif magic.startswith(b"\x1f\x8b"):
            unpacked = gzip.GzipFile(fileobj=stream)
        while chunk := unpacked.read1(BLOCK):
            yield chunk
