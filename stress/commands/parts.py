"""The parts of a VM that a variant may replace, as `stress list parts` shows them."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType

from mmu.machine.vm import PART_BASES
from mmu.variant import signature_text

WIDTH = 100


def titles() -> dict[str, str]:
    """The kernel functions that each part stands for, by the name of the part."""
    return {part.__name__: vars(part)["STANDS_FOR"] for part in PART_BASES}


def described() -> Iterator[str]:
    """Every part with its methods: the signature to repeat in an override, and the first sentence
    of the docstring, which begins with the kernel function that the method stands for."""
    for part in PART_BASES:
        yield f"  {part.__name__}"
        yield from _wrapped(f"stands for {titles()[part.__name__]}", 4)
        for name, method in methods_of(part).items():
            yield from _wrapped(f"{name}{signature_text(method)}", 6)
            yield from _wrapped(first_sentence(method), 10)


def methods_of(part: type) -> dict[str, FunctionType]:
    """The public methods of a part: its own in the order of the source, then inherited ones."""
    return {
        name: member
        for owner in part.__mro__
        for name, member in vars(owner).items()
        if not name.startswith("_") and isinstance(member, FunctionType)
    }


def first_sentence(documented: object) -> str:
    """The first sentence of a docstring, on one line."""
    text = " ".join((inspect.getdoc(documented) or "").split("\n\n", maxsplit=1)[0].split())
    sentence, stop, _ = text.partition(". ")
    return sentence + stop.rstrip()


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 4),
        break_long_words=False,
        break_on_hyphens=False,
    )
