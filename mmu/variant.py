"""Policies, mutants and a user's own ideas are one thing: subclasses of parts that override a small
method.

`Parts` builds, for each part of a VM, one class out of the part and every variant of it. Two
variants of one part compose when they override different methods; the later one wins where they
meet.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Container, Iterable, Iterator
from types import FunctionType
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
        bases = tuple(bases)
        replacements = list(dict.fromkeys(part for variant in variants for part in variant.parts))
        for part in replacements:
            for _, reason in misfits(part, base_of(part, bases)):
                raise TypeError(reason)
        self._chosen = {
            base: _composed(base, [part for part in replacements if issubclass(part, base)])
            for base in bases
        }

    def __getitem__(self, base: type[P]) -> type[P]:
        return self._chosen[base]


def _composed(base: type, parts: list[type]) -> type:
    """One class of all of these replacements of `base`, the last one asked first."""
    mine = [
        part
        for part in parts
        if not any(other is not part and issubclass(other, part) for other in parts)
    ]
    if len(mine) > 1:
        return type("+".join(part.__name__ for part in mine), tuple(reversed(mine)), {})
    return mine[0] if mine else base


def base_of(part: type, bases: Iterable[type]) -> type:
    """The part that `part` replaces. Raises `TypeError` if it is a subclass of none of them."""
    bases = tuple(bases)
    for base in bases:
        if issubclass(part, base):
            return base
    known = {base.__name__: base for base in bases}
    ancestors = [owner.__name__ for owner in part.__mro__[:-1]]
    meant = next((near for name in ancestors if (near := nearest(name, known))), "")
    raise TypeError(
        f"{part.__name__} is no subclass of a part{did_you_mean(meant)}; parts are "
        f"{', '.join(known)}"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that `name` is most likely a misspelling of, empty if none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), "")


def did_you_mean(name: str) -> str:
    """What to append to an error that has a suggestion; nothing without one."""
    return f" (did you mean {name}?)" if name else ""


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


def misfits(part: type, base: type) -> Iterator[tuple[str, str]]:
    """The overrides of `part` that cannot be called as the method of `base` is: name and reason."""
    for name in overridden(part, base):
        member, original = getattr(part, name), getattr(base, name)
        if not inspect.isfunction(original):
            continue
        if not callable(member):
            yield (
                name,
                f"{part.__name__}.{name} must be a method, as {base.__name__}.{name} is: "
                f"{signature_text(original)}",
            )
        elif inspect.isfunction(member) and not _fits(member, original):
            yield (
                name,
                f"{part.__name__}.{name}{signature_text(member)} must take what "
                f"{base.__name__}.{name} takes: {signature_text(original)}",
            )


@frozen
class _Unquoted:
    """An annotation that is shown as it is written."""

    text: str

    def __repr__(self) -> str:
        return self.text


def signature_text(function: FunctionType) -> str:
    """The signature as its source has it, without quotes around annotations."""
    signature = inspect.signature(function)

    def unquoted(annotation: object) -> object:
        return _Unquoted(annotation) if isinstance(annotation, str) else annotation

    parameters = [
        each.replace(annotation=unquoted(each.annotation)) for each in signature.parameters.values()
    ]
    return str(
        signature.replace(
            parameters=parameters, return_annotation=unquoted(signature.return_annotation)
        )
    )


def _fits(member: FunctionType, original: FunctionType) -> bool:
    """Whether every call that suits `original` suits `member`: one with all arguments, and one with
    only those that have no default. Names of positional parameters may differ."""
    theirs = list(inspect.signature(original).parameters.values())
    required = [each for each in theirs if each.default is inspect.Parameter.empty]
    return all(_takes(inspect.signature(member), call) for call in (theirs, required))


def _takes(signature: inspect.Signature, call: list[inspect.Parameter]) -> bool:
    keywords = {each.name: None for each in call if each.kind is inspect.Parameter.KEYWORD_ONLY}
    try:
        signature.bind(*[None] * (len(call) - len(keywords)), **keywords)
    except TypeError:
        return False
    return True
