"""The latencies of a run as an HdrHistogram interval log (`.hlog`), for that library's tools.

Written here, from the published format, because the Python package of that name has a C module
that turns the GIL back on when a free-threaded interpreter imports it. The recorder's buckets are
those of a histogram with one significant digit, 16 an octave, so nothing is lost on the way.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator

from stress.observe.histograms import NUMBERS, SUB_BITS, Latency, bucket_of
from stress.results.run_record import RunRecord

DIGITS = 1
"""Significant decimal digits: the least that HdrHistogram has, 32 sub-buckets of which each octave
uses the upper 16."""
HIGHEST = (1 << 62) - 1
"""The highest value that a reader has to make room for, in nanoseconds; the counts above the
largest seen are not written."""
COOKIE = 0x1C849303 | 0x10
COMPRESSED_COOKIE = 0x1C849304 | 0x10
"""What marks the second version of the encoding, with counts of variable length."""


def log(record: RunRecord) -> str:
    """The `.hlog` text of a run: one line an operation, tagged with its name, over the whole run.

    The column of the interval's maximum is in microseconds, but for counts.
    """
    lines = [
        f"#[tdp-stress {record.environment.version}: {record.id}; nanoseconds, but for "
        f"{', '.join(sorted(NUMBERS))}]",
        "#[Histogram log format version 1.3]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for latency in record.latencies:
        scale = 1 if latency.operation in NUMBERS else 1000
        most = highest_of(latency.buckets[-1][0]) / scale
        lines.append(
            f"Tag={latency.operation},0.000,{record.run_s:.3f},{most:.3f},{encode(latency)}"
        )
    return "\n".join(lines) + "\n"


def encode(latency: Latency) -> str:
    """One distribution in HdrHistogram's compressed V2 encoding, as base64."""
    counts = b"".join(_varint(number) for number in _runs(latency))
    header = struct.pack(">IIIIqqd", COOKIE, len(counts), 0, DIGITS, 1, HIGHEST, 1.0)
    body = zlib.compress(header + counts)
    return base64.b64encode(struct.pack(">II", COMPRESSED_COOKIE, len(body)) + body).decode("ascii")


def highest_of(middle: int) -> int:
    """The highest value of the bucket around `middle`: what HdrHistogram reports for all that
    is in it."""
    shift = max(0, middle.bit_length() - SUB_BITS - 1)
    return ((middle >> shift) + 1 << shift) - 1


def _runs(latency: Latency) -> Iterator[int]:
    """The counts from bucket 0 on, a run of zeros as its length with a minus."""
    last = -1
    for middle, count in latency.buckets:
        bucket = bucket_of(middle)
        gap = bucket - last - 1
        if gap:
            yield -gap if gap > 1 else 0
        yield count
        last = bucket


def _varint(number: int) -> bytes:
    """ZigZag, then LEB128 in at most nine bytes, of which the ninth has eight bits."""
    left = (number << 1 ^ number >> 63) & (1 << 64) - 1
    out = bytearray()
    while left >= 0x80 and len(out) < 8:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)
