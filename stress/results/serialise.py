"""Stored values as plain data and back; what does not fit is named."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import cattrs

from stress.scenario.errors import ResultError

Stored = TypeVar("Stored")

_converter = cattrs.Converter()


def plain(value: Any) -> Any:
    """A stored value as dicts, lists and scalars."""
    return _converter.unstructure(value)


def loaded(text: str, where: str, place: str) -> Any:
    """What a JSON text holds; `ResultError` says that it holds nothing, and that the place where it
    lies is damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
        raise ResultError(f"{where} is not valid JSON ({error}); the {place} is damaged") from None


def fitted(data: Any, where: str, cls: type[Stored], what: str) -> Stored:
    """The value of type `cls` in plain data; `ResultError` says what does not fit `what` it should
    be."""
    try:
        return _converter.structure(data, cls)
    except cattrs.BaseValidationError as error:
        details = "; ".join(cattrs.transform_error(error))
        raise ResultError(f"{where} does not fit {what}: {details}") from None


def parsed(text: str, where: str) -> dict[str, Any]:
    """The object in a JSON text; `ResultError` says why there is none."""
    data = loaded(text, where, "result directory")
    if not isinstance(data, dict):
        raise ResultError(f"{where} holds no object; the result directory is damaged")
    return data


def structured(text: str, where: str, cls: type[Stored], kind: str, schema: int) -> Stored:
    """The value of type `cls` in a JSON text of this kind and schema; `ResultError` says what is
    wrong with it."""
    data = parsed(text, where)
    if data.get("kind") != kind or data.get("schema") != schema:
        found = f"{data.get('kind')!r}, schema {data.get('schema')!r}"
        raise ResultError(
            f"{where} is of kind {found}; this version reads {kind!r}, schema {schema}: use the "
            "version that wrote it"
        )
    return fitted(data, where, cls, f"{kind}, schema {schema}")
