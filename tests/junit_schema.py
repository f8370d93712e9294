"""The schema of JUnit documents, built when it is first needed: that takes half a second."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tests.command import ROOT

if TYPE_CHECKING:
    from xmlschema import XMLSchema


@cache
def junit_schema() -> XMLSchema:
    """The schema."""
    from xmlschema import XMLSchema  # noqa: PLC0415 - a tenth of all that collecting imports

    return XMLSchema(ROOT / "tests" / "data" / "junit.xsd")
