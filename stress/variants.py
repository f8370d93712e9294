"""Loading a user's own variants from a Python file (`--variant FILE`)."""

from __future__ import annotations

import importlib.util
import traceback
from pathlib import Path

from mmu.variant import Variant
from stress.errors import VariantError


def load_variants(path: Path) -> tuple[Variant, ...]:
    """Every `mmu.variant.Variant` that the file defines at its top level; `VariantError` says why there is none."""
    if not path.is_file():
        raise VariantError("no such file")
    spec = importlib.util.spec_from_file_location(f"stress_variant_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise VariantError("not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise VariantError(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})") from None
    found = tuple(value for value in vars(module).values() if isinstance(value, Variant))
    if not found:
        raise VariantError("defines no variant; end it with VARIANT = Variant(name=..., title=..., parts=(YourPart,))")
    return found
