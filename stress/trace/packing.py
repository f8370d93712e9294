"""What a recording is packed in: recognised by the first bytes, whatever the name.

Read: plain, xz, gzip, bzip2, zstd where Python has it (3.14), tar, UTF-16 and byte order marks.
What only its own program can read is answered with the command that does.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import tarfile
from collections.abc import Iterator
from typing import IO, Any, Final, cast

from stress.trace.events import TraceError

BLOCK: Final = 1 << 18
"""Bytes read at a time."""
TAR_MAGIC: Final = slice(257, 262)
MOST_MEMBERS: Final = 1000
"""Files that are looked at in an archive."""
SNIFFED: Final = 1 << 13
"""Bytes by which it is told whether a file in an archive is a recording."""

FOREIGN: Final = (
    (b"\x17\x08\x44tracing", "trace-cmd's trace.dat", "trace-cmd report {file}"),
    (b"PERFILE2", "perf's perf.data", "perf script -i {file}"),
    (b"PK\x03\x04", "a zip archive", "unzip -p {file}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x -so {file}"),
    (b"\x04\x22\x4d\x18", "packed with lz4", "lz4 -dc {file}"),
)
"""First bytes, what they are, and the command whose output can be read."""
ZSTD: Final = b"\x28\xb5\x2f\xfd"
ZSTD_READERS: Final = (
    ("compression.zstd", "ZstdFile"),
    ("backports.zstd", "ZstdFile"),
    ("pyzstd", "ZstdFile"),
)
"""Python's own reader since 3.14, and packages that bring it to older ones."""
_CONTROLS: Final = bytes({*range(32), 127} - {*b"\t\n\r\f\x1b"})


class _Stream(io.RawIOBase):
    """The chunks of an iterator as a file that can be read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def chunks_of(raw: IO[bytes], origin: str) -> Iterator[bytes]:
    """The bytes of a recording, unpacked. Raises `TraceError` for what it cannot unpack."""
    with raw:
        chunks = _decoded(_unpacked(_buffered(raw), origin, depth=0))
        first = next(chunks, b"")
        if not first:
            raise TraceError(f"{origin}: the file is empty")
        if is_binary(first):
            raise TraceError(f"{origin}: binary data, no text of a recording")
        yield first
        yield from chunks


def _buffered(raw: IO[bytes]) -> io.BufferedReader:
    if isinstance(raw, io.BufferedReader):
        return raw
    return io.BufferedReader(cast(io.RawIOBase, raw), BLOCK)


def _unpacked(stream: io.BufferedReader, origin: str, depth: int) -> Iterator[bytes]:
    """What is in the packing, and in the packing inside of it."""
    magic = stream.peek(512)[:512]
    for begin, what, command in FOREIGN:
        if magic.startswith(begin):
            how = command.format(file=origin)
            raise TraceError(f"{origin}: this is {what}; try: {how} | stress trace check -")
    inner = _decompressor(stream, magic, origin)
    if inner is not None and depth < 3:
        yield from _unpacked(io.BufferedReader(_Stream(_read(inner))), origin, depth + 1)
    elif magic[TAR_MAGIC] == b"ustar":
        yield from _members(stream, origin, depth)
    else:
        yield from _read(stream)


def _decompressor(stream: io.BufferedReader, magic: bytes, origin: str) -> IO[bytes] | None:
    """A reader of what is inside, None for what is not compressed."""
    if magic.startswith(b"\xfd7zXZ"):
        return cast(IO[bytes], lzma.LZMAFile(stream))
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if magic.startswith(b"BZh"):
        return cast(IO[bytes], bz2.BZ2File(stream))
    if magic.startswith(ZSTD):
        return _zstd(stream, origin)
    return None


def _zstd(stream: io.BufferedReader, origin: str) -> IO[bytes]:
    for module, reader in ZSTD_READERS:
        try:
            return cast(IO[bytes], getattr(importlib.import_module(module), reader)(stream))
        except ImportError:
            continue
    raise TraceError(
        f"{origin}: packed with zstd, which this Python cannot read (3.14 can, and others with "
        f"backports.zstd); try: zstd -dc {origin} | stress trace check -"
    )


def _read(stream: IO[bytes]) -> Iterator[bytes]:
    read = getattr(stream, "read1", stream.read)
    while chunk := read(BLOCK):
        yield chunk


def _members(stream: io.BufferedReader, origin: str, depth: int) -> Iterator[bytes]:
    """The recordings in an archive, one after the other."""
    found = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for count, member in enumerate(archive):
                content = archive.extractfile(member) if member.isfile() else None
                if content is None or count >= MOST_MEMBERS:
                    continue
                inner = _unpacked(io.BufferedReader(cast(Any, content)), member.name, depth + 1)
                first = next(inner, b"")
                if is_recording(first):
                    found += 1
                    yield first
                    yield from inner
                    yield b"\n"
    except tarfile.TarError as error:
        raise TraceError(f"{origin}: the archive cannot be read: {error}") from None
    if not found:
        raise TraceError(f"{origin}: no file in the archive is a recording")


def is_recording(first: bytes) -> bool:
    """Whether a file begins like one."""
    head = first[:SNIFFED]
    return head.startswith((b"# tracer:", b"cpus=", b"\xef\xbb\xbf# tracer:")) or b": kvm_" in head


def is_binary(first: bytes) -> bool:
    """Whether too much of the beginning is no text."""
    head = first[:SNIFFED]
    return len(head) - len(head.translate(None, _CONTROLS)) > len(head) // 32


def _decoded(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks as UTF-8, without a byte order mark."""
    first = next(chunks, b"")
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        order = "utf-16-le" if first[:2] == b"\xff\xfe" else "utf-16-be"
        rest = first[2:]
        while True:
            even = len(rest) & ~1
            yield rest[:even].decode(order, "replace").encode()
            chunk = next(chunks, None)
            if chunk is None:
                return
            rest = rest[even:] + chunk
    yield first.removeprefix(b"\xef\xbb\xbf")
    yield from chunks
