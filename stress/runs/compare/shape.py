"""What `stress compare --json` prints, as the published schema has it."""

from __future__ import annotations

from typing import Literal, TypedDict


class GroupData(TypedDict):
    """A group: its label, its runs by their names, and which are no evidence."""

    label: str
    runs: list[str]
    left_out: list[str]


class ContrastData(TypedDict):
    """One figure of two groups; a ratio is b's median over a's, null where that is infinite."""

    name: str
    title: str
    unit: str
    number: str
    better: Literal["lower", "higher"]
    a: str
    b: str
    values_a: list[float]
    values_b: list[float]
    median_a: float
    median_b: float
    ratio: float | None
    ratio_interval: tuple[float | None, float | None]
    cliffs_delta: float
    p: float
    claimed: bool
    worse: bool
    sentence: str


class ComparisonData(TypedDict):
    """Groups of runs against the first; `differing` are the keys in which their scenarios differ,
    with each group's value, `too_few` says why no claim is possible (empty: it is)."""

    schema: int
    kind: str
    alpha: float
    paired: bool
    too_few: str
    differing: dict[str, list[str]]
    groups: list[GroupData]
    figures: list[ContrastData]
