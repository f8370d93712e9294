"""Records as JSON and back: one `Format` a kind, and what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import cattrs
from attrs import frozen

from stress.scenario.errors import ResultError

Stored = TypeVar("Stored")

RESULT: Final = "a result directory, such as results/latest"

_converter = cattrs.Converter()


@frozen
class Format(Generic[Stored]):
    """How one kind of record is written as JSON and read back.

    `schema` and `kind` stand before the fields of the record. The schema goes up when a reader of
    the old one would misread the new one. `wanted` is what a user has to give, for messages.
    """

    record: type[Stored]
    schema: int | str
    kind: str | None = None
    wanted: str = RESULT

    @property
    def header(self) -> dict[str, int | str]:
        """What every text begins with, and must begin with to be read."""
        kind: dict[str, int | str] = {} if self.kind is None else {"kind": self.kind}
        return {"schema": self.schema, **kind}

    def data(self, record: Stored) -> dict[str, Any]:
        """The record as dicts, lists and scalars."""
        return {**self.header, **_converter.unstructure(record)}

    def text(self, record: Stored) -> str:
        """The record as JSON text, which ends with a newline."""
        return json.dumps(self.data(record), indent=1) + "\n"

    def read(self, text: str, where: str) -> Stored:
        """The record in a JSON text; raises `ResultError` if there is none that fits."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
            raise ResultError(f"{where} is not valid JSON ({error}); the file is damaged") from None
        wanted = self.header
        found = {key: data.get(key) if isinstance(data, dict) else None for key in wanted}
        if found != wanted:
            foreign = found.get("kind") != self.kind
            hint = f"give {self.wanted}" if foreign else "use the version that wrote it"
            raise ResultError(
                f"{where} has {_shown(found)}; this version reads {_shown(wanted)}: {hint}"
            )
        return fitted(data, where, self.record, _shown(wanted))

    def load(self, path: Path) -> Stored:
        """The record in a file; raises `ResultError` if there is none that fits."""
        return self.read(read_text(path, self.wanted), str(path))


def fitted(data: Any, where: str, cls: type[Stored], what: str) -> Stored:
    """The value of type `cls` in plain data; raises `ResultError` with everything that does not fit
    `what` it should be."""
    try:
        return _converter.structure(data, cls)
    except cattrs.BaseValidationError as error:
        details = "; ".join(cattrs.transform_error(error))
        raise ResultError(f"{where} does not fit {what}: {details}") from None


def read_text(path: Path, wanted: str = RESULT) -> str:
    """The text of a file; raises `ResultError` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ResultError(f"{path} is not UTF-8 text; the file is damaged") from None
    except OSError as error:
        raise ResultError(f"{path}: {error.strerror}; give {wanted}") from None


def _shown(header: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in header.items())
