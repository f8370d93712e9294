"""study.json, as the published schema has it."""

from __future__ import annotations

from typing import Any, TypedDict

from stress.runs.study.costs import Costs


class PriceData(TypedDict):
    """What a price is for, where its default comes from, and between which values it is moved, in
    microseconds."""

    low: float
    high: float
    what: str
    source: str


class CellData(TypedDict):
    """All runs of one policy at one place. Costs are (median, low end, high end) in
    microseconds."""

    policy: str
    place: dict[str, Any]
    runs: int
    deletes: int
    device_accesses: int
    guest_accesses: int
    findings: int
    bad_accesses: int
    cost_us: tuple[float, float, float]
    call_us: tuple[float, float, float]
    amounts_a_delete: dict[str, float]
    model_p99_us: dict[str, float]


class IdleData(TypedDict):
    """The runs of a policy at a place in which nothing was deleted, of how many, and what all of
    them found."""

    policy: str
    place: dict[str, Any]
    idle_runs: int
    runs: int
    findings: int


class CrossoverData(TypedDict):
    """Where a policy stops, or begins, to cost less than the seed's along an axis; null where it
    does not."""

    axis: str
    policy: str
    at: float | None
    cheaper: list[str]


class SensitivityData(TypedDict):
    """The ratio of the costs (policy over seed's) at the price's low end, its default, its high
    end; whether that decides."""

    price: str
    policy: str
    ratios: tuple[float, float, float]
    flips: bool


class ClaimsData(TypedDict):
    """A paragraph for each claim of the patch."""

    safe: str
    efficient: str


class StudyData(TypedDict):
    """A study's answer: what was asked for, what each delete took and costs at each place, and what
    follows from it."""

    schema: int
    kind: str
    name: str
    title: str
    planned: int
    made: int
    policies: list[str]
    point: dict[str, Any]
    axes: dict[str, list[Any]]
    costs_us: Costs
    prices: dict[str, PriceData]
    cells: list[CellData]
    idle: list[IdleData]
    crossovers: list[CrossoverData]
    sensitivities: list[SensitivityData]
    claims: ClaimsData
