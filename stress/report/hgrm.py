"""Latencies in HdrHistogram's own forms, for its tools: percentile tables (`.hgrm`) and the encoded
interval log (`.hlog`).

Written here, from the published formats, because the Python package of that name has a C module
that turns the GIL back on when a free-threaded interpreter imports it. The recorder's buckets are
those of a histogram with one significant digit: 16 an octave. So nothing is lost on the way.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterator

from stress.observe.histograms import NUMBERS, SUB_BITS, Latency, bucket_of
from stress.results.run_record import RunRecord

DIGITS = 1
"""Significant decimal digits: the least that HdrHistogram has, 32 sub-buckets of which each octave
uses the upper 16."""
SUB_BUCKETS = 2 << SUB_BITS
HIGHEST = (1 << 62) - 1
"""The highest value that a reader has to make room for, in nanoseconds; the counts above the
largest seen are not written."""
BUCKETS = 62 - SUB_BITS
"""Buckets, one an octave but for the first, that such a reader makes: the first ends at
`SUB_BUCKETS`."""
TICKS = 5
"""Lines of a percentile table for each halving of the distance to 100 %; HdrHistogram's default."""
COOKIE = 0x1C849303 | 0x10
COMPRESSED_COOKIE = 0x1C849304 | 0x10
"""What marks the second version of the encoding, with counts of variable length."""


def unit_of(operation: str) -> tuple[float, str]:
    """What a recorded value is divided by, and the unit that gives: microseconds, or a number."""
    return (1.0, "count") if operation in NUMBERS else (1000.0, "us")


def percentiles(latency: Latency) -> str:
    """The `.hgrm` text of one operation, in microseconds: one line for each percentile level."""
    scale, _ = unit_of(latency.operation)
    total = sum(count for _, count in latency.buckets)
    mean = sum(middle * count for middle, count in latency.buckets) / total
    deviation = math.sqrt(
        sum((middle - mean) ** 2 * count for middle, count in latency.buckets) / total
    )
    lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
    for value, level, count in _levels(latency, total):
        inverse = f" {1 / (1 - level / 100):14.2f}" if level < 100 else ""
        lines.append(f"{value / scale:12.{DIGITS}f} {level / 100:2.12f} {count:10d}{inverse}")
    most = highest_of(latency.buckets[-1][0])
    lines += [
        f"#[Mean    = {mean / scale:12.{DIGITS}f}, StdDeviation   = "
        f"{deviation / scale:12.{DIGITS}f}]",
        f"#[Max     = {most / scale:12.{DIGITS}f}, Total count    = {total:12d}]",
        f"#[Buckets = {BUCKETS:12d}, SubBuckets     = {SUB_BUCKETS:12d}]",
    ]
    return "\n".join(lines) + "\n"


def log(record: RunRecord) -> str:
    """The `.hlog` text of a run: one line an operation, tagged with its name, over the whole run.

    The column of the interval's maximum is in microseconds, as the tables are.
    """
    lines = [
        f"#[tdp-stress {record.environment.version}: {record.id}; nanoseconds, but for "
        f"{', '.join(sorted(NUMBERS))}]",
        "#[Histogram log format version 1.3]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for latency in record.latencies:
        most = highest_of(latency.buckets[-1][0]) / unit_of(latency.operation)[0]
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
    """The highest value of the bucket around `middle`: what HdrHistogram tells of everything in
    it."""
    shift = max(0, middle.bit_length() - SUB_BITS - 1)
    return ((middle >> shift) + 1 << shift) - 1


def _levels(latency: Latency, total: int) -> Iterator[tuple[int, float, int]]:
    """The lines of a percentile table: (value, percentile level, how many values are not above
    it)."""
    level, count = 0.0, 0
    for middle, more in latency.buckets:
        count += more
        value = highest_of(middle)
        while 100 * count / total >= level:
            yield value, level, count
            level += 100 / (TICKS * 2 ** (int(math.log2(100 / (100 - level))) + 1))
            if count == total:
                break
    yield highest_of(latency.buckets[-1][0]), 100.0, total


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
