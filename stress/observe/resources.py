"""What the process itself uses, sampled while a run goes on (psutil)."""

from __future__ import annotations

import psutil
from attrs import frozen


@frozen
class Sample:
    """Resident memory in bytes, CPU seconds used so far, threads, at `at_s` seconds into the
    run."""

    at_s: float
    rss: int
    cpu_s: float
    threads: int


class Resources:
    """Takes samples at even distances, which double whenever `KEPT` are there; `growth` says
    whether memory went up."""

    KEPT = 512

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.samples: list[Sample] = []
        self._every_s = 0.25
        self._next_s = 0.0

    def due(self, at_s: float) -> bool:
        """Whether it is time for the next sample."""
        return at_s >= self._next_s

    def sample(self, at_s: float) -> Sample:
        """Take one sample; when the list is full every second one is dropped, and the next come
        half as often."""
        with self._process.oneshot():
            times = self._process.cpu_times()
            taken = Sample(
                round(at_s, 2),
                self._process.memory_info().rss,
                times.user + times.system,
                self._process.num_threads(),
            )
        self.samples.append(taken)
        if len(self.samples) > self.KEPT:
            del self.samples[1::2]
            self._every_s *= 2
        self._next_s = at_s + self._every_s
        return taken

    def growth(self) -> int | None:
        """Median memory of the last quarter minus that of the second quarter, in bytes; None for a
        short run."""
        if len(self.samples) < 16:
            return None
        quarter = len(self.samples) // 4

        def median(samples: list[Sample]) -> int:
            return sorted(sample.rss for sample in samples)[len(samples) // 2]

        return median(self.samples[-quarter:]) - median(self.samples[quarter : 2 * quarter])
