"""The recordings of one `stress trace check`, each judged in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click

from stress.trace.checker import CheckResult

Judge = Callable[[Path], CheckResult]


def judged(files: Sequence[Path], judge: Judge, jobs: int) -> Iterator[CheckResult]:
    """The result of each file, in the order given, from up to `jobs` processes. Raises the
    `TraceError` of a file that cannot be used when its turn comes."""
    # another process does not have this one's stdin
    if min(jobs, len(files)) < 2 or Path("-") in files:
        yield from shown(map(judge, files), len(files))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(files)), mp_context=context) as pool:
        try:
            yield from shown(pool.map(judge, files), len(files))
        finally:
            pool.shutdown(cancel_futures=True)


def shown(results: Iterable[CheckResult], count: int) -> Iterator[CheckResult]:
    """The results, with a bar on stderr where that is a terminal and there are several."""
    if count < 2 or not sys.stderr.isatty():
        yield from results
        return
    with click.progressbar(results, length=count, label="recordings", file=sys.stderr) as bar:
        yield from bar
