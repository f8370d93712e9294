"""The timeline: what is recorded, and the Trace Event Format field by field, as its document has
it."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace
from typing import Any

from mmu.memory.memslots import Change
from mmu.memory.tlb import WHOLE
from mmu.runtime import Runtime
from mmu.tdp.fault import RetPf
from stress.observe.timeline import KEPT, KINDS, Mark, Timeline, Track
from stress.results.trace_events import packed, trace
from tests.records import finding

TRACKS = (
    Track(
        "vcpu0/3",
        (
            Mark("fault", 20.0, 30.0, "FIXED"),
            Mark("guest mode", 10.0, 100.0, ""),
            Mark("root freed", 60.0, None, "root 0x1000"),
        ),
    ),
    Track("device0/7", (Mark("DMA", 5.0, 1.5, ""),), left_out=12),
)


def check(event: dict[str, Any]) -> None:
    """One event against the format: its phase, the fields that phase must have and may have, and
    their types."""
    allowed = {"ph", "name", "cat", "ts", "pid", "tid", "args"}
    extra = {"X": {"dur"}, "i": {"s"}, "M": set()}[event["ph"]]
    assert set(event) <= allowed | extra, event
    assert extra <= set(event), event
    assert isinstance(event["name"], str)
    assert event["name"]
    assert all(isinstance(event[key], int) and event[key] >= 0 for key in ("pid", "tid"))
    if event["ph"] == "M":
        assert event["name"] in {"process_name", "thread_name"}
        assert isinstance(event["args"]["name"], str)
        return
    assert isinstance(event["ts"], float | int)
    assert isinstance(event["cat"], str)
    if event["ph"] == "X":
        assert event["dur"] >= 0
    else:
        assert event["s"] in {"g", "p", "t"}


def test_every_event_has_the_fields_of_its_phase() -> None:
    content = json.loads(gzip.decompress(packed(trace("quick", TRACKS, [finding(0), finding(3)]))))
    assert set(content) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert content["displayTimeUnit"] in {"ms", "ns"}
    for event in content["traceEvents"]:
        check(event)
    assert content["otherData"]["older slices left out"] == {"device0/7": 12}


def test_threads_are_tracks_and_findings_are_instants_on_the_track_of_their_thread() -> None:
    events = trace("quick", TRACKS, [finding(1)])["traceEvents"]
    names = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    assert sorted(names.values()) == ["device0/7", "vcpu0/3"]
    (found,) = [event for event in events if event.get("cat") == "finding"]
    assert names[found["tid"]] == "device0/7"
    assert found["ts"] == 250_000.0
    assert found["args"]["headline"] == "BUG: stale translation number 1"


def test_a_finding_of_a_thread_that_recorded_nothing_has_a_track_of_its_own() -> None:
    events = trace("quick", TRACKS[:1], [finding(1)])["traceEvents"]
    names = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    (found,) = [event for event in events if event.get("cat") == "finding"]
    assert names[found["tid"]] == "findings"


def test_slices_of_a_track_nest() -> None:
    track = Track(
        "t/1",
        (
            Mark("guest mode", 0.0, 10.0, ""),
            Mark("fault", 5.0, 6.0, ""),
            Mark("flush", 10.0, 1.0, ""),
        ),
    )
    slices = {
        event["name"]: event
        for event in trace("x", (track,), ())["traceEvents"]
        if event["ph"] == "X"
    }
    assert slices["fault"]["dur"] == 5.0, "what sticks out is cut"
    assert slices["flush"]["dur"] == 1.0


# Recording.


class Scene(Runtime):
    """A timeline whose clock the test sets, in microseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0
        self.timeline = Timeline(self, 0)

    def now(self) -> int:
        return self.time * 1000

    def at(self, time: int) -> Timeline:
        self.time = time
        return self.timeline

    def marks(self) -> list[tuple[str, float, float | None, str]]:
        (track,) = self.timeline.tracks()
        return [(mark.kind, mark.at_us, mark.us, mark.about) for mark in track.marks]


def test_a_slice_begins_when_it_began() -> None:
    scene = Scene()
    scene.at(10).mmu_write_locked()
    scene.at(12).flush_end("exported-zap", 0, WHOLE, 1000)
    scene.at(15).mmu_write_unlocking()
    scene.at(20).fault_done(None, RetPf.FIXED, 4000)
    scene.at(21).flush_end("yield", 0x10, 4, 500)
    scene.at(22).root_freed(SimpleNamespace(address=0x1000))  # type: ignore[arg-type]
    assert scene.marks() == [
        ("mmu_lock (write)", 10.0, 5.0, ""),
        ("flush", 11.0, 1.0, "exported-zap, everything"),
        ("fault", 16.0, 4.0, "FIXED"),
        ("flush", 20.5, 0.5, "yield, 4 pages from gfn 0x10"),
        ("root freed", 22.0, None, "root 0x1000"),
    ]


def test_an_end_without_a_beginning_is_no_slice() -> None:
    scene = Scene()
    scene.timeline.guest_exit(None)
    scene.timeline.memslot_end(Change.DELETE, SimpleNamespace(describe=lambda: "slot"), {})  # type: ignore[arg-type]
    assert scene.timeline.tracks() == ()


def test_the_newest_are_kept_and_the_others_counted() -> None:
    scene = Scene()
    for number in range(KEPT + 7):
        scene.at(number).grace_period(0, number)
    (track,) = scene.timeline.tracks()
    assert (len(track.marks), track.left_out) == (KEPT, 7)
    assert track.marks[0].about == "7 callbacks"


def test_every_kind_has_a_category() -> None:
    assert all(KINDS.values())
