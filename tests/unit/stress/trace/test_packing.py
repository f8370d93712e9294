"""What a recording is packed in, told by its first bytes; what cannot be read says what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from stress.trace.events import TraceError
from stress.trace.packing import ZSTD_READERS
from stress.trace.reader import TraceReader
from tests.recordings import lines_of

TEXT = ("\n".join(lines_of("w6_close")) + "\n").encode()
ZSTD_FRAME = b"\x28\xb5\x2f\xfd\x24\x02\x11\x00\x00hi\x00\x00\x00\x00"
"""A frame with one raw block."""


OTHERS = {"README": b"hello\n", "a.log": b"1\n"}


def archive(mode: str, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def events_of(tmp_path: Path, content: bytes) -> int:
    file = tmp_path / "any.name"
    file.write_bytes(content)
    return sum(1 for _ in TraceReader.open(file))


PACKED: dict[str, Callable[[], bytes]] = {
    "plain": lambda: TEXT,
    "xz": lambda: lzma.compress(TEXT, preset=0),
    "lzma in gzip": lambda: gzip.compress(lzma.compress(TEXT, preset=0)),
    "gzip": lambda: gzip.compress(TEXT),
    "bzip2": lambda: bz2.compress(TEXT),
    "tar": lambda: archive("w", OTHERS | {"a.trace": TEXT}),
    "tar.gz": lambda: archive("w:gz", OTHERS | {"a.trace": TEXT}),
    "tar.xz": lambda: archive("w:xz", OTHERS | {"a.trace": TEXT}),
    "UTF-8 with a byte order mark": lambda: b"\xef\xbb\xbf" + TEXT,
    "UTF-16 of a PowerShell redirection": lambda: TEXT.decode().encode("utf-16"),
    "CR LF": lambda: TEXT.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("how", PACKED)
def test_a_packed_recording_has_the_same_events(tmp_path: Path, how: str) -> None:
    assert events_of(tmp_path, PACKED[how]()) == 589


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x17\x08\x44tracing6\x00\x00\x00\x08", r"trace\.dat; try: trace-cmd report .*any\.name"),
        (b"PERFILE2" + bytes(96), r"perf\.data; try: perf script -i .*any\.name"),
        (b"PK\x03\x04" + bytes(26), "zip archive; try: unzip -p"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7", "lz4; try: lz4 -dc"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(200)), "binary data"),
        (b"\x7fELF\x02\x01\x01" + bytes(57), "binary data"),
        (b"", "the file is empty"),
        (gzip.compress(b""), "the file is empty"),
        (gzip.compress(TEXT)[:20], "no line of the file is an ftrace event"),
        ("hello world\n".encode("utf-16"), "no line of the file is an ftrace event"),
        (archive("w", OTHERS), "no file in the archive is a recording"),
    ],
)
def test_what_cannot_be_read_says_what_it_is(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(TraceError, match=what):
        events_of(tmp_path, content)


def test_zstd_is_answered_with_the_command_where_python_cannot_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, _ in ZSTD_READERS:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TraceError, match=r"packed with zstd.*try: zstd -dc .*any\.name"):
        events_of(tmp_path, ZSTD_FRAME)


def test_zstd_is_read_with_any_package_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, _ in ZSTD_READERS:
        monkeypatch.setitem(sys.modules, module, None)
    package = types.ModuleType("backports.zstd")
    package.ZstdFile = lambda stream: io.BytesIO(TEXT)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "backports.zstd", package)
    assert events_of(tmp_path, ZSTD_FRAME) == 589


def test_a_packed_file_that_was_cut_is_read_to_its_end(tmp_path: Path) -> None:
    whole = gzip.compress(TEXT)
    found = events_of(tmp_path, whole[: len(whole) // 2])
    assert 100 < found < 589
