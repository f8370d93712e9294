"""Loading a user's own variants from a Python file (`--variant FILE`).

A mistake in such a file must not look like an idea that was tried and did no harm. So every method
of a part's subclass has to override one that the VM calls, or be called in the file, or have a name
that starts with an underscore.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from attrs import frozen

from mmu.machine.vm import PART_BASES
from mmu.variant import Variant, base_of, did_you_mean, misfits, nearest, overridden
from stress.scenario.errors import VariantError


def variants_from(files: Sequence[str]) -> tuple[Variant, ...]:
    """The variants in Python files. Raises `VariantError` with the name of the file."""
    found: list[Variant] = []
    for file in files:
        try:
            found += load_variants(Path(file))
        except VariantError as error:
            raise VariantError(f"{file}: {error}") from None
    return tuple(found)


def load_variants(path: Path) -> tuple[Variant, ...]:
    """Every `mmu.variant.Variant` that the file defines at its top level. Raises `VariantError` if
    there is none, or if one cannot be used."""
    if not path.is_file():
        raise VariantError("no such file")
    module = _imported(path)
    found = tuple(value for value in vars(module).values() if isinstance(value, Variant))
    if not found:
        raise VariantError(
            "defines no variant; end it with VARIANT = Variant(name=..., title=..., "
            "parts=(YourPart,))"
        )
    source = _Source(path, module.__name__, ast.parse(path.read_bytes()))
    for variant in found:
        _check_fields(variant)
        for part in variant.parts:
            _check_part(variant, part, source)
    return found


def _imported(path: Path) -> ModuleType:
    """The module in the file, run. Raises `VariantError` with the line that fails."""
    spec = importlib.util.spec_from_file_location(f"stress_variant_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise VariantError("not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except SyntaxError as error:
        raise VariantError(
            f"SyntaxError: {error.msg} ({Path(error.filename or path).name}:{error.lineno})"
        ) from None
    except BaseException as error:  # SystemExit too: a file that ends the program is no variant
        where = traceback.extract_tb(error.__traceback__)[-1]
        hint = _spelling(error) if isinstance(error, ImportError) else ""
        raise VariantError(
            f"{type(error).__name__}: {error}{hint} ({Path(where.filename).name}:{where.lineno})"
        ) from None
    return module


def _spelling(error: ImportError) -> str:
    """What a name that cannot be imported was most likely meant to be."""
    asked = re.match(r"cannot import name '(\w+)'", str(error))
    module = sys.modules.get(error.name or "")
    return did_you_mean(nearest(asked[1], dir(module))) if asked and module else ""


def _check_fields(variant: Variant) -> None:
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


@frozen
class _Source:
    """A variant file: where its classes and methods are, and which names it uses."""

    path: Path
    module: str
    tree: ast.Module

    def place(self, owner: type, method: str = "") -> str:
        """The file and line of a class or its method, in brackets; of neither, the file."""
        line = ""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and node.name == owner.__name__:
                defined = {
                    each.name: each for each in node.body if isinstance(each, ast.FunctionDef)
                }
                line = f":{defined.get(method, node).lineno}"
        return f"({self.path.name}{line})"

    def names_used(self) -> set[str]:
        """Every attribute that the file reads, and every text in it, for `getattr`. What is asked
        of `super()` is no use: a misspelt override may well pass the call on."""
        used = set()
        for node in ast.walk(self.tree):
            match node:
                case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                    pass
                case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                    used.add(name)
                case _:
                    pass
        return used

    def methods_of(self, owner: type) -> Iterator[str]:
        """The public methods of a class, if the class is defined in this file."""
        if owner.__module__ == self.module:
            for name, member in vars(owner).items():
                if (inspect.isroutine(member) or isinstance(member, property)) and name[0] != "_":
                    yield name


def _check_part(variant: Variant, part: type, source: _Source) -> None:
    """Raise `VariantError` for a class that replaces nothing, or has a method that cannot work."""
    try:
        base = base_of(part, PART_BASES)
    except TypeError as error:
        raise VariantError(f"{variant.name}: {error} {source.place(part)}") from None
    for owner, name in _without_effect(part, base, source):
        meant = did_you_mean(nearest(name, _replaceable(base)))
        raise VariantError(
            f"{variant.name}: {owner.__name__}.{name}() {source.place(owner, name)} overrides no "
            f"method of {base.__name__}{meant}, and nothing in the file calls it; start the name "
            "of a helper with an underscore"
        )
    if not overridden(part, base):
        raise VariantError(
            f"{variant.name}: {part.__name__} {source.place(part)} overrides nothing of "
            f"{base.__name__}, which has {', '.join(f'{name}()' for name in _replaceable(base))}"
        )
    for name, reason in misfits(part, base):
        owner = next(each for each in part.__mro__ if name in vars(each))
        raise VariantError(f"{variant.name}: {reason} {source.place(owner, name)}")


def _without_effect(part: type, base: type, source: _Source) -> Iterator[tuple[type, str]]:
    """The public methods, in the file, of `part` and its own bases that override nothing and that
    the file does not call."""
    owners = part.__mro__[: part.__mro__.index(base)]
    used = source.names_used()
    for index, owner in enumerate(owners):
        for name in source.methods_of(owner):
            inherited = any(hasattr(above, name) for above in part.__mro__[index + 1 :])
            if not inherited and name not in used:
                yield owner, name


def _replaceable(base: type) -> list[str]:
    """The public methods of a part."""
    return [name for name in dir(base) if name[0] != "_" and callable(getattr(base, name))]
