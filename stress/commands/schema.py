"""JSON Schemas of everything that stress writes as JSON, made from the types that write it.

An object has the keys that its type has, all of them, and no others: whoever finds one that is not
in the schema has found a mistake.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NewType, Union, get_args, get_origin

import attrs

from mmu.kernels import SERIES
from mmu.numbers.oracles import RULES
from stress.results import exploration_record, listing, schedule_file
from stress.results import run_record as record
from stress.results.serialise import Format
from stress.runs import campaign_summary
from stress.runs.compare.comparison_record import COMPARISON_FORMAT
from stress.runs.study.study_record import STUDY_FORMAT
from stress.scenario import types as scenario
from stress.selftest import stored as selftest

VerdictName = Literal["PASS", "INCONCLUSIVE", "HARNESS_ERROR", "FAIL"]
Status = Literal["running", "finished", "interrupted"]
Rule = Literal[tuple(RULES)]  # type: ignore[valid-type]
Rows = Literal["killed", "other oracle", "error", "ALIVE", "silent", "FIRED", "idle", "not tried"]


ROOTS: Mapping[str, tuple[Format[Any], str]] = {
    "run": (record.RUN_FORMAT, "run.json: a run on real threads"),
    "exploration": (
        exploration_record.EXPLORATION_FORMAT,
        "explore.json: an exploration under the controlled scheduler",
    ),
    "schedule": (
        schedule_file.SCHEDULE_FORMAT,
        "schedule-N.json: a failing schedule, to be replayed",
    ),
    "selftest": (selftest.SELFTEST_FORMAT, "selftest.json: the kill matrix"),
    "study": (STUDY_FORMAT, "study.json: what a study says"),
    "comparison": (COMPARISON_FORMAT, "what stress compare --json prints"),
    "campaign": (campaign_summary.CAMPAIGN_FORMAT, "what stress campaign --json prints"),
    "explanation": (schedule_file.EXPLANATION_FORMAT, "what stress explain --json prints"),
    "listing": (listing.LISTING_FORMAT, "what stress results list --json prints"),
}
NAMES = tuple(ROOTS)
WHAT = {name: what for name, (_, what) in ROOTS.items()}

REFINED: Mapping[tuple[type, str], Any] = {
    (record.RunRecord, "scenario"): scenario.Scenario,
    (record.RunRecord, "verdict"): VerdictName,
    (record.RunRecord, "status"): Status,
    (record.StoredFinding, "rule"): Rule,
    (exploration_record.ExplorationRecord, "scenario"): scenario.Scenario,
    (exploration_record.ExplorationRecord, "verdict"): VerdictName,
    (exploration_record.StoredFailure, "rule"): Rule,
    (schedule_file.ScheduleFile, "scenario"): scenario.Scenario,
    (selftest.SelftestRecord, "verdict"): VerdictName,
    (campaign_summary.CampaignRecord, "verdict"): VerdictName,
    (campaign_summary.CampaignRun, "verdict"): VerdictName,
    (campaign_summary.CampaignFinding, "rule"): Rule,
    (selftest.StoredRow, "state"): Rows,
}
"""Where a value is of a narrower kind than the type of its field says."""

NARROWED: Mapping[Any, Mapping[str, Any]] = {
    scenario.KernelName: {"enum": list(SERIES)},
    scenario.Count: {"minimum": 0},
    scenario.Positive: {"minimum": 1},
    scenario.Amount: {"minimum": 1},
    scenario.Seed: {"minimum": 0},
    scenario.Share: {"minimum": 0, "maximum": 1},
    scenario.Rate: {"minimum": 0},
    scenario.Seconds: {"exclusiveMinimum": 0},
}
SCALARS: Mapping[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
}


def generate(name: str) -> dict[str, Any]:
    """The schema as the types say it now."""
    written, what = ROOTS[name]
    made = _Maker()
    body = made.object(written.record, written.header)
    version = str(written.schema).rpartition("/")[2]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{what}; version {version}",
        **body,
        **({"$defs": dict(sorted(made.definitions.items()))} if made.definitions else {}),
    }


def as_text(name: str) -> str:
    """The schema as `stress schema` prints it."""
    return json.dumps(generate(name), indent=1) + "\n"


class _Maker:
    """Turns types into schemas; classes become definitions."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}

    def object(self, cls: type, constants: Mapping[str, Any]) -> dict[str, Any]:
        """A class: every field, and nothing else."""
        properties: dict[str, Any] = {key: {"const": value} for key, value in constants.items()}
        for key, kind in _fields(cls).items():
            if key not in constants:
                properties[key] = self.schema(REFINED.get((cls, key), kind))
        made = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return {"description": " ".join((cls.__doc__ or "").split()), **made}

    def schema(self, kind: Any) -> dict[str, Any]:
        """Any type that a stored value may have; raises TypeError for what JSON cannot say."""
        if kind is Any:
            return {}
        if kind in SCALARS:
            return {"type": SCALARS[kind]}
        if isinstance(kind, NewType):
            return {**self.schema(kind.__supertype__), **NARROWED.get(kind, {})}
        if isinstance(kind, type) and (attrs.has(kind) or typing.is_typeddict(kind)):
            return self._reference(kind)
        maker = _GENERIC.get(get_origin(kind))
        if maker is None:
            raise TypeError(f"no JSON Schema for {kind!r}")
        return maker(self, get_args(kind))

    def _reference(self, cls: type) -> dict[str, Any]:
        name = cls.__name__
        if name not in self.definitions:
            self.definitions[name] = {}
            self.definitions[name] = self.object(cls, {})
        return {"$ref": f"#/$defs/{name}"}

    def _array(self, args: tuple[Any, ...]) -> dict[str, Any]:
        if args[-1] is ... or len(args) == 1:
            return {"type": "array", "items": self.schema(args[0])}
        items = [self.schema(each) for each in args]
        return {
            "type": "array",
            "prefixItems": items,
            "items": False,
            "minItems": len(items),
            "maxItems": len(items),
        }

    def _map(self, args: tuple[Any, ...]) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self.schema(args[1])}

    def _choice(self, args: tuple[Any, ...]) -> dict[str, Any]:
        return {"enum": list(args)}

    def _either(self, args: tuple[Any, ...]) -> dict[str, Any]:
        return {"anyOf": [self.schema(each) for each in args]}


_GENERIC: Mapping[Any, Callable[[_Maker, tuple[Any, ...]], dict[str, Any]]] = {
    tuple: _Maker._array,
    list: _Maker._array,
    dict: _Maker._map,
    Literal: _Maker._choice,
    Union: _Maker._either,
    types.UnionType: _Maker._either,
}


def _fields(cls: type) -> dict[str, Any]:
    """The stored fields of a class with their types."""
    hints = typing.get_type_hints(cls)
    return {each.name: hints[each.name] for each in attrs.fields(cls)} if attrs.has(cls) else hints
