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

Understood is what `stress.trace.grammar` knows: tracefs' trace and trace_pipe in their default and
their latency format, with or without the irq-info and tgid columns, any trace clock, annotations of
lost events, ftrace dumps in the kernel's log, `trace-cmd report`, `perf script`; packed as
`stress.trace.packing` says. Stack traces and further lines of a marker are passed over.
"""

from __future__ import annotations

import lzma
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
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
from stress.trace.grammar import (
    ASIDE,
    BEGINS,
    LOG,
    NORMAL,
    REPORT,
    REPORT_SIGNS,
    TRACEFS,
    Grammar,
    aside_in_log,
    caller_of,
    find_grammar,
    without_log_prefix,
)
from stress.trace.grammar import LOST as LOST_LINE
from stress.trace.packing import chunks_of

LONGEST: Final = 1 << 16
"""Longest line in bytes; what has more is no recording."""
PATIENCE: Final = 1000
"""Damaged lines before a file without a single event is called something else than a recording."""
SKEW: Final = 200
"""Microseconds by which clocks of two CPUs may differ (`trace_clock=local`) in what is still one
order."""
FOREIGN: Final = frozenset({"function_graph", "blk", "mmiotrace", "hwlat", "osnoise", "timerlat"})
"""Tracers whose lines are not events."""

_STARTED = re.compile(r"#+ CPU (\d{1,5}) buffer started")
_ENTRIES = re.compile(r"# entries-in-buffer/entries-written: (\d{1,20})/(\d{1,20})")


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


Who = tuple[int, int, str, str]
"""CPU, pid, task and flags of a line."""
MOST_KNOWN: Final = 100_000
"""Beginnings and names of lines that are remembered."""


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
        self._match: Callable[[str], re.Match[str] | None] = NORMAL.match
        self._disorder = False
        self.grammar = TRACEFS
        """How the lines are written, as the first event has shown."""
        self._trouble = ""
        self._digits = 6
        self._marker = -1
        self._heads: dict[str, Who] = {}
        self._names: dict[tuple[str, str], str] = {}

    @classmethod
    def open(cls, path: Path, wanted: frozenset[str] | None = None) -> TraceReader:
        """A reader of a file, compressed or not, or of stdin where `path` is `-`; raises
        `TraceError` if there is none."""
        try:
            raw: IO[bytes] = sys.stdin.buffer if str(path) == "-" else path.open("rb")
        except OSError as error:
            raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
        return cls(chunks_of(raw, str(path)), str(path), wanted)

    @classmethod
    def of_lines(cls, lines: Iterable[str], wanted: frozenset[str] | None = None) -> TraceReader:
        """A reader of lines that are already there, without their newlines."""
        return cls(iter([("\n".join(lines) + "\n").encode("utf-8", "replace")]), "lines", wanted)

    def __iter__(self) -> Iterator[Event]:
        """Every wanted event and every notice, in the order of the file."""
        counts, wanted, ignore, skipped = (
            self.counts,
            self._wanted,
            self.ignore,
            self.counts.skipped,
        )
        heads, names = self._heads, self._names
        last = -1
        # an Event without the detour over its own constructor, which costs half of a line's time
        make = tuple.__new__
        for lines in self._blocks():
            first, events = counts.lines + 1, 0
            for number, line in enumerate(lines, first):
                # the usual line: its task, CPU and flags, and its name, have been seen before
                head, _, rest = line.partition(": ")
                before, _, time = head.rpartition(" ")
                who = heads.get(before)
                name, colon, text = rest.partition(": ")
                if not colon:
                    name, colon, text = rest.partition(" <-")
                event = names.get((name, colon))
                if who is None or event is None:
                    stamp = -1
                else:
                    stamp = int(time) if time.isdigit() else self._stamp(time)
                if stamp < 0 or who is None or event is None:
                    read = self._read(number, line)
                    if read is None:
                        counts.events += events
                        events = 0
                        if BEGINS.match(line):
                            last, self._disorder = -1, False
                        yield from self._odd(number, line)
                        continue
                    who, stamp, event, text = read
                events += 1
                if stamp >= last and not self._disorder:
                    last = stamp
                else:
                    yield from self._out_of_order(number, who[0], stamp, last)
                    last = max(last, stamp)
                if event in ignore or (wanted is not None and event not in wanted):
                    skipped[event] += 1
                else:
                    yield make(Event, (number, who[0], who[1], who[2], stamp, who[3], event, text))
            counts.events += events
            counts.lines = first + len(lines) - 1
        yield from self._end()

    def _out_of_order(self, number: int, cpu: int, stamp: int, last: int) -> Iterator[Event]:
        """A time that is earlier than one before it, or the first that is not."""
        if stamp >= last:
            self._disorder = False
            yield _notice(number, cpu, ORDERED, f"time has caught up with {last}")
        elif not self._disorder and not self._skewed(last - stamp):
            self._disorder = True
            self.counts.disordered += 1
            yield _notice(number, cpu, ORDER, f"time goes back from {last} to {stamp}")

    def _read(self, number: int, line: str) -> tuple[Who, int, str, str] | None:
        """A line by its grammar; None for one that is no event. What can be known again by its
        text is remembered."""
        found = self._match(line) or self._first(line)
        if found is None:
            return None
        translate = self.grammar.translate
        task, pid, cpu, flags, time, name, kind, text = (
            found.groups() if translate is None else translate(found)
        )
        who = (int(cpu), int(pid), task.strip(), flags or "")
        event = name if kind[:1] == ":" else f"{name}()"
        if kind == "(":
            text = caller_of(text)
        if event == MARKER:
            self._marker = number
            return who, self._stamp(time), MARKER, text
        if self.grammar is TRACEFS:
            self._remember(line, who, event, name)
        return who, self._stamp(time), sys.intern(event), text

    def _remember(self, line: str, who: Who, event: str, name: str) -> None:
        """Know the beginning of a line, and the name in it, when they come again."""
        head, _, rest = line.partition(": ")
        before = head.rpartition(" ")[0]
        for colon in (": ", " <-"):
            if rest.startswith(name + colon) and len(self._names) < MOST_KNOWN:
                self._names[name, colon] = event
        if len(self._heads) < MOST_KNOWN:
            self._heads[before] = who

    def _stamp(self, time: str) -> int:
        """A time in its last digit, -1 for what is none."""
        if time.isdigit():
            return int(time)
        return self._decimal(time) if time.replace(".", "", 1).isdigit() else -1

    def _blocks(self) -> Iterator[list[str]]:
        """The lines of the file, a block at a time; a last line without a newline is cut, and left
        out."""
        tail = b""
        try:
            for chunk in self._chunks:
                lines, newline, rest = (tail + chunk).rpartition(b"\n")
                tail = rest
                if newline:
                    yield self._split(lines.decode("utf-8", "replace").replace("\r", ""))
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
        self._digits = len(time) - time.index(".") - 1
        return int(time.replace(".", "", 1))

    def _skewed(self, back: int) -> bool:
        """Is this only the difference between the clocks of two CPUs? Ticks of a counter have no
        such thing."""
        if not self.counts.decimal or back > SKEW * 10 ** (self._digits - 6):
            return False
        self.counts.skewed += 1
        return True

    def _first(self, line: str) -> re.Match[str] | None:
        """The first event of a recording decides how the rest is read."""
        if self.counts.events or not line or line[0] == "#":
            return None
        grammar = find_grammar(line)
        if grammar is None:
            return None
        self._use(grammar)
        return grammar.match(line)

    def _use(self, grammar: Grammar) -> None:
        self.grammar, self._match = grammar, grammar.match

    def _split(self, text: str) -> list[str]:
        """The lines of a block, after a look at what only trace-cmd prints."""
        if self.grammar is TRACEFS and any(sign in text for sign in REPORT_SIGNS):
            self._use(REPORT)
        return text.split("\n")

    def _odd(self, line: int, text: str) -> Iterator[Event]:
        """A line that is no event: a header, an annotation, what belongs to the line before, or
        damage."""
        logged = text
        text = without_log_prefix(text)
        if text.startswith("#") or BEGINS.match(text):
            yield from self._comment(line, text)
        elif lost := LOST_LINE.match(text):
            count = next((group for group in lost.groups()[1:] if group), "")
            where = f"events of CPU {lost[1]}" if lost[1] else "events"
            self.counts.losses += 1
            self.counts.lost += int(count or 0)
            yield _notice(
                line,
                int(lost[1] or -1),
                LOST,
                f"{count or 'an unknown number of'} {where} were lost",
            )
        elif self._marker == line - 1 and "]" not in text:
            self._marker = line
        elif self._is_message(logged, text):
            return
        elif text.strip() and not ASIDE.match(text):
            self.counts.damaged += 1
            if not self.counts.events and self.counts.damaged >= PATIENCE:
                raise self._no_recording()
            yield _notice(line, -1, DAMAGE, f"not a line of a recording: {text[:100]!r}")

    def _is_message(self, logged: str, text: str) -> bool:
        """Whether a line of the kernel's log is another message than a dump of events."""
        if self.grammar is LOG:
            return aside_in_log(logged)
        return not self.counts.events and logged != text

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
        elif not text.startswith("#"):
            self.counts.recordings += 1
            yield _notice(line, -1, RECORDING, text)
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
            "tracefs' trace file, of trace-cmd report or of perf script, plain or packed (xz, "
            "gzip, bzip2, tar)"
        )


def _notice(line: int, cpu: int, name: str, text: str) -> Event:
    """An event that the reader makes itself."""
    return Event(line, cpu, 0, "", -1, "", name, text)
