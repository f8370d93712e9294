"""Policies, mutants and a user's own ideas are one thing: subclasses of parts that override a small
method.

`assemble` builds, for each part of a VM, one class out of the part and every variant of it. Two
variants of one part compose when they override different methods; the later one wins where they
meet.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Container, Iterable
from typing import TypeVar

from attrs import field, frozen

P = TypeVar("P")


@frozen
class Variant:
    """A named change to the VM.

    `parts` are subclasses of the parts they replace. For a mutant `expects` lists the
    rules of which at least one must fire, `rule` is what it breaks in one sentence, `origin` the
    upstream commit, section or defect it stands for, `story` the smallest interleaving that shows
    it, a step a line.
    """

    name: str
    title: str
    parts: tuple[type, ...]
    expects: tuple[str, ...] = ()
    rule: str = ""
    origin: str = ""
    story: tuple[str, ...] = field(default=())


def variants_in(
    package: str, path: Iterable[str], besides: Container[str] = ()
) -> dict[str, Variant]:
    """Import every module of a package that has one idea a file, and return their `VARIANT`s by
    name, in the order of the files.

    Sub-packages and the modules named in `besides` are no variants.
    """
    modules = sorted(
        info.name
        for info in pkgutil.iter_modules(path)
        if not info.ispkg and info.name not in besides
    )
    found = [importlib.import_module(f"{package}.{module}").VARIANT for module in modules]
    return {variant.name: variant for variant in found}


class Parts:
    """The class to use for each part."""

    def __init__(self, bases: Iterable[type], variants: Iterable[Variant] = ()) -> None:
        replacements = list(dict.fromkeys(part for variant in variants for part in variant.parts))
        self._chosen: dict[type, type] = {}
        for base in bases:
            for part in replacements:
                if issubclass(part, base):
                    _check_signatures(part, base)
            candidates = [part for part in replacements if issubclass(part, base)]
            mine = [
                part
                for part in candidates
                if not any(other is not part and issubclass(other, part) for other in candidates)
            ]
            if not mine:
                self._chosen[base] = base
            elif len(mine) == 1:
                self._chosen[base] = mine[0]
            else:
                self._chosen[base] = type(
                    "+".join(part.__name__ for part in mine), tuple(reversed(mine)), {}
                )
        unplaced = [
            part.__name__
            for part in replacements
            if not any(issubclass(part, base) for base in self._chosen)
        ]
        if unplaced:
            known = ", ".join(base.__name__ for base in self._chosen)
            raise TypeError(f"{', '.join(unplaced)} is no subclass of a part; parts are {known}")

    def __getitem__(self, base: type[P]) -> type[P]:
        return self._chosen[base]


def overridden(part: type, base: type) -> list[str]:
    """The names of `base` that `part` replaces."""
    owners = part.__mro__[: part.__mro__.index(base)]
    members = [
        (name, member)
        for owner in owners
        for name, member in vars(owner).items()
        if hasattr(base, name)
    ]
    return [
        name for name, member in members if inspect.isfunction(member) or not name.startswith("__")
    ]


def _check_signatures(part: type, base: type) -> None:
    """Every override must be callable as the original is."""
    for name in overridden(part, base):
        member, original = getattr(part, name), getattr(base, name)
        if (
            inspect.isfunction(member)
            and inspect.isfunction(original)
            and not _fits(member, original)
        ):
            mine, theirs = inspect.signature(member), inspect.signature(original)
            raise TypeError(
                f"{part.__name__}.{name}{mine} must take what {base.__name__}.{name} takes: "
                f"{theirs}"
            )


def _fits(member: object, original: object) -> bool:
    """Whether a call that suits `original` suits `member`: same positional parameters, or as many
    through *args."""
    assert callable(member)
    assert callable(original)
    mine = list(inspect.signature(member).parameters.values())
    theirs = list(inspect.signature(original).parameters.values())
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in mine):
        return True
    required = [
        parameter
        for parameter in mine[len(theirs) :]
        if parameter.default is inspect.Parameter.empty
    ]
    return len(mine) >= len(theirs) and not required
