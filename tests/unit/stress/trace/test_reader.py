"""The reader: every line kind, every tracer option, and whatever can be wrong with a file."""

from __future__ import annotations

import gzip
import io
import lzma
import sys
from functools import partial
from pathlib import Path

import pytest

from stress.trace import events
from stress.trace.events import (
    FastFault,
    FieldError,
    ProbeEvent,
    ShadowPageEvent,
    SpteChanged,
    TraceError,
)
from stress.trace.reader import LONGEST, TraceReader
from tests.recordings import NAMES, lines_of, path_of

HEAD = "# tracer: function"
LINE = (
    "           kvmwl-240     [001] ...1.           97: tdp_mmu_next_root <-kvm_tdp_mmu_alloc_root"
)


def read(*lines: str) -> list[events.Event]:
    return list(TraceReader.of_lines([HEAD, *lines]))[1:]


def test_a_function_entry() -> None:
    (event,) = read(LINE)
    assert event == (
        2,
        1,
        240,
        "kvmwl",
        97,
        "...1.",
        "tdp_mmu_next_root()",
        "kvm_tdp_mmu_alloc_root",
    )
    assert event.fields() == ("tdp_mmu_next_root", "kvm_tdp_mmu_alloc_root")
    assert event.function


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        (
            "kvm_tdp_mmu_spte_changed: as id 1 gfn 40005 level 1 old_spte bb7ce67 new_spte "
            "8000000000000000",
            SpteChanged(1, 0x40005, 1, 0xBB7CE67, 1 << 63),
        ),
        (
            "kvm_mmu_get_page: sp gen 0 gfn 40000 l2 8-byte q0 direct wux nxe ad root 0 sync new",
            ShadowPageEvent(0x40000, 2, direct=True, invalid=False, root_count=0, created=True),
        ),
        (
            "kvm_mmu_prepare_zap_page: sp gen 0 gfn 0 l1 8-byte q0 direct wux invalid nxe !ad root "
            "1 unsync",
            ShadowPageEvent(0, 1, direct=True, invalid=True, root_count=1, created=False),
        ),
        (
            "fast_page_fault: vcpu 3 gva 40000000 error_code P|W|U|0x100000000 sptep "
            "0000000023ccbbc6"
            " old 0x9a01e65 new 9a01e67 spurious 0 fixed 1",
            FastFault(3, 0x40000000, 0x9A01E65, 0x9A01E67, spurious=False, fixed=True),
        ),
        (
            'put_root: (kvm_tdp_mmu_put_root+0x4/0xd0 [kvm]) root=0xffff8c785908d730 ref=3 comm="a '
            'b" role=0x3f84',
            ProbeEvent(
                "kvm_tdp_mmu_put_root",
                "",
                {"root": 0xFFFF8C785908D730, "ref": 3, "comm": '"a b"', "role": 0x3F84},
            ),
        ),
        (
            "map_ret: (kvm_tdp_page_fault+0xc9/0xf0 [kvm] <- kvm_tdp_mmu_map) ret=-14",
            ProbeEvent("kvm_tdp_mmu_map", "kvm_tdp_page_fault", {"ret": -14}),
        ),
    ],
)
def test_payloads(payload: str, fields: object) -> None:
    (event,) = read(f"           kvmwl-240     [001] ...1.           98: {payload}")
    assert event.fields() == fields
    assert type(event.fields()) is type(fields)


def test_a_payload_that_does_not_fit_its_format_is_a_field_error() -> None:
    (event,) = read(
        "           kvmwl-240     [001] ...1.           98: kvm_tdp_mmu_spte_changed: as id 1 gfn "
        "40005 level 1 old_sp"
    )
    with pytest.raises(FieldError, match="not of the event's format"):
        event.fields()
    probe = ProbeEvent("f", "", {"root": "(fault)"})
    with pytest.raises(FieldError, match="no number root="):
        probe.number("root")


@pytest.mark.parametrize(
    "task", ["kvm-nx-lpage-re", "CPU 0/KVM", "a-b-c", "(sd-pam)", "x [001] 5: y", "<idle>", "-1"]
)
def test_any_task_name(task: str) -> None:
    (event,) = read(f"{task:>16}-240     [001] d.h1.           97: ack_kick <-x")
    assert (event.task, event.pid, event.cpu, event.name) == (task, 240, 1, "ack_kick()")
    assert event.in_interrupt


def test_clocks() -> None:
    reader = TraceReader.of_lines([HEAD, LINE.replace("          97", "123.000097")])
    assert [event.time for event in reader][1] == 123_000_097
    assert reader.counts.decimal


