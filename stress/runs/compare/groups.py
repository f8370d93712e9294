"""What is compared: runs from directories, gathered in groups of the same scenario."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from stress.results.run_record import RunRecord
from stress.results.store import RUN_JSON, RunDirectory
from stress.scenario.errors import ResultError

DESIGN = ("vm.policy", "vm.profile", "vm.kernel", "vm.variants", "vm.variant_files", "vm.mmu_lock")
"""Keys that a comparison is usually about: they may differ."""
NEVER_MATTER = ("title", "seed", "obligations", "expect", "explore")
"""Keys that change nothing about what a run on threads does."""


@frozen
class Group:
    """Runs of one scenario that differ in their seeds only. `left_out` says which runs are no
    evidence, and why."""

    label: str
    runs: tuple[RunRecord, ...]
    left_out: tuple[str, ...] = ()


def load_groups(arguments: Sequence[str]) -> list[Group]:
    """One group an argument: `PATH` or `LABEL=PATH[,PATH...]`, where a path is a run's directory or
    one that holds several.

    Raises `ResultError` for what cannot be read, for groups without runs, and where one group mixes
    scenarios.
    """
    named = [_split(argument) for argument in arguments]
    groups = [_load(label, paths) for label, paths in named]
    return _labelled(groups)


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The keys in which the scenarios of the groups differ, each with the groups' values in
    order."""
    flat = [dict(_flat(group.runs[0].scenario)) for group in groups]
    keys = dict.fromkeys(key for each in flat for key in each)
    values = {
        key: [str(each.get(key, "")) for each in flat]
        for key in keys
        if not key.startswith(NEVER_MATTER)
    }
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def _split(argument: str) -> tuple[str, list[Path]]:
    label, equals, rest = argument.partition("=")
    if not equals or "/" in label:
        label, rest = "", argument
    return label, [Path(part) for part in rest.split(",")]


def _load(label: str, paths: Sequence[Path]) -> Group:
    records = [RunDirectory(path).read() for each in paths for path in _directories(each)]
    used = [record for record in records if record.status == "finished"]
    left_out = tuple(
        f"{record.id}: {record.status}, so it is no evidence"
        for record in records
        if record.status != "finished"
    )
    name = label or str(paths[0])
    if not used:
        raise ResultError(
            f"{name}: no finished run in it" + (f" ({'; '.join(left_out)})" if left_out else "")
        )
    group = Group(label or paths[0].name, tuple(used), left_out)
    _check_same(name, used)
    return group


def _directories(path: Path) -> list[Path]:
    """The run itself, or the runs in a directory, oldest first."""
    if (path / RUN_JSON).is_file():
        return [path]
    found = sorted(
        each.parent for each in path.glob(f"*/{RUN_JSON}") if not each.parent.is_symlink()
    )
    if not found:
        raise ResultError(f"{path}: neither a run's directory nor one that holds runs ({RUN_JSON})")
    return found


def _check_same(name: str, records: Sequence[RunRecord]) -> None:
    first = dict(_flat(records[0].scenario))
    for record in records[1:]:
        other = dict(_flat(record.scenario))
        keys = [
            key
            for key in first
            if first[key] != other.get(key) and not key.startswith(NEVER_MATTER)
        ]
        if keys:
            raise ResultError(
                f"{name}: {records[0].id} and {record.id} are not of one scenario: they differ in "
                f"{', '.join(keys)}"
            )


def _labelled(groups: list[Group]) -> list[Group]:
    """Labels that tell the groups apart: by what differs in their design, where the given ones do
    not."""
    labels = [group.label for group in groups]
    designs = [
        {key: dict(_flat(group.runs[0].scenario)).get(key) for key in DESIGN} for group in groups
    ]
    differing = [key for key in DESIGN if len({str(design[key]) for design in designs}) > 1]
    if differing and all("=" not in label for label in labels) and len(set(labels)) == len(labels):
        told = [", ".join(_short(design[key]) for key in differing) for design in designs]
        if len(set(told)) == len(told):
            labels = told
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({number})" for number, label in enumerate(labels, 1)]
    return [
        Group(label, group.runs, group.left_out)
        for label, group in zip(labels, groups, strict=True)
    ]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value)) or "no variant"
    return str(value)


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping as dotted keys."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
