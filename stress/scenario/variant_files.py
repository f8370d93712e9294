"""Loading a user's own variants from a Python file (`--variant FILE`)."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Sequence
from pathlib import Path

from mmu.machine.vm import PART_BASES
from mmu.variant import Variant, overridden
from stress.scenario.errors import VariantError


def load_variants(path: Path) -> tuple[Variant, ...]:
    """Every `mmu.variant.Variant` that the file defines at its top level; `VariantError` says why
    there is none."""
    if not path.is_file():
        raise VariantError("no such file")
    spec = importlib.util.spec_from_file_location(f"stress_variant_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise VariantError("not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a file that ends the program is no variant
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise VariantError(
            f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        ) from None
    found = tuple(value for value in vars(module).values() if isinstance(value, Variant))
    for variant in found:
        if not isinstance(variant.name, str) or not isinstance(variant.title, str):
            raise VariantError("name and title of a Variant must be texts")
        if (
            not isinstance(variant.parts, tuple)
            or not variant.parts
            or not all(isinstance(part, type) for part in variant.parts)
        ):
            raise VariantError(
                f"{variant.name}: parts must be a tuple of classes, such as parts=(YourPart,)"
            )
        for part in variant.parts:
            _check_part(variant, part)
    if not found:
        raise VariantError(
            "defines no variant; end it with VARIANT = Variant(name=..., title=..., "
            "parts=(YourPart,))"
        )
    return found


def _check_part(variant: Variant, part: type) -> None:
    """A part that replaces nothing would make a run look as if the idea had been tried."""
    base = next((base for base in PART_BASES if issubclass(part, base)), None)
    if base is None:
        known = ", ".join(base.__name__ for base in PART_BASES)
        raise VariantError(
            f"{variant.name}: {part.__name__} is no subclass of a part; parts are {known}"
        )
    if part is base or not overridden(part, base):
        raise VariantError(
            f"{variant.name}: {part.__name__} overrides nothing of {base.__name__}: is a method's "
            "name misspelt?"
        )


def variants_from(files: Sequence[str]) -> tuple[Variant, ...]:
    """The variants in Python files."""
    return tuple(variant for file in files for variant in load_variants(Path(file)))
