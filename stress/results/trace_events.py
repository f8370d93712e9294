"""The timeline in the Trace Event Format, which Perfetto (ui.perfetto.dev) and chrome://tracing
open.

"Trace Event Format", by the Chromium project: complete events (`X`) with `ts` and `dur` in
microseconds, instants (`i`) with a scope, metadata (`M`) that names the process and its threads.
Threads are tracks. On one track slices must nest: one that sticks out of the slice that it begins
in, which only clocks read at different moments can bring about, is cut to it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from stress.observe.timeline import KINDS, Mark, Track
from stress.results.run_record import StoredFinding

TIMELINE = "timeline.json.gz"
PID = 1

Event = dict[str, Any]


def trace(name: str, tracks: Sequence[Track], findings: Iterable[StoredFinding]) -> dict[str, Any]:
    """A run's timeline; a finding is an instant on its thread's track, or on one of its own if that
    thread has none."""
    numbers = {track.task: number for number, track in enumerate(tracks, 1)}
    events = [
        _named("process_name", 0, name),
        *(event for track in tracks for event in _of_track(track, numbers[track.task])),
    ]
    other = len(tracks) + 1
    events.extend(_finding(finding, numbers.get(finding.task, other)) for finding in findings)
    if any(event["tid"] == other for event in events):
        events.append(_named("thread_name", other, "findings"))
    left_out = {track.task: track.left_out for track in tracks if track.left_out}
    return {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"name": name, "older slices left out": left_out},
    }


def packed(content: dict[str, Any]) -> bytes:
    """As a compressed file, which both viewers read as it is; the same content gives the same
    bytes."""
    return gzip.compress(json.dumps(content, separators=(",", ":")).encode(), 6, mtime=0)


def _of_track(track: Track, tid: int) -> Iterator[Event]:
    yield _named("thread_name", tid, track.task)
    open_ends: list[float] = []
    for mark in sorted(track.marks, key=lambda mark: (mark.at_us, -(mark.us or 0.0))):
        if mark.us is None:
            yield {"ph": "i", "s": "t", **_common(mark, tid)}
            continue
        while open_ends and open_ends[-1] <= mark.at_us:
            open_ends.pop()
        end = min([mark.at_us + mark.us, *open_ends[-1:]])
        open_ends.append(end)
        yield {"ph": "X", "dur": round(end - mark.at_us, 3), **_common(mark, tid)}


def _common(mark: Mark, tid: int) -> Event:
    event: Event = {
        "name": mark.kind,
        "cat": KINDS[mark.kind],
        "ts": mark.at_us,
        "pid": PID,
        "tid": tid,
    }
    return {**event, "args": {"about": mark.about}} if mark.about else event


def _finding(finding: StoredFinding, tid: int) -> Event:
    args = {"headline": finding.headline, "sentence": finding.sentence, "seen": finding.count}
    return {
        "ph": "i",
        "s": "p",
        "name": f"{finding.rule} {finding.code}",
        "cat": "finding",
        "ts": round(finding.at_s * 1e6, 3),
        "pid": PID,
        "tid": tid,
        "args": args,
    }


def _named(what: str, tid: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": PID, "tid": tid, "args": {"name": name}}