def test_time_that_goes_back_is_noticed_until_it_has_caught_up() -> None:
    lines = [LINE.replace("97:", f"{time}:") for time in (10, 30, 20, 25, 31, 32)]
    assert [event.name for event in read(*lines)] == [
        *["tdp_mmu_next_root()"] * 2,
        events.ORDER,
        *["tdp_mmu_next_root()"] * 2,
        events.ORDERED,
        *["tdp_mmu_next_root()"] * 2,
    ]


def test_clocks_of_two_cpus_may_differ_a_little() -> None:
    lines = [LINE.replace("          97:", f"  5.{time:06}:") for time in (100, 90, 100, 100)]
    reader = TraceReader.of_lines([HEAD, *lines])
    assert events.ORDER not in {event.name for event in reader}
    assert reader.counts.skewed == 1


def test_lost_events() -> None:
    reader = TraceReader.of_lines(
        [
            HEAD,
            LINE,
            "CPU:1 [LOST 12 EVENTS]",
            "CPU:0 [LOST EVENTS]",
            "##### CPU 1 buffer started ####",
            LINE,
        ]
    )
    lost = [event for event in reader if event.name == events.LOST]
    assert [(event.line, event.cpu) for event in lost] == [(3, 1), (4, 0), (5, 1)]
    assert (reader.counts.lost, reader.counts.losses) == (12, 3)


def test_the_header_says_how_many_events_there_must_be() -> None:
    entries = "# entries-in-buffer/entries-written: 3/5   #P:2"
    reader = TraceReader.of_lines([HEAD, entries, LINE, LINE])
    assert [event.name for event in reader if event.name[0] == "#"] == [
        events.RECORDING,
        events.LOST,
        events.MISSING,
    ]
    assert (reader.counts.announced, reader.counts.overwritten) == (3, 2)


def test_what_is_no_line_is_named_with_its_number() -> None:
    damage = [event for event in read(LINE, "not a line", LINE) if event.name == events.DAMAGE]
    assert [(event.line, "not a line" in event.text) for event in damage] == [(3, True)]


def test_markers_of_several_lines_and_stack_traces_belong_to_the_line_before() -> None:
    marker = "           kvmwl-240     [001] .....            5: tracing_mark_write: first"
    stack = "           kvmwl-240     [001] .....            6: <stack trace>"
    found = read(
        marker, "second line", "third", LINE, stack, " => kvm_mmu_load", " => vcpu_run", LINE
    )
    assert events.DAMAGE not in {event.name for event in found}
    assert len(found) == 3


def test_unwanted_events_are_skipped_and_counted() -> None:
    reader = TraceReader.open(path_of("w8_roots"), frozenset({"put_root"}))
    assert {event.name for event in reader} == {events.RECORDING, "put_root"}
    assert reader.counts.skipped["kvm_entry"] == 41
    assert (
        sum(reader.counts.skipped.values())
        + len([line for line in lines_of("w8_roots") if " put_root: " in line])
        == reader.counts.events
    )


@pytest.mark.parametrize("pack", [bytes, gzip.compress, partial(lzma.compress, preset=0)])
def test_packed_or_not(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "any.name"
    text = "\n".join(lines_of("w6_close")).encode() + b"\n"
    file.write_bytes(pack(text))
    assert len(list(TraceReader.open(file))) == 589
    file.write_bytes(pack(text)[: len(pack(text)) // 2])
    found = list(TraceReader.open(file))
    assert found[-1].name in (events.DAMAGE, events.MISSING)
    assert any(event.name == events.DAMAGE for event in found)
    assert len(found) > 100


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(path_of("w6_close").read_bytes()))
    )
    assert len(list(TraceReader.open(Path("-")))) == 589


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"hello\n" * 2000, "no line of the file is an ftrace event"),
        (b"x" * (LONGEST * 8), "a line of more than"),
        (b"\xfd7zXZ\x00garbage", "cannot be read on"),
        (
            b"# tracer: function_graph\n 0)  1.2 us | f();\n",
            "line 1: tracer function_graph is not understood",
        ),
    ],
)
def test_what_is_no_recording_is_an_error(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(TraceError, match=what):
        list(TraceReader.open(file))


def test_an_empty_recording_is_one() -> None:
    assert [event.name for event in TraceReader.of_lines(["# tracer: nop"])] == [events.RECORDING]


@pytest.mark.parametrize("name", NAMES)
def test_every_known_event_of_a_real_recording_parses(name: str) -> None:
    for event in TraceReader.open(path_of(name)):
        event.fields()
